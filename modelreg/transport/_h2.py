"""h2 3.2.0, typed: the one module that knows its insides.

h2 is the authority on the state of the connection and of each stream, on settings and on the peer's windows. It gets
every frame as it came, except:

- DATA. Payloads are counted in `streams.Stream`; END_STREAM is given to the stream's state machine (`peer_ended`), and an
  empty frame in place of one that was not expected (`stray_data`).
- HEADERS and CONTINUATION. `blocks` decodes them, and the state machines of the stream are told (`open`,
  `peer_ended`). So a large block is decoded in steps, and a field section that is too large costs its stream only.
- GOAWAY in either direction, as its state machine knows no drain: after one it refuses all streams that are still open.
- WINDOW_UPDATE, of which a client sends two for each small reply: `Engine.window_update` adds it to h2's counters, with the
  checks of RFC 9113, section 6.9.1, for a tenth of the cost.
- RST_STREAM for streams that are over. It makes a connection error of them as soon as it has
  forgotten the stream, though they are bound to cross with our trailers.

Sending, only its state is told (`end_sent`, `reset_sent`): the few header blocks that a gRPC server sends are
constant bytes (`replies`), its encoder is not used. Its outbound windows are the ones sent against: `Engine.window` and
`StreamHandle.outbound_flow_control_window` are decremented here, h2 increments them, checks them for overflow, and lets
them become negative when SETTINGS_INITIAL_WINDOW_SIZE shrinks.

What is replaced, and why:

- SETTINGS go through all streams each time they change a window or the frame size, so 200 of them beside 4,000 watches
  took 350 ms. The change is added up, and goes to the streams once a turn (`change_windows`).
- `open_inbound_streams` counts all streams for each new one, which makes 1,000 watches quadratic: `Engine` counts.
- Validation: h2 makes a connection error of a malformed request, which should cost that stream only (section 8.1.1);
  `requests` does it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.stream

from . import frames
from .faults import ConnectionFault, ErrorCode

_SettingCodes = h2.settings.SettingCodes
_StreamInputs = h2.stream.StreamInputs
_CONNECTION_RECV_HEADERS = h2.connection.ConnectionInputs.RECV_HEADERS
_SERVER_OPEN = h2.connection.ConnectionState.SERVER_OPEN
_CLOSED = h2.stream.StreamState.CLOSED
_SEND_SETTINGS = h2.connection.ConnectionInputs.SEND_SETTINGS
_StreamReset = h2.events.StreamReset
_RemoteSettingsChanged = h2.events.RemoteSettingsChanged
_PingAckReceived = h2.events.PingAckReceived

MAX_WINDOW = 2**31 - 1
MAX_CLOSED_STREAMS = 1024
"""Closed streams of a connection that are remembered. h2 would keep 65,536, which is 10 MB for each that lives long."""


class _Input:
    """An input of h2's state machine for streams.

    `give` does what the machine's `process_input` does for half the cost, most of which is hashing enums.
    """

    def __init__(self, which: h2.stream.StreamInputs) -> None:
        self._which = which
        table = h2.stream._transitions  # noqa: SLF001
        self._rows = {state: row for (state, row_of), row in table.items() if row_of is which}

    def give(self, machine: Any) -> None:
        before = machine.state
        row = self._rows.get(before)
        if row is None:
            machine.process_input(self._which)  # raises
            return
        function, machine.state = row
        if function is not None:
            try:
                function(machine, before)
            except BaseException:
                machine.state = _CLOSED
                raise


_SEND_END_STREAM = _Input(_StreamInputs.SEND_END_STREAM)
_SEND_RST_STREAM = _Input(_StreamInputs.SEND_RST_STREAM)
_RECV_HEADERS = _Input(_StreamInputs.RECV_HEADERS)
_RECV_END_STREAM = _Input(_StreamInputs.RECV_END_STREAM)


class StreamHandle(Protocol):
    """h2's record of a stream, as far as it is of interest here."""

    outbound_flow_control_window: int


class Listener(Protocol):
    """Who is told what the frames given to the engine mean."""

    def stream_reset(self, stream_id: int) -> None: ...
    def settings_changed(self) -> None: ...
    def ping_answered(self, payload: bytes) -> None: ...


