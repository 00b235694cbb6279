"""HTTP/2 from the client's side, without I/O: bytes in, calls told; calls asked, pieces to be sent out.

    receive(bytes) ──► Splitter ──┬── DATA ────────► Stream.deposit, as views of the input
                                  ├── HEADERS ─────► Blocks, the bounded decoder that the server has, too
                                  ├── SETTINGS ────► h2
                                  └── other frames ► here

    plan() ◄── control frames first, then DATA of the streams in turn: frame headers made here, payload as the caller's
               views, never more than windows and frame size allow

h2 encodes the requests' headers, applies SETTINGS and counts the server's windows. A stream's life is kept here:
`Core` knows the streams that haven't ended, and the newest that was opened. Nothing is kept of one that has ended.

What a server can make the client do is bounded. `receive` returns after `FRAMES_AT_ONCE` frames, or the work of as many.
The caller stops receiving while the core is `congested`: while many answers to the server's own frames are unsent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import h2.config
import h2.connection
import h2.exceptions
import h2.settings

from modelreg.client.transport.pages import PAGE_BYTES, Page, http1_refusal, page_of
from modelreg.client.transport.status import Outcome, from_fields, from_reset
from modelreg.grpc.status import Code
from modelreg.transport import frames
from modelreg.transport.blocks import Blocks
from modelreg.transport.buffers import Account, Allowance
from modelreg.transport.faults import ConnectionFault, ErrorCode, StreamFault

KIB = 1024
MIB = 1024 * KIB

MAX_FRAME_BYTES = MIB
"""The DATA frames offered to the server: with large ones it can let its kernel move files."""

STREAM_WINDOW = 16 * MIB
"""What a server may send for one call before any of it is consumed: fills 1 Gbit/s at 130 ms."""

MAX_WINDOW = 2**31 - 1
MAX_HEADER_BYTES = 64 * KIB
"""The header fields of one answer, and a header block as it's sent."""

HEADER_TABLE_BYTES = 4096
"""Request fields that are remembered for HPACK, whatever the server offers: each call searches through all of them."""

FRAMES_AT_ONCE = 256
"""Frames taken in by one `receive`, or the work of as many: under a millisecond."""

MAX_ANSWERS = 1024
"""Answers to PING and SETTINGS that may be unsent before no more is received. They take 17 KiB."""

PLAN_BYTES = 2 * MIB
"""DATA in one plan, so that control frames never wait for more."""

MAX_PIECES = 256

_Setting = h2.settings.SettingCodes
_HTTP1 = b"HTTP/1."

Piece = bytes | memoryview


def _nobody(_: object = None) -> None:
    """Nobody listens any more."""


class Stream:
    """One call, as the core sees it. What it's told by the caller is set right after `Core.open`.

    Attributes:
        deposit: takes payload, a view that is valid during the call only. May raise `StreamFault`.
        wake: something has changed: headers, room to send, the end.
        outcome: how it ended, once it has.
        delivered: the server may have all of the request, and hasn't said that it ignores it.
        queued: bytes still to be sent.
    """

    __slots__ = (
        "delivered",
        "deposit",
        "ending",
        "fields",
        "handle",
        "number",
        "outbox",
        "outcome",
        "page",
        "queued",
        "unreturned",
        "wake",
        "window",
    )

    def __init__(self, number: int, handle: Any) -> None:
        self.number = number
        self.handle = handle  # h2's record, which holds the stream's window
        self.deposit: Callable[[memoryview], None] = _nobody
        self.wake: Callable[[], None] = _nobody
        self.outbox: deque[Piece] = deque()
        self.queued = 0
        self.ending = False  # END_STREAM follows what is queued
        self.delivered = False
        self.fields: dict[bytes, bytes] = {}
        self.outcome: Outcome | None = None
        self.page: Page | None = None  # what comes in place of a gRPC response
        self.window = STREAM_WINDOW  # what the server may still send
        self.unreturned = 0  # consumed, but not yet given back to it


class _Connection(h2.connection.H2Connection):  # type: ignore[misc]
    @property
    def open_outbound_streams(self) -> int:
        """h2 looks at all streams for each new one. `Core` takes those away that have ended."""
        return len(self.streams)


