"""HTTP/2 frames (RFC 9113, sections 4 and 6): builders, and the splitter that takes a byte stream apart.

The splitter looks at each 9-byte frame header first, before any of the payload is kept:

    bytes in ──┬── DATA ──────────► sink.data_begins, sink.data (views of the input), sink.data_ends
               ├── unknown types ─► skipped
               └── all others ────► checked for size, completed, sink.frame(raw bytes)

Nothing but the payload of a control frame is ever copied, and that only when it is cut in two by the end of the input;
a DATA frame passes through in as many pieces as the input has, or past the splitter, which is told so (`passed`). So the
cost is linear in the number of frames and the memory is bounded by the sink (`block_grows`), however the bytes are cut.

A header block is measured over HEADERS and all its CONTINUATIONs before anything of it is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from .faults import ConnectionFault, ErrorCode

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_SIZE = 9

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

MAX_CONTINUATIONS = 32
"""Frames in one header block: more are no use below the size limit, and h2 itself stops at 64."""

MAX_SETTINGS_BYTES = 6 * 64
MAX_GOAWAY_BYTES = 8 * 1024

_HEAD = struct.Struct(">HBBBL")
_pack_head = _HEAD.pack
_unpack_head = _HEAD.unpack_from
_FIXED_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a payload of `length` bytes (section 4.1)."""
    return _pack_head(length >> 8, length & 0xFF, kind, flags, stream_id)


