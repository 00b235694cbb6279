"""A connection without I/O: bytes of the client in, calls and frames to be written out.

    receive(bytes) ─► Splitter ─┬─ DATA ──────────────► Stream.landing, or Stream.inbox ──► the call
                                ├─ HEADERS ───────────► Blocks ─► Engine (h2) ─► opened
                                └─ other frames ─ Meter ─► Engine (h2) ─► gone, windows
    the call ─► send_message, reply, finish, abort ─► Outbound ─► next_plan

A stream lives in `streams` from its HEADERS until its END_STREAM has been sent or either side has reset it. What the shell
has to know is left in two lists that it empties after each `receive`: `take_opened` (calls to be started) and `take_gone`
(calls to be cancelled). Waiting is done by the `wake_reader` and `wake_sender` of a stream, which the shell sets.

Windows: the connection's receive window is as good as unlimited and topped up on receipt, so a stalled stream starves
nobody; a stream's window is the bound, and credit for it is given as the handler consumes (`consumed`), or as data lands
where the handler has said it goes (`room`, `landed`; see `intake`).
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from modelreg.grpc.status import Code

from . import frames, replies
from ._h2 import Engine, StreamHandle
from ._hpack import HeaderList
from .abuse import AbuseMeters
from .blocks import Blocks
from .buffers import Account, Allowance, Buffer
from .faults import ConnectionFault, ErrorCode, StreamFault
from .files import FileMessage
from .limits import Limits
from .messages import PREFIX
from .outbound import Outbound
from .reply_memory import ReplyMemory
from .requests import NO_REQUEST, Refusal, Request, parse
from .streams import FilePiece, Stream

CONNECTION_WINDOW = 2**31 - 1
TOP_UP_BELOW = 2**30
FRAMES_AT_ONCE = 64
"""Frames taken in before the caller looks at the clock (`turns`): 64 of the smallest cost a few hundred microseconds.

