"""The client's HTTP/2 without I/O: h2 as the server, bytes in between."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelreg.client.transport.core import MAX_FRAME_BYTES, STREAM_WINDOW, Core
from modelreg.client.transport.pages import PAGE_BYTES
from modelreg.client.transport.status import Code, Outcome
from modelreg.transport import frames
from modelreg.transport.faults import ConnectionFault, ErrorCode, StreamFault

REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b":authority", b"here")]
RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK = [(b"grpc-status", b"0")]


class Peer:
    """A server, and the bytes between it and a core."""

    def __init__(self, **settings: int) -> None:
        self.core = Core()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.h2.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes[name]: value for name, value in settings.items()}
        )
        self.h2.max_inbound_frame_size = settings.get("MAX_FRAME_SIZE", 16384)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.data: dict[int, bytearray] = {}
        self.piece = 1 << 20
        self.exchange()

    def exchange(self) -> None:
        """Pass bytes on until nobody has any."""
        while True:
            sent = b"".join(bytes(piece) for piece in self.core.plan())
            if sent:
                self.take(self.h2.receive_data(sent))
            back = self.h2.data_to_send()
            for start in range(0, len(back), self.piece):
                self.core.receive(memoryview(back[start : start + self.piece]))
            if not sent and not back:
                return

    def take(self, events: Any) -> None:
        self.events += events
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.data.setdefault(event.stream_id, bytearray()).extend(event.data)

    def saw(self, kind: Any, stream: Any) -> Any:
        return [event for event in self.events if isinstance(event, kind) and event.stream_id == stream.number]

    def call(self, *pieces: Any, end: Any = True) -> Any:
        return self.begin(self.core.open(REQUEST), pieces, end)

    def begin(self, stream: Any, pieces: Any, end: Any) -> Any:
        self.core.send(stream, pieces, end=end)
        self.exchange()
        return stream

    def answer(self, stream: Any, *data: Any, trailers: Any = OK) -> None:
        self.h2.send_headers(stream.number, RESPONSE)
        for piece in data:
            self.h2.send_data(stream.number, piece)
        self.h2.send_headers(stream.number, trailers, end_stream=True)
        self.exchange()


@pytest.fixture(autouse=True)
def streams_take_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets tests collect on a stream what was deposited."""
    from modelreg.client.transport import core

    class Collecting(core.Stream):
        def __init__(self, number: int, handle: Any) -> None:
            super().__init__(number, handle)
            self.received = bytearray()
            self.deposit = self.received.extend

    monkeypatch.setattr(core, "Stream", Collecting)


@pytest.fixture
def peer() -> Any:
    return Peer()


def test_a_call_and_its_answer(peer: Peer) -> None:
    stream: Any = peer.core.open(REQUEST)
    peer.begin(stream, [b"re", memoryview(b"quest")], True)
    assert peer.data[stream.number] == b"request"
    assert peer.saw(h2.events.StreamEnded, stream)
    assert stream.delivered
    assert peer.core.streams == 1
    peer.answer(stream, b"rep", b"ly")
    assert stream.received == b"reply"
    assert stream.outcome == Outcome(Code.OK, "")
    assert peer.core.streams == 0


@pytest.mark.parametrize("piece", [1, 2, 9, 10])
def test_however_the_bytes_are_cut(piece: Any) -> None:
    peer = Peer()
    peer.piece = piece
    stream: Any = peer.core.open(REQUEST)
    peer.begin(stream, [b"request"], True)
    peer.answer(stream, b"reply", b"", b"more")
    assert stream.received == b"replymore"
    assert stream.outcome == Outcome(Code.OK, "")


def test_headers_alone_are_an_answer(peer: Peer) -> None:
    stream = peer.call(b"request")
    fields = [*RESPONSE, (b"grpc-status", b"5"), (b"grpc-message", b"no model %22%C3%A4%22")]
    peer.h2.send_headers(stream.number, fields, end_stream=True)
    peer.exchange()
    assert stream.outcome == Outcome(Code.NOT_FOUND, 'no model "ä"')


GRPC = (b"content-type", b"application/grpc")


@pytest.mark.parametrize(
    ("fields", "code", "cut"),
    [
        ([(b":status", b"503")], Code.UNAVAILABLE, True),
        ([(b":status", b"404")], Code.UNIMPLEMENTED, False),
        ([(b":status", b"302")], Code.UNKNOWN, False),
        ([(b":status", b"x")], Code.UNKNOWN, False),
        ([(b":status", b"200")], Code.UNKNOWN, False),
        ([(b":status", b"200"), GRPC], Code.UNKNOWN, True),
        ([(b":status", b"200"), (b"grpc-status", b"77")], Code.UNKNOWN, False),
        ([(b":status", b"200"), (b"grpc-status", b"x")], Code.UNKNOWN, False),
        ([(b":status", b"415"), (b"grpc-status", b"3")], Code.INVALID_ARGUMENT, False),
    ],
)
def test_answers_of_others(peer: Peer, fields: Any, code: Any, cut: Any) -> None:
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, fields, end_stream=True)
    peer.exchange()
    assert stream.outcome[0] == code
    assert stream.outcome.cut is cut


