"""gRPC's length-prefixed messages (gRPC over HTTP/2, "Length-Prefixed-Message"), taken apart as they arrive.

    flag (1 byte) | length (4 bytes, big endian) | length bytes, compressed if the flag is 1

Two ways with one beginning. `WholeMessages` collects a message and parses it; what it holds is bounded by
`max_message_bytes`, known from the prefix, or for a compressed one from what has come out of the decompressor so far.
`StreamedMessages` holds nothing: it hands every piece to a `MessageDecoder` as it comes, which may. What is held is borrowed
from an allowance of the whole server: thousands of calls that never end their message would hold gigabytes.

Both are generators over a chunk, pulled by whoever wants the items: a chunk of 50,000 empty messages is never expanded
into a list, each costs the same, and `PAUSE` among the items marks the places, in many messages or a large compressed one,
where others should have their turn. Decompression is done in steps of at most `INFLATE_STEP` bytes of output.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from google.protobuf.message import DecodeError as ProtobufDecodeError

from modelreg.grpc.status import Code

from ._purerpc import failure
from .buffers import Allowance

PREFIX = struct.Struct(">BI")
PREFIX_SIZE = PREFIX.size
INFLATE_STEP = 64 * 1024
_INFLATE_INPUT = 4096  # zlib hands back a copy of the input it has not used at every step, so it gets little
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib.decompressobj: gzip framing, zlib framing
_MESSAGES_PER_PAUSE = 128

UNCOUNTED = 16 * 1024
"""Bytes of a message that any call may hold without borrowing them."""

PAUSE = object()
"""Not an item: nothing was decoded, but a lot was looked at."""


class DecodeError(Exception):
    """Raised by a `MessageDecoder`: the bytes are no valid message. The call ends with INVALID_ARGUMENT and this text."""


class MessageDecoder(Protocol):
    """Turns the bytes of messages into items while they arrive; one for each stream, no I/O."""

    @property
    def passing_on(self) -> bool:
        """Whether the rest of the message is data, which `feed` hands on as it is."""

    @property
    def held(self) -> int:
        """Bytes that are kept until the message is complete."""

    def begin(self, length: int) -> None:
        """A message of `length` bytes starts; -1 where that is not known because it is compressed."""

    def feed(self, data: memoryview) -> Iterable[object]:
        """Some bytes of it, in order.

        A memoryview among the items is a slice of `data`; it is valid until the handler asks for its next item.
        """

    def end(self) -> Iterable[object]:
        """The message is complete. Raises `DecodeError` when it is no valid message, as `feed` may."""


def invalid(message: str) -> Exception:
    """The exception for bytes that are no message."""
    return failure(Code.INVALID_ARGUMENT, message)


def parsed(parse: Callable[[bytes], object], body: bytes) -> object:
    """Parse a message. Raises INVALID_ARGUMENT where it's none."""
    try:
        return parse(body)
    except ProtobufDecodeError:
        raise invalid("the bytes are no valid message") from None


def _undecodable(error: DecodeError) -> Exception:
    return invalid(str(error) or "the bytes are no valid message")


def _too_large(limit: int) -> Exception:
    return failure(
        Code.RESOURCE_EXHAUSTED,
        f"a message is larger than max_message_bytes allows, which is {limit}: send less at once, or raise that option",
    )


class _Messages:
    """What both ways share: where in a message the stream is."""

    def __init__(self, encoding: str | None, allowance: Allowance) -> None:
        self._encoding = encoding
        self._allowance = allowance
        self._borrowed = 0
        self._prefix = bytearray()  # a prefix cut by the end of a chunk
        self._left = -1  # bytes of the message still to come, -1 between messages
        self._inflater: zlib._Decompress | None = None

    def _begin(self, length: int, compressed: bool) -> None:
        raise NotImplementedError

    def _hold(self, count: int) -> None:
        """So many bytes of a message are in memory."""
        more = count - UNCOUNTED - self._borrowed
        if more > 0:
            granted = self._allowance.take(more)
            self._borrowed += granted
            if granted < more:
                raise failure(Code.RESOURCE_EXHAUSTED, "too many large messages arrive at once: try again later")

    def release(self) -> None:
        """Nothing is held any more."""
        if self._borrowed:
            self._allowance.give(self._borrowed)
            self._borrowed = 0

    def finish(self) -> None:
        """The request has ended; raises if that was within a message."""
        if self._prefix or self._left >= 0:
            raise invalid("the request ends within a message")

    def _read_prefix(self, chunk: memoryview, pos: int) -> int:
        """Begin the next message if its prefix is complete; the position after what was used."""
        if not self._prefix and len(chunk) - pos >= PREFIX_SIZE:
            flag, length = PREFIX.unpack_from(chunk, pos)
            pos += PREFIX_SIZE
        else:
            prefix = self._prefix
            take = min(PREFIX_SIZE - len(prefix), len(chunk) - pos)
            prefix += chunk[pos : pos + take]
            pos += take
            if len(prefix) < PREFIX_SIZE:
                return pos
            flag, length = PREFIX.unpack(prefix)
            prefix.clear()
        if flag:
            if flag != 1:
                raise invalid("a message begins with neither 0 nor 1")
            if self._encoding is None:
                raise failure(Code.INTERNAL, "a compressed message, but no grpc-encoding")
            self._inflater = zlib.decompressobj(_WINDOW_BITS[self._encoding])
        self.release()
        self._begin(length, bool(flag))
        self._left = length
        return pos

    def _inflate(self, data: memoryview) -> Iterator[bytes]:
        """The decompressed bytes of a piece of a message, in pieces."""
        inflater = self._inflater
        assert inflater is not None
        try:
            for start in range(0, len(data), _INFLATE_INPUT):
                rest: bytes | memoryview = data[start : start + _INFLATE_INPUT]
                while rest:
                    if inflater.eof:
                        raise invalid("bytes after the end of a compressed message")
                    piece = inflater.decompress(rest, INFLATE_STEP)
                    rest = inflater.unconsumed_tail or inflater.unused_data
                    if piece:
                        yield piece
            while not inflater.eof:  # a full step may leave output behind with no input left to show for it
                piece = inflater.decompress(b"", INFLATE_STEP)
                if not piece:
                    break
                yield piece
        except zlib.error:
            raise invalid("a message is not compressed as its grpc-encoding says") from None

    def _end_inflating(self) -> None:
        if self._inflater is not None:
            if not self._inflater.eof:
                raise invalid("a compressed message is cut short")
            self._inflater = None