class _Stream(h2.stream.H2Stream):  # type: ignore[misc]
    """A stream without what isn't used of it: the inbound window, the length of its content."""

    def __init__(self, stream_id: int, config: h2.config.H2Configuration, window: int) -> None:
        self.state_machine = h2.stream.H2StreamStateMachine(stream_id)
        self.stream_id = stream_id
        self.config = config
        self.outbound_flow_control_window = window


class _Connection(h2.connection.H2Connection):  # type: ignore[misc]
    highest_inbound_stream_id: int
    open_inbound_streams = 0
    first_window = 65535
    """The outbound window of a new stream, as SETTINGS have it."""
    window_change = 0
    """Not yet added to the windows of the streams: by how much SETTINGS have changed their beginning."""

    def _acknowledge_settings(self) -> list[Any]:
        self.state_machine.process_input(_SEND_SETTINGS)
        changes = self.remote_settings.acknowledge()
        if _SettingCodes.INITIAL_WINDOW_SIZE in changes:
            change = changes[_SettingCodes.INITIAL_WINDOW_SIZE]
            self.window_change += change.new_value - change.original_value
            self.first_window = change.new_value
        if _SettingCodes.MAX_FRAME_SIZE in changes:
            self.max_outbound_frame_size = changes[_SettingCodes.MAX_FRAME_SIZE].new_value
        acknowledgement = h2.connection.SettingsFrame(0)
        acknowledgement.flags.add("ACK")
        return [acknowledgement]

    def _begin_new_stream(self, stream_id: int, allowed_ids: int) -> Any:
        if stream_id <= self.highest_inbound_stream_id:
            raise h2.exceptions.StreamIDTooLowError(stream_id, self.highest_inbound_stream_id)
        if stream_id % 2 != int(allowed_ids):
            raise h2.exceptions.ProtocolError("Invalid stream ID for peer.")
        stream = _Stream(stream_id, self.config, self.first_window - self.window_change)
        self.streams[stream_id] = stream
        self.highest_inbound_stream_id = stream_id
        return stream