HTML = [(b":status", b"502"), (b"content-type", b"text/html")]


@pytest.mark.parametrize("end", ["END_STREAM", "trailers", "RST_STREAM"])
def test_a_page_is_no_message(peer: Peer, end: str) -> None:
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, HTML)
    for piece in (b"<html>\x01\x02", b"<h1>Bad ", b"Gateway</h1>"):
        peer.h2.send_data(stream.number, piece)
    if end == "trailers":
        peer.h2.send_headers(stream.number, [(b"x", b"y")], end_stream=True)
    elif end == "END_STREAM":
        peer.h2.end_stream(stream.number)
    else:
        peer.h2.reset_stream(stream.number, ErrorCode.INTERNAL_ERROR)
    peer.exchange()
    assert stream.received == b""
    assert stream.outcome == Outcome(
        Code.UNAVAILABLE, "HTTP status 502 Bad Gateway instead of a gRPC answer (Bad Gateway)", cut=True
    )


@pytest.mark.parametrize("length", [b"0", b"5", b"6"])
def test_a_content_length_is_no_ones_business(peer: Peer, length: bytes) -> None:
    """h2 counts the DATA that it sees, and it sees none."""
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, [*RESPONSE, (b"content-length", length)])
    peer.core.receive(memoryview(peer.h2.data_to_send()))
    peer.core.receive(memoryview(frames.frame_header(5, frames.DATA, 0, stream.number) + b"reply"))
    peer.core.receive(memoryview(frames.frame_header(0, frames.DATA, frames.END_STREAM, stream.number)))
    assert stream.received == b"reply"
    assert stream.outcome.cut


def test_a_page_without_end_is_not_waited_for(peer: Peer) -> None:
    stream, other = peer.call(b"1"), peer.call(b"2")
    peer.h2.send_headers(stream.number, HTML)
    peer.h2.send_data(stream.number, bytes(PAGE_BYTES - 1))
    peer.exchange()
    unfinished: Any = stream.outcome
    assert unfinished is None
    peer.h2.send_data(stream.number, bytes(10))
    peer.h2.send_data(stream.number, bytes(10))
    peer.exchange()
    assert stream.outcome[0] == Code.UNAVAILABLE
    assert peer.saw(h2.events.StreamReset, stream)[0].error_code == ErrorCode.CANCEL
    peer.answer(other)
    assert other.outcome == Outcome(Code.OK, "")


@pytest.mark.parametrize("piece", [1, 5, 100])
def test_an_answer_in_http1(piece: int) -> None:
    core = Core()
    text = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
    with pytest.raises(ConnectionFault):
        for start in range(0, len(text), piece):
            core.receive(memoryview(text[start : start + piece]))
    if piece == 100:
        assert core.http1 is not None
        assert core.http1.code == Code.UNIMPLEMENTED