class Core:
    """One connection's protocol."""

    def __init__(self) -> None:
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = _Connection(config)
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                _Setting.ENABLE_PUSH: 0,
                _Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                _Setting.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
                _Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
            },
        )
        self._h2.max_inbound_frame_size = MAX_FRAME_BYTES
        self._h2.initiate_connection()
        self._blocks = Blocks(MAX_HEADER_BYTES, Account(Allowance(0), 0))
        self._splitter = frames.Splitter(self, max_frame_bytes=MAX_FRAME_BYTES)
        self._splitter.feed(memoryview(frames.PREFACE))  # made for servers, it expects what clients send first
        self._control = bytearray(self._h2.data_to_send())
        self._control += frames.window_update(0, MAX_WINDOW - 65535)
        self._received = 0  # since the connection's window was last opened
        self._turn: deque[Stream] = deque()  # streams with something to send, next one first
        self._streams: dict[int, Stream] = {}
        self.going_away: str | None = None
        """Why the server wants no more calls here, once it has said so (GOAWAY)."""
        self.too_many_pings = False
        self.greeted = False
        """Whether the server's SETTINGS have come, the first that it has to send."""
        self._opening = bytearray()  # what has come, until it's clear that it isn't HTTP/1
        self._opened = False
        self._answers = 0  # of PING and SETTINGS, unsent

    # Asked by calls

    @property
    def streams(self) -> int:
        """Calls that haven't ended."""
        return len(self._streams)

    @property
    def full(self) -> bool:
        """Whether the server takes no further call before one has ended."""
        return bool(len(self._streams) >= self._h2.remote_settings.max_concurrent_streams)

    def open(self, fields: Sequence[tuple[bytes, bytes]]) -> Stream:
        """Begin a call with these headers. Not to be asked for when `going_away` or `full`."""
        number = self._h2.get_next_available_stream_id()
        self._h2.send_headers(number, fields)
        self._control += self._h2.data_to_send()
        stream = self._streams[number] = Stream(number, self._h2.streams[number])
        return stream

    def send(self, stream: Stream, pieces: Sequence[Piece], *, end: bool = False) -> None:
        """Queue pieces of a call's request; `end` after the last. Nothing happens when the call has ended."""
        if stream.number not in self._streams or stream.ending:
            return
        if not stream.outbox:
            self._turn.append(stream)
        for piece in pieces:
            if piece:
                stream.outbox.append(piece)
                stream.queued += len(piece)
        if end:
            stream.ending = True
            if not stream.outbox:
                stream.outbox.append(b"")

    def consumed(self, stream: Stream, size: int) -> None:
        """The caller is done with `size` bytes of payload: the server may send as many more."""
        stream.unreturned += size
        if stream.unreturned >= STREAM_WINDOW // 4 and stream.number in self._streams:
            self._control += frames.window_update(stream.number, stream.unreturned)
            stream.window += stream.unreturned
            stream.unreturned = 0

    def cancel(self, stream: Stream, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """The caller doesn't want the call any more: RST_STREAM, unless it has ended."""
        if stream.number in self._streams:
            self._reset(stream, code)
            stream.delivered = stream.delivered or (stream.ending and not stream.outbox)
            self._over(stream, Outcome(Code.CANCELLED, "cancelled by the caller"))

    def ping(self, payload: bytes = b"modelreg") -> None:
        """Ask the server whether it's there. Any frame of it is an answer."""
        self._control += frames.ping(payload)

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = "") -> bytes:
        """The GOAWAY to send before the connection is closed."""
        return frames.goaway(0, code, reason)

    def lost(self, reason: str) -> None:
        """The connection is no more: every call on it ends UNAVAILABLE."""
        self.going_away = self.going_away or reason
        self._turn.clear()
        for stream in list(self._streams.values()):
            self._over(stream, Outcome(Code.UNAVAILABLE, reason))

    # Sending

    @property
    def wants_to_send(self) -> bool:
        """Whether `plan` would give something now, as far as is known without making one."""
        return bool(self._control or self._turn)

    def plan(self) -> list[Piece]:
        """What to send next, in order; empty when there is nothing, or no window for it."""
        out: list[Piece] = []
        if self._control:
            out.append(bytes(self._control))
            self._control.clear()
            self._answers = 0
        room = PLAN_BYTES
        for _ in range(len(self._turn)):
            window = self._h2.outbound_flow_control_window
            if room <= 0 or len(out) >= MAX_PIECES:
                break
            stream = self._turn.popleft()
            if not stream.outbox:
                continue
            taken = self._take(stream, out, min(room, window))
            if stream.outbox:
                self._turn.append(stream)
            if taken:
                room -= taken
                stream.wake()
        return out

    def _take(self, stream: Stream, out: list[Piece], room: int) -> int:
        """Add DATA frames of a stream, of up to `room` bytes of payload; how many it was."""
        handle = stream.handle
        outbox = stream.outbox
        frame_bytes = min(self._h2.max_outbound_frame_size, PLAN_BYTES)
        total = 0
        while outbox and len(out) < MAX_PIECES:
            size = max(0, min(stream.queued, frame_bytes, room - total, handle.outbound_flow_control_window))
            if size == 0 and stream.queued:
                break
            end = stream.ending and size == stream.queued
            out.append(frames.frame_header(size, frames.DATA, frames.END_STREAM if end else 0, stream.number))
            self._h2.outbound_flow_control_window -= size
            handle.outbound_flow_control_window -= size
            stream.queued -= size
            total += size
            while size:
                piece = outbox[0]
                if len(piece) <= size:
                    out.append(outbox.popleft())
                    size -= len(piece)
                else:
                    view = memoryview(piece)
                    out.append(view[:size])
                    outbox[0] = view[size:]
                    size = 0
            if end:
                outbox.clear()
                stream.delivered = True
        return total

    # Receiving

    def receive(self, data: memoryview) -> int:
        """Take in bytes from the server, and return how many were taken.

        Call again with the rest, and while it's `unfinished`. Raises `ConnectionFault`, after which the connection has to be
        closed.
        """
        if self._blocks.unfinished:
            self._decode()
            return 0
        if not self._opened and not self._open_with(data):
            return len(data)
        return self._splitter.feed(data, FRAMES_AT_ONCE)

    @property
    def unfinished(self) -> bool:
        """Whether a header block has to be decoded before more bytes can be taken in."""
        return self._blocks.unfinished

    @property
    def congested(self) -> bool:
        """Whether nothing more should be received before `plan` has been called, as too many answers are unsent."""
        return self._answers > MAX_ANSWERS

    def _open_with(self, data: memoryview) -> bool:
        """Look at the first bytes of a connection. False: they are, or may become, an answer in HTTP/1."""
        opening = self._opening
        held = len(opening)
        opening += data[: PAGE_BYTES - held]
        if _HTTP1.startswith(opening[: len(_HTTP1)]):
            if self.http1 is not None or len(opening) == PAGE_BYTES:
                raise ConnectionFault(ErrorCode.HTTP_1_1_REQUIRED, "an answer in HTTP/1")
            return False
        self._opened = True
        self._splitter.feed(memoryview(bytes(opening[:held])))
        return True

    @property
    def http1(self) -> Outcome | None:
        """What the server's answer means where it's HTTP/1's, which `receive` raises `ConnectionFault` for."""
        return http1_refusal(bytes(self._opening))

    @property
    def http2(self) -> bool:
        """Whether the server has begun to speak HTTP/2."""
        return self._splitter.established

    def data_begins(self, stream_id: int, length: int, end_stream: bool) -> Callable[[memoryview], None] | None:
        self._received += length
        if self._received >= MAX_WINDOW // 4:
            self._control += frames.window_update(0, self._received)
            self._received = 0
        stream = self._streams.get(stream_id)
        if stream is None:
            self._expect_known(stream_id)
            return None
        stream.window -= length
        if stream.window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window allows")
        if b":status" not in stream.fields:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA before HEADERS")

        def deposit(view: memoryview) -> None:
            try:
                stream.deposit(view)
                stream.wake()
            except StreamFault as fault:
                self._reset(stream, fault.code)
                exhausted = fault.code == ErrorCode.ENHANCE_YOUR_CALM
                self._over(stream, Outcome(Code.RESOURCE_EXHAUSTED if exhausted else Code.INTERNAL, str(fault)))

        return deposit

    def data_ends(self, stream_id: int, padding: int, end_stream: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if padding:
            self.consumed(stream, padding)
        if end_stream:
            self._answered(stream)
        elif stream.page is not None and stream.page.full:
            self._reset(stream, ErrorCode.CANCEL)
            self._over(stream, stream.page.outcome)

    def frame(self, kind: int, flags: int, stream_id: int, raw: bytes) -> None:
        if kind in (frames.HEADERS, frames.CONTINUATION):
            if self._blocks.add(kind, flags, stream_id, raw):
                if self._blocks.unfinished:
                    self._decode()
                else:
                    self._headers_received()
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(stream_id, int.from_bytes(raw[9:13], "big") & MAX_WINDOW)
        elif kind == frames.PING:
            if not flags & frames.ACK:
                self._answers += 1
                self._control += frames.frame_header(8, frames.PING, frames.ACK, 0) + raw[9:17]
        elif kind == frames.GOAWAY:
            self._goaway(raw)
        elif kind == frames.SETTINGS:
            self._settings(raw)
        elif kind == frames.RST_STREAM:
            self._reset_received(stream_id, int.from_bytes(raw[9:13], "big"))
        # PRIORITY is of no meaning to a client, and extensions are to be ignored.

    def block_grows(self, size: int) -> None:
        if size > MAX_HEADER_BYTES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"headers of more than {MAX_HEADER_BYTES} bytes")

    def _decode(self) -> None:
        """Decode some more of the header block that has arrived."""
        self._splitter.charge(self._blocks.decode() >> 4)
        if self._blocks.unfinished:
            self._splitter.charge(FRAMES_AT_ONCE)
        else:
            self._headers_received()

    def _headers_received(self) -> None:
        """A header block was received and decoded: an answer begins or ends."""
        blocks = self._blocks
        stream = self._streams.get(blocks.stream_id)
        if stream is None:
            self._expect_known(blocks.stream_id)
        elif blocks.fields.too_large:
            self._break(stream, ErrorCode.CANCEL, f"the answer's headers are larger than {MAX_HEADER_BYTES} bytes")
        elif b":status" not in stream.fields:
            self._answer_begins(stream, dict(blocks.fields))
        elif blocks.ends_stream:
            stream.fields.update(blocks.fields)
            self._answered(stream)
        else:
            self._break(stream, ErrorCode.PROTOCOL_ERROR, "the answer has trailers, and doesn't end with them")

    def _answer_begins(self, stream: Stream, fields: dict[bytes, bytes]) -> None:
        status = fields.get(b":status")
        if status is None:
            self._break(stream, ErrorCode.PROTOCOL_ERROR, "the answer has no HTTP status")
            return
        if status.startswith(b"1") and not self._blocks.ends_stream:  # the real one follows (RFC 9113, section 8.1)
            return
        stream.fields.update(fields)
        stream.page = page_of(stream.fields)
        if stream.page is not None:
            stream.deposit = stream.page.feed
        if self._blocks.ends_stream:
            self._answered(stream)
        else:
            stream.wake()

    def _reset_received(self, stream_id: int, number: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._expect_known(stream_id)
            return
        outcome = from_reset(number) if stream.page is None else stream.page.outcome
        self._over(stream, outcome, delivered=False if number == ErrorCode.REFUSED_STREAM else None)

    def _expect_known(self, stream_id: int) -> None:
        """A stream that was never opened can't be spoken of (RFC 9113, section 5.1, "idle")."""
        if stream_id % 2 == 0 or stream_id > self._h2.highest_outbound_stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame for a stream that was never opened")

    def _window_update(self, stream_id: int, increment: int) -> None:
        if stream_id == 0:
            size = self._h2.outbound_flow_control_window + increment
            if increment == 0 or size > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a WINDOW_UPDATE that can't be")
            self._h2.outbound_flow_control_window = size
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            self._expect_known(stream_id)
        else:
            size = stream.handle.outbound_flow_control_window + increment
            if increment == 0 or size > MAX_WINDOW:
                self._break(stream, ErrorCode.FLOW_CONTROL_ERROR, "the server sent a WINDOW_UPDATE that can't be")
                return
            stream.handle.outbound_flow_control_window = size

    def _goaway(self, raw: bytes) -> None:
        last = int.from_bytes(raw[9:13], "big") & MAX_WINDOW
        code = int.from_bytes(raw[13:17], "big")
        debug = raw[17:].decode("utf-8", "replace")
        self.going_away = "the server is closing the connection" + (f" (GOAWAY {code}: {debug})" if code else "")
        self.too_many_pings = code == ErrorCode.ENHANCE_YOUR_CALM and "too_many_pings" in debug
        for stream in [stream for stream in self._streams.values() if stream.number > last]:
            stream.ending = False  # whatever was sent of it is ignored (RFC 9113, section 6.8)
            self._over(stream, Outcome(Code.UNAVAILABLE, self.going_away), delivered=False)

    def _settings(self, raw: bytes) -> None:
        try:
            self._h2.receive_data(frames.known_settings(raw))
        except h2.exceptions.ProtocolError as error:
            raise ConnectionFault(ErrorCode(int(error.error_code)), str(error)) from None
        except Exception as error:  # h2 and hyperframe let a few others out (ValueError, KeyError)
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{type(error).__name__} in h2") from error
        self._h2.encoder.header_table_size = min(self._h2.encoder.header_table_size, HEADER_TABLE_BYTES)
        self._splitter.charge(len(self._streams) >> 3)  # h2 tells all streams: 60 ns each
        self._answers += 1
        self._control += self._h2.data_to_send()
        self.greeted = True

    def _answered(self, stream: Stream) -> None:
        if not stream.ending or stream.outbox:  # the server wants no more of the request
            self._reset(stream, ErrorCode.NO_ERROR)
        self._over(stream, from_fields(stream.fields) if stream.page is None else stream.page.outcome)

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        self._control += frames.rst_stream(stream.number, code)

    def _break(self, stream: Stream, code: ErrorCode, message: str) -> None:
        """The server broke a rule for one call: reset its stream."""
        self._reset(stream, code)
        self._over(stream, Outcome(Code.INTERNAL, message))

    def _over(self, stream: Stream, outcome: Outcome, *, delivered: bool | None = None) -> None:
        """The stream has ended: forget it."""
        if delivered is not None:
            stream.delivered = delivered
        stream.outbox.clear()
        stream.queued = 0
        stream.outcome = outcome
        del self._streams[stream.number]
        del self._h2.streams[stream.number]
        stream.deposit = _nobody
        stream.wake()