def window_update(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE (section 6.9); stream 0 is the connection."""
    return _pack_head(0, 4, WINDOW_UPDATE, 0, stream_id) + increment.to_bytes(4, "big")


def rst_stream(stream_id: int, code: int) -> bytes:
    """RST_STREAM (section 6.4)."""
    return _pack_head(0, 4, RST_STREAM, 0, stream_id) + code.to_bytes(4, "big")


def goaway(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """GOAWAY (section 6.8), the reason as its debug data."""
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode("utf-8", "replace")[:256]
    return frame_header(len(payload), GOAWAY, 0, 0) + payload


def ping(payload: bytes) -> bytes:
    """PING with eight bytes (section 6.7)."""
    return _pack_head(0, 8, PING, 0, 0) + payload


def known_settings(raw: bytes) -> bytes:
    """A SETTINGS frame without the settings that RFC 9113 does not know, which are to be ignored (section 6.5.2).

    h2 would keep every one of the 65,536 there may be.
    """
    payload = raw[HEADER_SIZE:]
    known = b"".join(
        payload[place : place + 6]
        for place in range(0, len(payload), 6)
        if payload[place] == 0 and 1 <= payload[place + 1] <= 6
    )
    if len(known) == len(payload):
        return raw
    return frame_header(len(known), SETTINGS, raw[4], int.from_bytes(raw[5:9], "big")) + known


def block_fragment(raw: bytes) -> bytes:
    """The part of a header block in a HEADERS or CONTINUATION frame: no padding, no priority (sections 6.2, 6.10)."""
    kind, flags = raw[3], raw[4]
    start, end = HEADER_SIZE, len(raw)
    if kind == HEADERS:
        if flags & PADDED:
            if start == end:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no pad length")
            end -= raw[start]
            start += 1
        if flags & HAS_PRIORITY:
            start += 5
        if start > end:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS of impossible size")
    return raw[start:end]


class Sink(Protocol):
    """Who is told of frames. Any method may raise `ConnectionFault`."""

    def data_begins(self, stream_id: int, length: int, end_stream: bool) -> Callable[[memoryview], None] | None:
        """A DATA frame of `length` bytes (padding included) starts; the function that takes its payload, None to drop it."""

    def data_ends(self, stream_id: int, padding: int, end_stream: bool) -> None:
        """The DATA frame that was begun is complete; `padding` bytes of it were no payload."""

    def frame(self, kind: int, flags: int, stream_id: int, raw: bytes) -> None:
        """A complete frame of another kind, header included."""

    def block_grows(self, size: int) -> None:
        """A header block will have `size` bytes with the frame that has begun: decides how many are too many."""


def _drop(_: memoryview) -> None:
    """Takes the payload of a DATA frame nobody wants."""


class Splitter:
    """Takes the peer's byte stream apart."""

    __slots__ = (
        "_block_bytes",
        "_block_frames",
        "_block_stream",
        "_body",
        "_deposit",
        "_end_stream",
        "_in_data",
        "_left",
        "_max_frame",
        "_need",
        "_padding",
        "_preface",
        "_settled",
        "_sink",
        "_skip",
        "_stream_id",
        "_want_pad_length",
        "_work",
        "completed",
    )

    def __init__(self, sink: Sink, *, max_frame_bytes: int) -> None:
        self._sink = sink
        self.completed = 0  # frames, for telling a slow peer from one that is stuck within a frame
        self._max_frame = max_frame_bytes
        self._work = 0  # frames that are still taken in this turn
        self._preface = PREFACE  # what of it is still to come
        self._settled = False  # has the first SETTINGS frame been seen?
        self._body = bytearray()  # the beginning of a frame header, or of a control frame, cut by the end of the input
        self._need = HEADER_SIZE  # how long _body has to become
        # the DATA frame that is being passed on
        self._left = 0  # payload still to come
        self._skip = 0  # bytes to be dropped after that: padding, or the payload of an unknown frame
        self._want_pad_length = False
        self._deposit: Callable[[memoryview], None] = _drop
        self._stream_id = 0
        self._padding = 0
        self._end_stream = False
        self._in_data = False
        # the header block that is being received: all frames until END_HEADERS must continue it (section 6.10)
        self._block_stream = 0
        self._block_bytes = 0
        self._block_frames = 0

    @property
    def established(self) -> bool:
        """Whether preface and first SETTINGS have been received."""
        return self._settled

    @property
    def inside_control(self) -> bool:
        """Whether the rest of a frame other than DATA, or of a header block, is due."""
        return bool(self._body) or self._block_stream != 0 or (not self._in_data and self._skip > 0)

    @property
    def payload_due(self) -> int:
        """How many bytes are still to come of the payload of the DATA frame that has begun."""
        return self._left if self._in_data and not self._want_pad_length else 0

    def passed(self, count: int) -> None:
        """So many bytes of that payload have come past `feed`."""
        self._left -= count
        if not self._left and not self._skip:
            self._end_data()

    def charge(self, work: int) -> None:
        """The frame that the sink is being told of cost as much as so many small ones: for `feed` to end sooner."""
        self._work -= work

    def feed(self, data: memoryview, max_frames: int = 1 << 30) -> int:
        """Take in `data`, but no more than `max_frames` frames of it; the number of bytes that were taken.

        A frame other than DATA counts for one, one more for each 16 bytes, and what the sink adds (`charge`).
        Raises `ConnectionFault`; the splitter is of no use afterwards.
        """
        self._work = max_frames
        pos = 0
        end = len(data)
        sink = self._sink
        if self._preface:
            pos = self._feed_preface(data)
        while pos < end:
            if self._in_data or self._skip:
                pos = self._feed_payload(data, pos, end)
                continue
            if self._work <= 0:
                return pos
            if self._body:
                pos = self._feed_body(data, pos, end)
                if len(self._body) == self._need and self._need > HEADER_SIZE:
                    self._work -= 1 + (self._need >> 4)
                    self._count()
                    raw = bytes(self._body)
                    self._body.clear()
                    self._need = HEADER_SIZE
                    self._complete(raw)
                continue
            if end - pos < HEADER_SIZE:
                self._body += data[pos:]
                return end
            high, low, kind, flags, stream_id = _unpack_head(data, pos)
            length = high << 8 | low
            if kind == DATA and self._block_stream == 0 and self._settled:
                self._work -= 1
                self.completed += 1
                pos += HEADER_SIZE
                self._begin_data(length, flags, stream_id & 0x7FFFFFFF)
                continue
            if self._check_header(length, kind, flags, stream_id & 0x7FFFFFFF):
                self._work -= 1
                pos += HEADER_SIZE
                continue
            total = HEADER_SIZE + length
            if end - pos >= total:
                self._work -= 1 + (total >> 4)
                self._count()
                raw = bytes(data[pos : pos + total])
                pos += total
                sink.frame(kind, flags, stream_id & 0x7FFFFFFF, raw)
            else:
                self._body += data[pos:]
                self._need = total
                return end
        return pos

    def _feed_preface(self, data: memoryview) -> int:
        take = min(len(self._preface), len(data))
        if data[:take] != self._preface[:take]:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        self._preface = self._preface[take:]
        return take

    def _feed_body(self, data: memoryview, pos: int, end: int) -> int:
        """Add to a frame that was cut; once its header is complete, decide what it is."""
        body = self._body
        take = min(self._need - len(body), end - pos)
        body += data[pos : pos + take]
        pos += take
        if len(body) == HEADER_SIZE and self._need == HEADER_SIZE:
            high, low, kind, flags, stream_id = _unpack_head(body)
            length = high << 8 | low
            stream_id &= 0x7FFFFFFF
            if kind == DATA and self._block_stream == 0 and self._settled:
                body.clear()
                self._begin_data(length, flags, stream_id)
                return pos
            if self._check_header(length, kind, flags, stream_id):
                body.clear()
            elif length == 0:
                raw = bytes(body)
                body.clear()
                self._complete(raw)
            else:
                self._need = HEADER_SIZE + length
        return pos

    def _complete(self, raw: bytes) -> None:
        _, _, kind, flags, stream_id = _unpack_head(raw)
        self._sink.frame(kind, flags, stream_id & 0x7FFFFFFF, raw)

    def _begin_data(self, length: int, flags: int, stream_id: int) -> None:
        if length > self._max_frame:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        end_stream = flags & END_STREAM != 0
        self._end_stream = end_stream
        self._stream_id = stream_id
        self._deposit = self._sink.data_begins(stream_id, length, end_stream) or _drop
        self._padding = 0
        if flags & PADDED:
            if length == 0:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no pad length")
            self._want_pad_length = True
            self._left = length - 1
            self._in_data = True
        elif length:
            self._left = length
            self._in_data = True
        else:
            self._sink.data_ends(stream_id, 0, end_stream)

    def _feed_payload(self, data: memoryview, pos: int, end: int) -> int:
        if self._want_pad_length:
            self._want_pad_length = False
            pad = data[pos]
            pos += 1
            if pad > self._left:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
            self._left -= pad
            self._skip = pad
            self._padding = pad + 1
        left = self._left
        if left:
            take = min(end - pos, left)
            if take:
                self._left = left - take
                self._deposit(data[pos : pos + take])
                pos += take
            if take < left:
                return pos
        if self._skip:
            take = min(self._skip, end - pos)
            self._skip -= take
            pos += take
            if self._skip:
                return pos
        if self._in_data:
            self._end_data()
        return pos

    def _end_data(self) -> None:
        self._in_data = False
        self._deposit = _drop
        self._sink.data_ends(self._stream_id, self._padding, self._end_stream)

    def _count(self) -> None:
        if not self._block_stream:  # a header block is one, however many frames it comes in
            self.completed += 1

    def _check_header(self, length: int, kind: int, flags: int, stream_id: int) -> bool:
        """Everything that can be known to be wrong before the payload is there. True for a frame that is to be skipped."""
        if not self._settled:
            if kind != SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self._settled = True
        if length > self._max_frame:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
        if self._block_stream:
            if kind != CONTINUATION or stream_id != self._block_stream:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
            self._measure_block(length, flags)
        elif kind == HEADERS:
            self._block_bytes = self._block_frames = 0
            self._block_stream = stream_id
            self._measure_block(length, flags)
        elif kind == SETTINGS:
            if length % 6 or (flags & ACK and length):
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of impossible size")
            if length > MAX_SETTINGS_BYTES:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many settings")
        elif kind == GOAWAY:
            if length < 8:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY too short")
            if length > MAX_GOAWAY_BYTES:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "GOAWAY too long")
        elif kind in _FIXED_SIZES:
            if length != _FIXED_SIZES[kind]:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame of impossible size")
        elif kind == CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, though push is disabled")
        elif kind != DATA:
            self._sink.frame(kind, flags, stream_id, b"")  # an extension (section 5.5): counted, not kept
            self._skip = length
            return True
        return False

    def _measure_block(self, length: int, flags: int) -> None:
        self._block_bytes += length
        self._block_frames += 1
        self._sink.block_grows(self._block_bytes)
        if self._block_frames > MAX_CONTINUATIONS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block of too many frames")
        if flags & END_HEADERS:
            self._block_stream = 0