def test_the_servers_windows_and_frame_size_are_kept() -> None:
    peer = Peer(INITIAL_WINDOW_SIZE=100_000, MAX_FRAME_SIZE=20_000)
    data = bytes(range(256)) * 1000
    stream = peer.call(memoryview(data))
    assert len(peer.data[stream.number]) == 65535  # the connection's window
    assert max(len(event.data) for event in peer.saw(h2.events.DataReceived, stream)) == 20_000
    assert not stream.delivered
    peer.h2.increment_flow_control_window(10**6)
    peer.exchange()
    assert len(peer.data[stream.number]) == 100_000
    for _ in range(len(data) // 50_000):
        peer.h2.increment_flow_control_window(50_000, stream.number)
        peer.exchange()
    assert peer.data[stream.number] == data
    assert stream.delivered


def test_small_frames_are_views_of_what_is_sent() -> None:
    """However many frames a piece makes, no byte of it is copied: purerpc's client copied the rest of a message for each of its frames."""
    peer = Peer(INITIAL_WINDOW_SIZE=2**22, MAX_FRAME_SIZE=16384)
    peer.h2.increment_flow_control_window(2**22)
    peer.exchange()
    data = bytes(2**22)
    stream = peer.core.open(REQUEST)
    peer.core.send(stream, [memoryview(data)], end=True)
    sent = []
    while pieces := peer.core.plan():
        sent += [piece for piece in pieces if len(piece) == 16384]
    assert len(sent) == 2**22 // 16384
    assert all(isinstance(piece, memoryview) and piece.obj is data for piece in sent)


def test_a_window_that_shrinks_below_nothing(peer: Peer) -> None:
    stream = peer.call(bytes(70_000))
    peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    peer.exchange()
    peer.h2.increment_flow_control_window(10**6)
    peer.h2.increment_flow_control_window(65_000, stream.number)
    peer.exchange()
    assert len(peer.data[stream.number]) == 65_535
    peer.h2.increment_flow_control_window(10_000, stream.number)
    peer.exchange()
    assert len(peer.data[stream.number]) == 70_000


def test_streams_share_the_window(peer: Peer) -> None:
    streams = [peer.core.open(REQUEST) for _ in range(3)]
    for stream in streams:
        peer.core.send(stream, [bytes(60_000)], end=True)
    peer.exchange()
    peer.h2.increment_flow_control_window(2**20)
    peer.exchange()
    assert [len(peer.data[stream.number]) for stream in streams] == [60_000] * 3


def test_consumed_bytes_are_given_back(peer: Peer) -> None:
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, RESPONSE)
    before = peer.h2.local_flow_control_window(stream.number)
    assert before == STREAM_WINDOW
    for _ in range(STREAM_WINDOW // MAX_FRAME_BYTES):
        peer.h2.send_data(stream.number, bytes(MAX_FRAME_BYTES))
    peer.exchange()
    assert peer.h2.local_flow_control_window(stream.number) == 0
    peer.core.consumed(stream, STREAM_WINDOW // 2)
    peer.exchange()
    assert peer.h2.local_flow_control_window(stream.number) == STREAM_WINDOW // 2


def test_the_connections_window_is_kept_open(peer: Peer) -> None:
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, RESPONSE)
    for _ in range(600):
        peer.h2.send_data(stream.number, bytes(MAX_FRAME_BYTES))
        peer.core.consumed(stream, MAX_FRAME_BYTES)
        peer.exchange()
    assert peer.h2.outbound_flow_control_window > 2**30


def test_padding_counts(peer: Peer) -> None:
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, RESPONSE)
    for _ in range(STREAM_WINDOW // 20_000):
        peer.h2.send_data(stream.number, bytes(100), pad_length=255)
        peer.exchange()
    assert stream.received == bytes(100 * (STREAM_WINDOW // 20_000))
    assert STREAM_WINDOW - peer.h2.local_flow_control_window(stream.number) - len(stream.received) < STREAM_WINDOW // 4


def test_an_answer_before_the_request_has_ended(peer: Peer) -> None:
    stream = peer.call(b"request", end=False)
    peer.answer(stream, trailers=[(b"grpc-status", b"3"), (b"grpc-message", b"enough")])
    assert stream.outcome == Outcome(Code.INVALID_ARGUMENT, "enough")
    assert not stream.delivered
    assert peer.saw(h2.events.StreamReset, stream)[0].error_code == ErrorCode.NO_ERROR
    peer.core.send(stream, [b"more"], end=True)
    peer.exchange()
    assert peer.data[stream.number] == b"request"


@pytest.mark.parametrize(
    ("reset", "code", "delivered", "cut"),
    [
        (ErrorCode.REFUSED_STREAM, Code.UNAVAILABLE, False, True),
        (ErrorCode.CANCEL, Code.CANCELLED, True, True),
        (ErrorCode.ENHANCE_YOUR_CALM, Code.RESOURCE_EXHAUSTED, True, True),
        (ErrorCode.PROTOCOL_ERROR, Code.INTERNAL, True, True),
        (ErrorCode.INADEQUATE_SECURITY, Code.PERMISSION_DENIED, True, False),
        (ErrorCode.HTTP_1_1_REQUIRED, Code.INTERNAL, True, False),
        (99, Code.INTERNAL, True, True),
    ],
)
def test_resets(peer: Peer, reset: Any, code: Any, delivered: Any, cut: Any) -> None:
    stream = peer.call(b"request")
    peer.h2.reset_stream(stream.number, reset)
    peer.exchange()
    assert stream.outcome[0] == code
    assert stream.delivered is delivered
    assert stream.outcome.cut is cut


def test_a_cancelled_call(peer: Peer) -> None:
    stream = peer.call(b"request")
    other = peer.call(b"request")
    peer.core.cancel(stream)
    peer.core.cancel(stream)
    # what the server sent before it knew
    peer.h2.send_headers(stream.number, RESPONSE)
    peer.h2.send_data(stream.number, b"late")
    peer.h2.send_headers(stream.number, OK, end_stream=True)
    late = peer.h2.data_to_send()
    assert peer.core.plan() == [frames.rst_stream(stream.number, ErrorCode.CANCEL)]
    peer.core.receive(memoryview(late))
    peer.answer(other, b"fine")
    assert other.received == b"fine"
    assert other.outcome == Outcome(Code.OK, "")
    assert stream.received == b""


def test_a_call_cancelled_before_it_was_sent(peer: Peer) -> None:
    stream: Any = peer.core.open(REQUEST)
    peer.core.send(stream, [b"request"], end=True)
    peer.core.cancel(stream)
    peer.exchange()
    assert not stream.delivered
    assert peer.saw(h2.events.StreamReset, stream)


def test_what_the_caller_can_not_take_ends_the_call(peer: Peer) -> None:
    stream = peer.call(b"request")

    def refuse(data: Any) -> None:
        raise StreamFault(ErrorCode.CANCEL, "too much")

    stream.deposit = refuse
    peer.h2.send_headers(stream.number, RESPONSE)
    peer.h2.send_data(stream.number, b"data")
    peer.exchange()
    assert stream.outcome == Outcome(Code.INTERNAL, "too much")
    assert peer.saw(h2.events.StreamReset, stream)


def test_goaway_lets_accepted_calls_finish(peer: Peer) -> None:
    first, second = peer.call(b"1"), peer.call(b"2")
    peer.core.receive(memoryview(frames.goaway(first.number, 0)))
    assert peer.core.going_away
    assert second.outcome[0] == Code.UNAVAILABLE
    assert not second.delivered
    assert first.outcome is None
    peer.answer(first, b"fine")
    assert first.outcome == Outcome(Code.OK, "")


def test_goaway_for_too_many_pings(peer: Peer) -> None:
    peer.core.receive(memoryview(frames.goaway(0, ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")))
    assert peer.core.too_many_pings


def test_a_lost_connection_ends_all_calls(peer: Peer) -> None:
    complete, cut = peer.call(b"1"), peer.call(b"2", end=False)
    peer.core.lost("gone")
    assert complete.outcome == cut.outcome == Outcome(Code.UNAVAILABLE, "gone")
    assert complete.delivered
    assert not cut.delivered


def test_pings_are_answered_both_ways(peer: Peer) -> None:
    peer.h2.ping(b"12345678")
    peer.exchange()
    assert any(isinstance(event, h2.events.PingAcknowledged) for event in peer.events)
    peer.core.ping()
    peer.exchange()
    assert peer.core.pongs == 1


def test_the_servers_limit_of_streams() -> None:
    peer = Peer(MAX_CONCURRENT_STREAMS=2)
    streams = [peer.call(b""), peer.call(b"")]
    assert peer.core.full
    peer.answer(streams[0])
    assert not peer.core.full


@pytest.mark.parametrize(
    "raw",
    [
        frames.frame_header(4, frames.DATA, 0, 1) + b"data",  # before HEADERS
        frames.frame_header(4, frames.DATA, 0, 9) + b"data",  # a stream that isn't
        frames.frame_header(4, frames.DATA, 0, 2) + b"data",  # one that servers open
        frames.frame_header(4, frames.DATA, 0, 0) + b"data",
        frames.window_update(0, 0),
        frames.window_update(0, 2**31 - 1),
        frames.frame_header(MAX_FRAME_BYTES + 1, frames.DATA, 0, 1),
        frames.frame_header(4, frames.PUSH_PROMISE, 4, 1) + b"\0\0\0\2",
        frames.frame_header(3, frames.HEADERS, 4, 1) + b"\xff\xff\xff",
        frames.frame_header(6, frames.SETTINGS, 0, 1) + bytes(6),
    ],
)
def test_what_breaks_http2_ends_the_connection(peer: Peer, raw: Any) -> None:
    peer.call(b"request")
    with pytest.raises(ConnectionFault):
        peer.core.receive(memoryview(raw))


def test_more_than_the_window_ends_the_connection(peer: Peer) -> None:
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, RESPONSE)
    peer.exchange()
    frame = frames.frame_header(MAX_FRAME_BYTES, frames.DATA, 0, stream.number) + bytes(MAX_FRAME_BYTES)
    with pytest.raises(ConnectionFault, match="window"):
        for _ in range(17):
            peer.core.receive(memoryview(frame))


def test_a_window_update_that_can_not_be_ends_its_stream_only(peer: Peer) -> None:
    stream, other = peer.call(b"1"), peer.call(b"2")
    peer.core.receive(memoryview(frames.window_update(stream.number, 2**31 - 1)))
    assert stream.outcome[0] == Code.INTERNAL
    peer.exchange()
    peer.answer(other)
    assert other.outcome == Outcome(Code.OK, "")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)), max_size=12)
)
def test_frames_in_any_order_are_taken_or_refused(found: Any) -> None:
    core = Core()
    core.receive(memoryview(frames.frame_header(0, frames.SETTINGS, 0, 0)))
    for _ in range(3):
        core.send(core.open(REQUEST), [b"request"], end=True)
    core.plan()
    try:
        for kind, flags, stream, payload in found:
            core.receive(memoryview(frames.frame_header(len(payload), kind, flags, stream) + payload))
            core.plan()
    except ConnectionFault:
        pass
