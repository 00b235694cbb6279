"""A connection without I/O: bytes of the client in, calls and frames to be written out.

    receive(bytes) ─► Splitter ─┬─ DATA ──────────────► Stream.landing, or Stream.inbox ──► the call
                                └─ other frames ─ Meter ─► Engine (h2) ─► opened, gone, windows
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

from . import frames, replies
from ._h2 import Engine, HeaderList, StreamHandle
from .abuse import AbuseMeters
from .buffers import Allowance, Buffer
from .faults import ConnectionFault, ErrorCode, StreamFault
from .files import FileMessage
from .limits import Limits
from .messages import PREFIX
from .outbound import Outbound
from .requests import NO_REQUEST, Refusal, Request, parse
from .streams import FilePiece, Stream

CONNECTION_WINDOW = 2**31 - 1
TOP_UP_BELOW = 2**30
FRAMES_AT_ONCE = 64
"""Frames taken in before the caller looks at the clock: 64 of the smallest cost a few hundred microseconds."""

SMALL_REPLY = 16 * 1024
"""A reply up to this size leaves in one piece with its headers and trailers."""

JOIN_BELOW = 64 * 1024
"""Messages up to this size are copied behind their prefix, which is cheaper than a piece of their own."""

WHOLE_BLOCK = frames.END_HEADERS | frames.END_STREAM
LAST_STREAM_ID = 2**31 - 1
DRAIN_PING = b"draining"
KEEPALIVE_PING = b"areyouin"


class Core:
    """The state of one connection. Methods raise `ConnectionFault` when the peer has made it unusable."""

    def __init__(self, limits: Limits, windows: Allowance, peer: str) -> None:
        self.engine = Engine(
            self,
            max_frame_bytes=limits.max_frame_bytes,
            stream_window=limits.stream_window,
            max_streams=limits.max_concurrent_streams,
            max_header_bytes=limits.max_header_bytes,
        )
        self.outbound = Outbound(self.engine, self._end)
        self.splitter = frames.Splitter(
            self, max_frame_bytes=limits.max_frame_bytes, max_header_bytes=limits.max_header_bytes
        )
        self.streams: dict[int, Stream] = {}
        self.refusing = False  # draining: no stream is accepted any more
        self.drained = False  # ... and the client knows which was the last
        self.peer_leaves = False  # the client has said GOAWAY
        self.ping_pending = False
        self.payload_received = 0
        self._limits = limits
        self._windows = windows
        self._peer = peer
        self._opened: list[tuple[Stream, Refusal | None]] = []
        self._gone: list[Stream] = []
        self._now = 0.0
        self._buffer: Buffer | None = None
        self._recv_window = 65535
        self._data_stream: Stream | None = None
        self._data_length = 0  # of its frame, padding included
        self._meters = AbuseMeters()
        self.outbound.control(self.engine.pending())
        self._top_up(CONNECTION_WINDOW - self._recv_window)

    # ---- from the client ------------------------------------------------------------------------------------------

    def receive(self, data: memoryview, buffer: Buffer | None, now: float) -> int:
        """Take in bytes (`buffer` is what they are a view of) at a monotonic time; how many were taken.

        Fewer than all are taken when they hold more than `FRAMES_AT_ONCE` frames: call again with the rest.
        """
        self._now = now
        self._buffer = buffer
        taken = self.splitter.feed(data, FRAMES_AT_ONCE)
        pending = self.engine.pending()
        if pending:
            self.outbound.control(pending)
        return taken

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
        self.payload_received += length
        self._data_length = length
        stream = self.streams.get(stream_id)
        if length == 0 and not end_stream:
            self._count(frames.DATA)
        if stream is None or stream.remote_ended:
            if stream is None:
                self._expect_known(stream_id)
            self._data_stream = None
            return None
        if length > stream.recv_window:
            self.abort(stream, ErrorCode.FLOW_CONTROL_ERROR)
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
        if stream is None:
            if not self.engine.was_reset_here(stream_id):  # else it was under way when our RST_STREAM was
                self._count(frames.DATA)
                self.engine.stray_data(stream_id, end_stream)
        elif not stream.closed:
            if padding:
                if padding == self._data_length and not end_stream:
                    self._count(frames.DATA)  # as empty as without padding
                stream.recv_total -= padding
                self.consumed(stream, padding)
            if end_stream:
                if stream.request.content_length not in (None, stream.recv_total):
                    self.abort(stream, ErrorCode.PROTOCOL_ERROR)
                else:
                    self.engine.data_ended(stream.handle)
                    self.stream_ended(stream_id)

    def frame(self, kind: int, flags: int, stream_id: int, raw: bytes) -> None:
        if (
            kind == frames.HEADERS
            and flags | frames.END_STREAM == WHOLE_BLOCK
            and stream_id > self.engine.highest_stream_id
        ):
            self.engine.request(stream_id, raw[frames.HEADER_SIZE :], flags & frames.END_STREAM != 0)
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
        elif kind in (frames.HEADERS, frames.CONTINUATION):
            self.engine.receive(raw)
        else:
            self._count(kind)
            if raw:
                self.engine.receive(frames.known_settings(raw) if kind == frames.SETTINGS else raw)

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
            self.abort(stream, ErrorCode.PROTOCOL_ERROR)
        elif not self.engine.window_update(stream.handle, increment):
            self.abort(stream, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            self.outbound.resume(stream)

    def request_received(self, stream_id: int, fields: HeaderList, handle: StreamHandle) -> None:
        if self.refusing:
            self._reject(stream_id, handle, ErrorCode.REFUSED_STREAM)
            return
        refusal = None
        request = fields.parsed
        if not isinstance(request, Request):
            try:
                request = fields.parsed = parse(fields, self._peer)
            except StreamFault as fault:
                self._reject(stream_id, handle, fault.code)
                return
            except Refusal as error:
                refusal = error
                request = NO_REQUEST
        stream = Stream(stream_id, handle, request, self._limits.stream_window)
        self.streams[stream_id] = stream
        self._opened.append((stream, refusal))

    def stream_ended(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.remote_ended = True
            stream.wake_reader()

    def stream_reset(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._lose(stream, code)

    def settings_changed(self) -> None:
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

    def send_message(self, stream: Stream, message: bytes | FileMessage) -> None:
        """Queue a message; `Stream.sent` tells when it has left."""
        if stream.closed:
            return
        if not stream.headers_sent:
            stream.headers_sent = True
            self.engine.headers_sent(stream.handle, False)
            self.outbound.control(self.outbound.headers(stream.id, replies.RESPONSE, False))
        add = self.outbound.add
        if isinstance(message, FileMessage):
            size = len(message.prefix) + message.length
            add(stream, memoryview(PREFIX.pack(0, size) + message.prefix))
            add(stream, FilePiece(message.fd, message.offset, message.length))
        elif len(message) <= JOIN_BELOW:
            add(stream, memoryview(PREFIX.pack(0, len(message)) + message))
        else:
            add(stream, memoryview(PREFIX.pack(0, len(message))))
            add(stream, memoryview(message))
        self.outbound.resume(stream)

    def reply(self, stream: Stream, message: bytes | FileMessage) -> None:
        """The only message of a reply, and OK: in one piece where size and windows allow it."""
        if stream.closed:
            return
        engine = self.engine
        handle = stream.handle
        if not isinstance(message, FileMessage) and not stream.headers_sent:
            size = len(message) + 5
            if size <= SMALL_REPLY and size <= handle.outbound_flow_control_window and size <= engine.window:
                handle.outbound_flow_control_window -= size
                engine.window -= size
                self.outbound.frames_cut += 1
                engine.headers_sent(handle, False)
                stream.headers_sent = True
                outbound = self.outbound
                outbound.control(
                    outbound.headers(stream.id, replies.RESPONSE, False)
                    + frames.frame_header(size, frames.DATA, 0, stream.id)
                    + PREFIX.pack(0, size - 5)
                    + message
                    + self._end(stream, replies.TRAILERS_OK)
                )
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
        self._count(frames.RST_STREAM)
        self.abort(stream, ErrorCode.REFUSED_STREAM)

    def abort(self, stream: Stream, code: ErrorCode) -> None:
        """RST_STREAM; its call is to be cancelled."""
        if not stream.closed:
            self.engine.reset_sent(stream.handle)
            self.outbound.control(frames.rst_stream(stream.id, code))
            self._lose(stream, code)

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
        self.engine.reset_sent(handle)
        self.engine.forget(stream_id)
        self.outbound.control(frames.rst_stream(stream_id, code))

    def _end(self, stream: Stream, block: bytes) -> bytes:
        """The frames that end a stream: trailers, and if the client is still sending, RST_STREAM (RFC 9113, section 8.1)."""
        engine = self.engine
        frame = self.outbound.headers(stream.id, block, True)
        engine.headers_sent(stream.handle, True)
        if not stream.remote_ended:
            engine.reset_sent(stream.handle)
            frame += frames.rst_stream(stream.id, ErrorCode.NO_ERROR)
        self._close(stream)
        self._meters.call_finished()
        return frame

    def _lose(self, stream: Stream, code: int) -> None:
        stream.reset_code = code
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
        stream.wake_reader()
        stream.wake_sender()