What counts as a frame is decided in two places. `frames.Splitter.feed` counts what arrives: a frame, and each 16 bytes of
it. `Core` adds what it makes of a frame (`Splitter.charge`): `CALL_WORK`, and each 16 bytes of decoded header fields.
"""

CALL_WORK = 4
"""What it costs to open a call, in frames: 9 to 26 us where it is refused at once."""

FREE_HEADERS = 2048
"""Bytes of header fields that any call may keep without borrowing them. Tokens rarely have more."""

SMALL_REPLY = 16 * 1024
"""A reply up to this size leaves in one piece with its headers and trailers."""

JOIN_BELOW = 64 * 1024
"""Messages up to this size are copied behind their prefix, which is cheaper than a piece of their own."""

Message = bytes | bytearray | list[bytearray] | FileMessage
"""A message to be sent: its bytes, in one piece or several, or where they are."""

LAST_STREAM_ID = 2**31 - 1
DRAIN_PING = b"draining"
KEEPALIVE_PING = b"areyouin"


class Core:
    """The state of one connection. Methods raise `ConnectionFault` when the peer has made it unusable."""

    def __init__(self, limits: Limits, windows: Allowance, headers: Allowance, memory: ReplyMemory, peer: str) -> None:
        self.engine = Engine(
            self,
            max_frame_bytes=limits.max_frame_bytes,
            stream_window=limits.stream_window,
            max_streams=limits.max_concurrent_streams,
            max_header_bytes=limits.max_header_bytes,
        )
        self.outbound = Outbound(self.engine, self._end, memory)
        self.splitter = frames.Splitter(self, max_frame_bytes=limits.max_frame_bytes)
        self.streams: dict[int, Stream] = {}
        self.refusing = False  # draining: no stream is accepted any more
        self.drained = False  # ... and the client knows which was the last
        self.peer_leaves = False  # the client has said GOAWAY
        self.ping_pending = False
        self._limits = limits
        self._windows = windows
        self._headers = Account(headers, limits.max_header_bytes)
        self._peer = peer
        self.refused: Callable[[Request, int, str], object] = lambda _request, _code, _message: None
        self._opened: list[tuple[Stream, Refusal | None]] = []
        self._gone: list[Stream] = []
        self._now = 0.0
        self._buffer: Buffer | None = None
        self._recv_window = 65535
        self._data_stream: Stream | None = None
        self._data_length = 0  # of its frame, padding included
        self._blocks = Blocks(limits.max_header_bytes, self._headers)
        self._settings_changed = False
        self._meters = AbuseMeters()
        self.outbound.control(self.engine.pending())
        self._top_up(CONNECTION_WINDOW - self._recv_window)

    # ---- from the client ------------------------------------------------------------------------------------------

    def receive(self, data: memoryview, buffer: Buffer | None, now: float) -> int:
        """Take in bytes (`buffer` is what they are a view of) at a monotonic time; how many were taken.

        Fewer than all are taken when they are the work of more than `FRAMES_AT_ONCE` frames: call again with the rest.
        Call again, too, while it is `unfinished`.
        """
        self._now = now
        self._buffer = buffer
        taken = 0
        if self._blocks.unfinished:
            self._decode()
        else:
            taken = self.splitter.feed(data, FRAMES_AT_ONCE)
        if self._settings_changed:
            self._settings_changed = False
            self._apply_settings()
        pending = self.engine.pending()
        if pending:
            self.outbound.control(pending)
        return taken

    @property
    def unfinished(self) -> bool:
        """Whether there's work to do before more bytes can be taken in."""
        return self._blocks.unfinished

    def room(self) -> memoryview | None:
        """Memory to receive into what is due next, and nothing else, where it is known that it goes there: to be filled at once,
        and told to `landed`.
        """
        due = self.splitter.payload_due
        stream = self._data_stream
        if not due or stream is None or stream.closed or stream.landing is None:
            return None
        return stream.landing.room(due)

    def landed(self, count: int, now: float) -> None:
        """So many bytes have been received where `room` has said."""
        self._now = now
        stream = self._data_stream
        assert stream is not None
        assert stream.landing is not None
        stream.landing.landed(count)
        self.splitter.passed(count)
        pending = self.engine.pending()
        if pending:
            self.outbound.control(pending)

    def take_opened(self) -> list[Stream]:
        """The calls to be started. Those that are no gRPC calls have been answered."""
        opened = []
        for stream, refusal in self._opened:
            if refusal is not None:
                self.refused(attrs.evolve(NO_REQUEST, peer=self._peer), refusal.code, refusal.message)
                self.finish(stream, refusal.code, refusal.message, refusal.http_status)
            elif not stream.closed:
                opened.append(stream)
        self._opened.clear()
        return opened

    def take_gone(self) -> list[Stream]:
        """The calls to be cancelled, as their stream was reset."""
        gone = self._gone
        self._gone = []
        return gone

    def data_begins(self, stream_id: int, length: int, end_stream: bool) -> Callable[[memoryview], None] | None:
        self._recv_window -= length
        if self._recv_window < TOP_UP_BELOW:
            if self._recv_window < 0:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window")
            self._top_up(CONNECTION_WINDOW - self._recv_window)
        self._data_length = length
        stream = self.streams.get(stream_id)
        if stream is None or stream.remote_ended:
            if stream is None:
                self._expect_known(stream_id)
            self._data_stream = None
            return None
        if length > stream.recv_window:
            self._break(stream, ErrorCode.FLOW_CONTROL_ERROR)
            self._data_stream = None
            return None
        stream.recv_window -= length
        stream.recv_total += length
        self._data_stream = stream
        return self._payload

    def _payload(self, payload: memoryview) -> None:
        stream = self._data_stream
        if stream is None or stream.closed:
            return
        if stream.landing is None or not stream.landing.take(payload, self._buffer):
            stream.deposit(payload, self._buffer)
            stream.wake_reader()

    def data_ends(self, stream_id: int, padding: int, end_stream: bool) -> None:
        stream = self._data_stream
        self._data_stream = None
        empty = padding == self._data_length
        if stream is None:
            under_way = self.engine.was_reset_here(stream_id)  # when our RST_STREAM was: to be dropped
            if empty or not under_way:
                self._count(frames.DATA)
            if not under_way:
                self.engine.stray_data(stream_id, end_stream)
            return
        if empty and not end_stream:
            self._count(frames.DATA)
        if not stream.closed:
            if padding:
                stream.recv_total -= padding
                self.consumed(stream, padding)
            if end_stream:
                self._peer_ended(stream)

    def frame(self, kind: int, flags: int, stream_id: int, raw: bytes) -> None:
        if kind in (frames.HEADERS, frames.CONTINUATION):
            blocks = self._blocks
            if blocks.add(kind, flags, stream_id, raw):
                if blocks.unfinished:
                    self._decode()
                else:
                    self._block_received()
        elif kind == frames.RST_STREAM:
            self._expect_known(stream_id)
            self._count(kind)
            if stream_id in self.streams:
                self.engine.receive(raw)
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(stream_id, int.from_bytes(raw[frames.HEADER_SIZE :], "big") & 0x7FFFFFFF)
        elif kind == frames.PRIORITY:
            self._count(kind)  # deprecated (RFC 9113, section 5.3.2) and ignored
            if stream_id == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        elif kind == frames.GOAWAY:
            if stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
            self.peer_leaves = True
        else:
            self._count(kind)
            if raw:
                self.engine.receive(frames.known_settings(raw) if kind == frames.SETTINGS else raw)

    def block_grows(self, size: int) -> None:
        self._blocks.grows(size)

    def _decode(self) -> None:
        """Decode some more of the header block that has arrived."""
        blocks = self._blocks
        self.splitter.charge(blocks.decode() >> 4)
        if blocks.unfinished:
            self.splitter.charge(FRAMES_AT_ONCE)
        else:
            self._block_received()

    def _block_received(self) -> None:
        """A header block was received and decoded: it opens or ends its stream."""
        blocks = self._blocks
        stream_id, end_stream = blocks.stream_id, blocks.ends_stream
        if stream_id <= self.engine.highest_stream_id:
            self._late_headers(stream_id, end_stream)
            return
        handle = self.engine.open(stream_id, end_stream)
        self._request_received(stream_id, blocks.fields, handle)
        if end_stream and stream_id in self.streams:
            self.streams[stream_id].remote_ended = True

    def _late_headers(self, stream_id: int, end_stream: bool) -> None:
        """Headers for a stream that was opened before: trailers, or an error."""
        stream = self.streams.get(stream_id)
        if stream is None:
            self._expect_known(stream_id)
            if self.engine.has_ended(stream_id):
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "headers for a stream that has ended")
            if not self.engine.was_reset(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "headers for a stream that's no more")
            self._count(frames.RST_STREAM)
            if not self.engine.was_reset_here(stream_id):  # else they were under way when our RST_STREAM was
                self.outbound.control(frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
        elif stream.remote_ended:
            self._break(stream, ErrorCode.STREAM_CLOSED)
        elif not end_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "trailers that don't end the stream")
        else:
            self._peer_ended(stream)

    def _peer_ended(self, stream: Stream) -> None:
        """END_STREAM after the headers."""
        if stream.request.content_length not in (None, stream.recv_total):
            self._break(stream, ErrorCode.PROTOCOL_ERROR)
            return
        self.engine.peer_ended(stream.handle)
        stream.remote_ended = True
        stream.wake_reader()

    def _window_update(self, stream_id: int, increment: int) -> None:
        self._count(frames.WINDOW_UPDATE)
        if stream_id == 0:
            self.engine.window_update(None, increment)
            self.outbound.wake()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._expect_known(stream_id)
        elif increment == 0:
            self._break(stream, ErrorCode.PROTOCOL_ERROR)
        elif not self.engine.window_update(stream.handle, increment):
            self._break(stream, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            self.outbound.resume(stream)

    def _request_received(self, stream_id: int, fields: HeaderList, handle: StreamHandle) -> None:
        self.splitter.charge(CALL_WORK)
        if self.refusing:
            self._reject(stream_id, handle, ErrorCode.REFUSED_STREAM)
            return
        refusal = None
        request = fields.parsed
        if not isinstance(request, Request):
            try:
                request = fields.parsed = self._parse(fields)
            except StreamFault as fault:
                self._reject(stream_id, handle, fault.code)
                return
            except Refusal as error:
                refusal = error
                request = NO_REQUEST
                if error.http_status != 200:  # no honest client sends many: no gRPC
                    self._count(frames.RST_STREAM)
        borrowed = max(0, fields.size - FREE_HEADERS) if refusal is None else 0
        if borrowed and not self._headers.take(borrowed):
            borrowed = 0
            refusal = Refusal(Code.RESOURCE_EXHAUSTED, "too many calls with large headers: try again later")
        stream = Stream(stream_id, handle, request, self._limits.stream_window)
        stream.borrowed_headers = borrowed
        self.streams[stream_id] = stream
        self._opened.append((stream, refusal))

    def _parse(self, fields: HeaderList) -> Request:
        if fields.too_large:
            limit = self._limits.max_header_bytes
            message = f"the call's headers are larger than max_header_bytes allows, which is {limit}"
            raise Refusal(Code.RESOURCE_EXHAUSTED, message)
        return parse(fields, self._peer)

    def stream_reset(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._lose(stream)

    def settings_changed(self) -> None:
        self._settings_changed = True

    def _apply_settings(self) -> None:
        """Let all streams have what SETTINGS changed: once a turn, as there may be thousands of both."""
        self.engine.change_windows()
        for stream in self.streams.values():
            self.outbound.resume(stream)
        self.outbound.wake()

    def ping_answered(self, payload: bytes) -> None:
        if payload == KEEPALIVE_PING:
            self.ping_pending = False
        elif payload == DRAIN_PING and self.refusing:
            self.end_drain()

    # ---- from the calls -------------------------------------------------------------------------------------------

    def consumed(self, stream: Stream, size: int) -> None:
        """The handler has done with `size` bytes of a stream: credit for the client."""
        if stream.closed or stream.remote_ended:
            return
        target = self._limits.stream_window + stream.extra_window
        stream.consumed += size
        if stream.wants_window and not stream.buffered:
            stream.credit_since_growth += size
            if stream.credit_since_growth >= target < self._limits.max_stream_window:
                extra = self._windows.take(min(target, self._limits.max_stream_window - target))
                stream.extra_window += extra
                stream.consumed += extra
                stream.credit_since_growth = 0
        if stream.consumed >= target >> 2:
            self.outbound.control(frames.window_update(stream.id, stream.consumed))
            stream.recv_window += stream.consumed
            stream.consumed = 0

    def send_message(self, stream: Stream, message: Message) -> None:
        """Queue a message; `Stream.sent` tells when it has left."""
        if stream.closed:
            return
        if not stream.headers_sent:
            stream.headers_sent = True
            self.outbound.control(self.outbound.headers(stream.id, replies.RESPONSE, False))
        add = self.outbound.add
        if isinstance(message, FileMessage):
            size = len(message.prefix) + message.length
            add(stream, memoryview(PREFIX.pack(0, size) + message.prefix))
            add(stream, FilePiece(message.fd, message.offset, message.length))
        elif isinstance(message, list):
            add(stream, memoryview(PREFIX.pack(0, sum(map(len, message)))))
            for chunk in message:
                add(stream, memoryview(chunk))
        elif len(message) <= JOIN_BELOW:
            add(stream, memoryview(PREFIX.pack(0, len(message)) + message))
        else:
            add(stream, memoryview(PREFIX.pack(0, len(message))))
            add(stream, memoryview(message))
        self.outbound.resume(stream)

    def reply(self, stream: Stream, message: Message) -> None:
        """The only message of a reply, and OK: in one piece where size and windows allow it."""
        if stream.closed:
            return
        engine = self.engine
        handle = stream.handle
        if isinstance(message, (bytes, bytearray)) and not stream.headers_sent:
            size = len(message) + 5
            if size <= SMALL_REPLY and size <= handle.outbound_flow_control_window and size <= engine.window:
                handle.outbound_flow_control_window -= size
                engine.window -= size
                self.outbound.frames_cut += 1
                stream.headers_sent = True
                outbound = self.outbound
                beginning = outbound.beginning(stream.id, size)
                outbound.whole_reply(b"".join((beginning, message, self._end(stream, replies.TRAILERS_OK))), size)
                return
        self.send_message(stream, message)
        self.finish(stream, 0, "")

    def finish(self, stream: Stream, code: int, message: str, http_status: int = 200) -> None:
        """End the reply with a status, behind what is queued."""
        if stream.closed:
            return
        if not stream.headers_sent:
            stream.headers_sent = True
            self.outbound.control(self._end(stream, replies.trailers_only(code, message, http_status)))
        elif stream.out:
            stream.trailers = replies.trailers(code, message)
        else:
            self.outbound.control(self._end(stream, replies.trailers(code, message)))

    def withdraw(self, stream: Stream) -> None:
        """Forget what is queued for a stream, as its call has failed."""
        try:
            self.outbound.withdraw(stream)
        except OSError:
            raise ConnectionFault(ErrorCode.INTERNAL_ERROR, "a frame cannot be completed") from None

    def refuse(self, stream: Stream) -> None:
        """REFUSED_STREAM: there are too many, and the client has been told how many there may be."""
        self._break(stream, ErrorCode.REFUSED_STREAM)

    def abort(self, stream: Stream, code: ErrorCode) -> None:
        """RST_STREAM; its call is to be cancelled."""
        if not stream.closed:
            self.engine.reset_sent(stream.handle)
            self.outbound.control(frames.rst_stream(stream.id, code))
            self._lose(stream)

    def _break(self, stream: Stream, code: ErrorCode) -> None:
        """RST_STREAM because the client broke a rule: counts like a reset of the client's own (CVE-2025-8671)."""
        self._count(frames.RST_STREAM)
        self.abort(stream, code)

    # ---- the connection's end -------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        self.ping_pending = True
        self.outbound.control(frames.ping(KEEPALIVE_PING))

    def begin_drain(self) -> None:
        """First step: no more streams, please. Those under way when the client reads it get REFUSED_STREAM, which tells
        the client that nothing was done and it may try elsewhere (RFC 9113, section 6.8).
        """
        self.refusing = True
        self.outbound.control(frames.goaway(LAST_STREAM_ID, ErrorCode.NO_ERROR) + frames.ping(DRAIN_PING))

    def end_drain(self) -> None:
        """Second step, once the client has seen the first: the last stream that was looked at."""
        if not self.drained:
            self.drained = True
            self.outbound.control(frames.goaway(self.engine.highest_stream_id, ErrorCode.NO_ERROR))

    def close(self) -> None:
        """The connection is no more: give back all that it has borrowed."""
        for stream in list(self.streams.values()):
            self._close(stream)
        self._blocks.drop()
        self.outbound.close()

    def dissolve(self) -> None:
        """Let go of all parts, which refer to each other: 20 kB that would wait for a full collection.

        The core can't be used any more.
        """
        self.engine.dissolve()
        vars(self).clear()

    def fail(self, code: ErrorCode, reason: str) -> None:
        """The last frame on this connection. What has just been opened on it isn't begun."""
        self.refusing = self.drained = True
        self._opened.clear()
        self.outbound.ready.clear()
        self.outbound.control(frames.goaway(self.engine.highest_stream_id, code, reason))

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _top_up(self, increment: int) -> None:
        self._recv_window += increment
        self.outbound.control(frames.window_update(0, increment))

    def _count(self, kind: int) -> None:
        if kind in (frames.WINDOW_UPDATE, frames.PING):
            self._meters.data_sent(self.outbound.take_frame_count())
        self._meters.count(kind, self._now)

    def _expect_known(self, stream_id: int) -> None:
        """A stream that was never opened cannot be spoken of (RFC 9113, section 5.1, "idle")."""
        if stream_id == 0 or stream_id % 2 == 0 or stream_id > self.engine.highest_stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame for a stream that was never opened")

    def _reject(self, stream_id: int, handle: StreamHandle, code: ErrorCode) -> None:
        """RST_STREAM for a stream that isn't one yet; counts as `_break`."""
        self._count(frames.RST_STREAM)
        self.engine.reset_sent(handle)
        self.engine.forget(stream_id)
        self.outbound.control(frames.rst_stream(stream_id, code))

    def _end(self, stream: Stream, block: bytes) -> bytes:
        """The frames that end a stream: trailers, and if the client is still sending, RST_STREAM (RFC 9113, section 8.1)."""
        engine = self.engine
        frame = self.outbound.headers(stream.id, block, True)
        engine.end_sent(stream.handle)
        if not stream.remote_ended:
            engine.reset_sent(stream.handle)
            frame += frames.rst_stream(stream.id, ErrorCode.NO_ERROR)
        self._close(stream)
        if stream.request is not NO_REQUEST:
            self._meters.call_finished()
        return frame

    def _lose(self, stream: Stream) -> None:
        self._gone.append(stream)
        self._close(stream)
        self.withdraw(stream)

    def _close(self, stream: Stream) -> None:
        stream.closed = True
        self.engine.forget(stream.id)
        self.streams.pop(stream.id, None)
        stream.drop_inbox()
        if stream.extra_window:
            self._windows.give(stream.extra_window)
            stream.extra_window = 0
        if stream.borrowed_headers:
            self._headers.give(stream.borrowed_headers)
            stream.borrowed_headers = 0
        stream.wake_reader()
        stream.wake_sender()