class Engine:
    """One connection's h2 state, server side."""

    def __init__(
        self, listener: Listener, *, max_frame_bytes: int, stream_window: int, max_streams: int, max_header_bytes: int
    ) -> None:
        self._listener = listener
        config = h2.config.H2Configuration(
            client_side=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        connection = _Connection(config)
        connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                _SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
                _SettingCodes.INITIAL_WINDOW_SIZE: stream_window,
                _SettingCodes.MAX_FRAME_SIZE: max_frame_bytes,
                _SettingCodes.MAX_HEADER_LIST_SIZE: max_header_bytes,
            },
        )
        connection.max_inbound_frame_size = max_frame_bytes
        connection.initiate_connection()
        connection.incoming_buffer.add_data(frames.PREFACE)
        connection._closed_streams = self._closed = OrderedDict[int, Any]()  # noqa: SLF001 - h2's own is slow to add to
        self._h2 = connection

    def dissolve(self) -> None:
        """Let go of h2's objects, which refer to each other. The engine can't be used any more."""
        self._h2.__dict__.clear()

    @property
    def window(self) -> int:
        """What the peer's connection window still allows; never below zero by our doing."""
        return cast(int, self._h2.outbound_flow_control_window)

    @window.setter
    def window(self, size: int) -> None:
        self._h2.outbound_flow_control_window = size

    @property
    def max_frame_bytes(self) -> int:
        """The largest frame the peer takes."""
        return cast(int, self._h2.max_outbound_frame_size)

    @property
    def highest_stream_id(self) -> int:
        """The newest stream the peer has opened."""
        return self._h2.highest_inbound_stream_id

    def pending(self) -> bytes:
        """Control frames that h2 wants to be sent: SETTINGS and the acknowledgements of SETTINGS and PING, RST_STREAM."""
        return cast(bytes, self._h2.data_to_send())

    def receive(self, raw: bytes) -> None:
        """Give h2 one whole frame; tells the listener what it means. Raises `ConnectionFault`."""
        try:
            events: Sequence[Any] = self._h2.receive_data(raw)
        except ConnectionFault:
            raise
        except h2.exceptions.ProtocolError as error:
            raise ConnectionFault(ErrorCode(int(error.error_code)), str(error)) from None
        except Exception as error:  # h2 and hyperframe let a few others out (ValueError, AssertionError, KeyError)
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{type(error).__name__} in h2") from error
        listener = self._listener
        for event in events:
            kind = type(event)
            if kind is _StreamReset:
                listener.stream_reset(event.stream_id)
            elif kind is _RemoteSettingsChanged:
                listener.settings_changed()
            elif kind is _PingAckReceived:
                listener.ping_answered(bytes(event.ping_data))

    def window_update(self, handle: StreamHandle | None, increment: int) -> bool:
        """The peer opens its window for a stream, or for the connection (None); False when the stream's would overflow."""
        if handle is not None:
            size = handle.outbound_flow_control_window + increment
            if size + self._h2.window_change > MAX_WINDOW:
                return False
            handle.outbound_flow_control_window = size
            return True
        size = self._h2.outbound_flow_control_window + increment
        if not increment:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        if size > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
        self._h2.outbound_flow_control_window = size
        return True

    def change_windows(self) -> None:
        """Add what SETTINGS have changed to the windows of all streams (RFC 9113, section 6.9.2)."""
        change = self._h2.window_change
        if change:
            self._h2.window_change = 0
            for stream in self._h2.streams.values():
                size = stream.outbound_flow_control_window + change
                if size > MAX_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window overflows")
                stream.outbound_flow_control_window = size

    def open(self, stream_id: int, end_stream: bool) -> StreamHandle:
        """The peer opens a stream, one beyond `highest_stream_id`, and ends it at once if `end_stream`."""
        connection = self._h2
        try:
            if connection.state_machine.state is not _SERVER_OPEN:  # which it stays
                connection.state_machine.process_input(_CONNECTION_RECV_HEADERS)
            stream = connection._begin_new_stream(stream_id, 1)  # noqa: SLF001
            _RECV_HEADERS.give(stream.state_machine)
            if end_stream:
                _RECV_END_STREAM.give(stream.state_machine)
        except h2.exceptions.ProtocolError as error:
            raise ConnectionFault(ErrorCode(int(error.error_code)), str(error)) from None
        return cast(StreamHandle, stream)

    def peer_ended(self, handle: StreamHandle) -> None:
        """END_STREAM, on DATA or trailers, of a stream that the peer had not ended yet."""
        _RECV_END_STREAM.give(cast(Any, handle).state_machine)

    def stray_data(self, stream_id: int, end_stream: bool) -> None:
        """DATA that the stream's state does not allow."""
        self.receive(frames.frame_header(0, frames.DATA, frames.END_STREAM if end_stream else 0, stream_id))

    def end_sent(self, handle: StreamHandle) -> None:
        """The stream's trailers are on their way. Headers are no news to the state machine, but for whether they came first."""
        _SEND_END_STREAM.give(cast(Any, handle).state_machine)

    def reset_sent(self, handle: StreamHandle) -> None:
        """An RST_STREAM for the stream is on its way."""
        _SEND_RST_STREAM.give(cast(Any, handle).state_machine)

    def forget(self, stream_id: int) -> None:
        """The stream is closed: keep no more of it than how."""
        stream = self._h2.streams.pop(stream_id, None)
        if stream is not None:
            closed = self._closed
            closed[stream_id] = stream.closed_by
            if len(closed) > MAX_CLOSED_STREAMS:
                closed.popitem(last=False)

    def was_reset(self, stream_id: int) -> bool:
        """Whether a closed stream, of the last that were, ended by an RST_STREAM of either side."""
        return bool(self._h2._stream_is_closed_by_reset(stream_id))  # noqa: SLF001

    def has_ended(self, stream_id: int) -> bool:
        """Whether a closed stream, of the last that were, ended as it should."""
        return bool(self._h2._stream_is_closed_by_end(stream_id))  # noqa: SLF001

    def was_reset_here(self, stream_id: int) -> bool:
        """Whether the stream was ended by our RST_STREAM (the peer may not know it yet)."""
        return self._closed.get(stream_id) is h2.stream.StreamClosedBy.SEND_RST_STREAM
