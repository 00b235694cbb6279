"""Header blocks: from HEADERS and CONTINUATION frames to fields (RFC 9113, section 4.3).

    frames ─► grows, add ─► a whole block ─► decode, in steps ─► stream_id, ends_stream, fields

A connection has one block at a time. While it is `unfinished`, nothing else may be received, as HPACK's state depends on
the order. What a block holds beyond `max_header_bytes` is borrowed from a pool of the server.
"""

from __future__ import annotations

from . import frames
from ._hpack import Block, Decoder, HeaderList
from .buffers import Account
from .faults import ConnectionFault, ErrorCode
from .limits import MAX_BLOCK_BYTES

WHOLE_BLOCK = frames.END_HEADERS | frames.END_STREAM


class Blocks:
    """The header blocks of a connection.

    Attributes:
        stream_id: of the block that was received last.
        ends_stream: whether it came with END_STREAM.
        fields: of the block that was decoded last.
        unfinished: whether a whole block has to be decoded.
    """

    def __init__(self, max_header_bytes: int, account: Account) -> None:
        self._max_header_bytes = max_header_bytes
        self._account = account
        self._decoder = Decoder(max_header_bytes)
        self._fragments: list[bytes] = []
        self._borrowed = 0
        self._block = Block(b"", HeaderList())
        self.fields = self._block.fields
        self.stream_id = 0
        self.ends_stream = False
        self.unfinished = False

    def grows(self, size: int) -> None:
        """The block that arrives will have `size` bytes with the next frame. Raises `ConnectionFault` if they are too many."""
        if size > MAX_BLOCK_BYTES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"a header block of more than {MAX_BLOCK_BYTES} bytes")
        if size > self._max_header_bytes:
            more = size - self._borrowed
            if not self._account.take(more):
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many large header blocks arrive at once")
            self._borrowed += more

    def add(self, kind: int, flags: int, stream_id: int, raw: bytes) -> bool:
        """Take in a frame; True when the block is whole. It has to be decoded then, if it's `unfinished`."""
        if kind == frames.HEADERS:
            self.stream_id = stream_id
            self.ends_stream = flags & frames.END_STREAM != 0
        if kind == frames.HEADERS and flags | frames.END_STREAM == WHOLE_BLOCK:  # as all gRPC clients send them
            data = raw[frames.HEADER_SIZE :]
        else:
            self._fragments.append(frames.block_fragment(raw))
            if not flags & frames.END_HEADERS:
                return False
            data = b"".join(self._fragments)
        known = self._decoder.known(data)
        if known is not None:
            self.fields = known
            self.drop()
            return True
        self._block = self._decoder.begin(data)
        self.fields = self._block.fields
        self.unfinished = True
        return True

    def decode(self) -> int:
        """Decode some more of a whole block; the size of the fields that came out. Raises `ConnectionFault`."""
        before = self._block.work
        if self._decoder.go_on(self._block):
            self.drop()
        return self._block.work - before

    def drop(self) -> None:
        """Give back what the block has borrowed."""
        self.unfinished = False
        if self._fragments:
            self._fragments.clear()
        if self._borrowed:
            self._account.give(self._borrowed)
            self._borrowed = 0
