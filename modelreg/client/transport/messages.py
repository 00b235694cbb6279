"""gRPC's length-prefixed messages in a response, taken apart as they arrive.

    flag (1 byte, 0: not compressed) | length (4 bytes, big endian) | length bytes

`Whole` collects each message. `DataChunks` hands on the data of RetrieveVersionData's messages piece by piece and assembles none; each is, on
the wire, ``0x0a  length  data`` after the prefix (RetrieveVersionDataReplyChunk.data_chunk). A message of any other form is collected and
parsed by protobuf.

No compression is offered to the server, so a flag other than 0 is its fault. A message that is collected may have up to
`MAX_MESSAGE_BYTES`. Data that is handed on may be of any size.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from google.protobuf.message import DecodeError

from modelreg.api.model_registry_pb2 import RetrieveVersionDataReplyChunk
from modelreg.transport.faults import ErrorCode, StreamFault

PREFIX = struct.Struct(">BI")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message that is collected: as large as a registry's lists are unless it's told otherwise (`--max_reply_bytes`)."""

_DATA_CHUNK_TAG = 0x0A


def framed(message: bytes) -> bytes:
    """A message with its prefix."""
    return PREFIX.pack(0, len(message)) + message


def chunk_prefix(size: int) -> bytes:
    """What comes before `size` bytes of data to make them a CreateVersionRequestChunk with its gRPC prefix."""
    inner = b"\x0a" + _varint(size)  # Body.data_chunk
    outer = b"\x12" + _varint(len(inner) + size)  # CreateVersionRequestChunk.body
    return PREFIX.pack(0, len(outer) + len(inner) + size) + outer + inner


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _check_size(size: int) -> None:
    """Raise `StreamFault` where a message is too large to be collected."""
    if size > MAX_MESSAGE_BYTES:
        raise StreamFault(
            ErrorCode.ENHANCE_YOUR_CALM,
            f"the server sends a message of {size} bytes, and this client takes {MAX_MESSAGE_BYTES} at most: "
            "ask for less at once",
        )


class _Prefixes:
    """The part that both share: where in a message the stream is."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = -1  # bytes of the message still to come; -1: its prefix is due

    @property
    def complete(self) -> bool:
        """Whether the bytes so far end with a message."""
        return self._left < 0 and not self._head

    def _read_prefix(self, data: memoryview, pos: int) -> int:
        take = min(PREFIX.size - len(self._head), len(data) - pos)
        self._head += data[pos : pos + take]
        if len(self._head) == PREFIX.size:
            flag, self._left = PREFIX.unpack(self._head)
            self._head.clear()
            if flag:
                raise StreamFault(
                    ErrorCode.INTERNAL_ERROR, "the server sent a compressed message without being asked to"
                )
        return pos + take


class Whole(_Prefixes):
    """Collects messages; they come out of `messages`, with the bytes that they took of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: deque[bytes] = deque()
        self._body = bytearray()

    @property
    def begun(self) -> int:
        """Bytes that have come of a message that isn't complete."""
        return len(self._body)

    def feed(self, data: memoryview) -> None:
        pos = 0
        while pos < len(data) or self._left == 0:
            if self._left < 0:
                pos = self._read_prefix(data, pos)
                _check_size(self._left)
                continue
            piece = data[pos : pos + self._left]
            pos += len(piece)
            self._left -= len(piece)
            self._body += piece
            if self._left == 0:
                self._left = -1
                self.messages.append(bytes(self._body))
                self._body = bytearray()


class DataChunks(_Prefixes):
    """Hands on the data of chunks, as views of what is fed.

    Attributes:
        seen_empty: whether a chunk without data has come.
    """

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        super().__init__()
        self.seen_empty = False
        self._write = write
        self._data_left = 0  # of the chunk whose head has been read
        self._body = bytearray()  # a message that has to be collected, or the head of one
        self._undecided = True  # whether the message may still be plain data

    def feed(self, data: memoryview) -> None:
        pos = 0
        end = len(data)
        while pos < end or (self._left == 0 and not self._data_left):
            if self._data_left:
                piece = data[pos : pos + self._data_left]
                pos += len(piece)
                self._data_left -= len(piece)
                if not self._data_left:
                    self._left = -1
                self._write(piece)
            elif self._left < 0:
                pos = self._read_prefix(data, pos)
            else:
                pos = self._read_head(data, pos)

    def _read_head(self, data: memoryview, pos: int) -> int:
        """Collect the message, byte by byte until it's clear whether it is plain data."""
        body = self._body
        take = min(1 if self._undecided else self._left, self._left, len(data) - pos)
        body += data[pos : pos + take]
        self._left -= take
        if self._undecided and body:
            if body[0] != _DATA_CHUNK_TAG or len(body) > 6:
                self._undecided = False
            elif len(body) > 1 and body[-1] < 0x80:
                size = 0
                for byte in reversed(body[1:]):
                    size = size << 7 | byte & 0x7F
                if size == self._left and size:
                    body.clear()
                    self._data_left = size
                    return pos + take
                self._undecided = False
            if not self._undecided:
                _check_size(len(body) + self._left)
        if self._left == 0:
            self._finish()
        return pos + take

    def _finish(self) -> None:
        message = bytes(self._body)
        self._body = bytearray()
        self._undecided = True
        self._left = -1
        try:
            data_chunk = RetrieveVersionDataReplyChunk.FromString(message).data_chunk
        except DecodeError:
            raise StreamFault(ErrorCode.INTERNAL_ERROR, "the server sent bytes that are no message") from None
        if data_chunk:
            self._write(memoryview(data_chunk))
        else:
            self.seen_empty = True