class WholeMessages(_Messages):
    """Messages parsed by a protobuf class."""

    def __init__(
        self, parse: Callable[[bytes], object], encoding: str | None, max_message_bytes: int, allowance: Allowance
    ) -> None:
        super().__init__(encoding, allowance)
        self._parse = parse
        self._limit = max_message_bytes
        self._body = bytearray()  # what of the message has arrived, when it did not arrive in one chunk

    def _begin(self, length: int, compressed: bool) -> None:
        if length > self._limit:
            raise _too_large(self._limit)

    def only(self, chunk: memoryview) -> bytes | None:
        """The message, if a chunk is exactly one, small and not compressed, as most requests are; else None, and `decode` it."""
        size = len(chunk) - PREFIX_SIZE
        whole = 0 <= size <= min(UNCOUNTED, self._limit) and self._left < 0 and not self._prefix
        return bytes(chunk[PREFIX_SIZE:]) if whole and PREFIX.unpack_from(chunk) == (0, size) else None

    def decode(self, chunk: memoryview) -> Iterator[object]:
        """The messages that end in this chunk."""
        pos = 0
        end = len(chunk)
        while pos < end or self._left == 0:
            left = self._left
            if left < 0:
                pos = self._read_prefix(chunk, pos)
                continue
            piece = chunk[pos : pos + left]
            pos += len(piece)
            self._left = left = left - len(piece)
            if self._inflater is not None:
                for inflated in self._inflate(piece):
                    self._body += inflated
                    if len(self._body) > self._limit:
                        raise _too_large(self._limit)
                    self._hold(len(self._body))
                    yield PAUSE
            elif left == 0 and not self._body and len(piece) <= UNCOUNTED:
                self._left = -1
                yield parsed(self._parse, bytes(piece))
                continue
            else:
                self._body += piece
                self._hold(len(self._body))
            if left == 0:
                self._end_inflating()
                self._left = -1
                body = bytes(self._body)
                self._body = bytearray()
                yield parsed(self._parse, body)


class StreamedMessages(_Messages):
    """Messages given to a `MessageDecoder` piece by piece."""

    def __init__(self, decoder: MessageDecoder, encoding: str | None, allowance: Allowance) -> None:
        super().__init__(encoding, allowance)
        self._decoder = decoder
        self._quiet = 0  # messages since the last PAUSE, over all chunks

    def _begin(self, length: int, compressed: bool) -> None:
        self._decoder.begin(-1 if compressed else length)

    @property
    def data_left(self) -> int:
        """How many bytes to come are data as it is, and nothing else."""
        return self._left if self._left > 0 and self._inflater is None and self._decoder.passing_on else 0

    def skip(self, count: int) -> Iterator[object]:
        """So many bytes of data were not decoded, as it is known where they go; the items that the message's end makes."""
        self._left -= count
        if not self._left:
            self._left = -1
            try:
                yield from self._decoder.end()
            except DecodeError as error:
                raise _undecodable(error) from None

    def decode(self, chunk: memoryview) -> Iterator[object]:
        """The items that this chunk makes."""
        decoder = self._decoder
        pos = 0
        end = len(chunk)
        try:
            while pos < end or self._left == 0:
                left = self._left
                if left < 0:
                    pos = self._read_prefix(chunk, pos)
                    continue
                if left:
                    piece = chunk[pos : pos + left]
                    pos += len(piece)
                    self._left = left = left - len(piece)
                    if self._inflater is None:
                        yield from decoder.feed(piece)
                        self._hold(decoder.held)
                    else:
                        for inflated in self._inflate(piece):
                            yield from decoder.feed(memoryview(inflated))
                            self._hold(decoder.held)
                            yield PAUSE
                if left == 0:
                    self._end_inflating()
                    self._left = -1
                    yield from decoder.end()
                    self._quiet += 1
                    if self._quiet == _MESSAGES_PER_PAUSE:
                        self._quiet = 0
                        yield PAUSE
        except DecodeError as error:
            raise _undecodable(error) from None
