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

from modelreg.client.transport.core import (
    FRAMES_AT_ONCE,
    MAX_ANSWERS,
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    STREAM_WINDOW,
    Core,
)
from modelreg.client.transport.pages import PAGE_BYTES
from modelreg.client.transport.status import Outcome
from modelreg.grpc.status import Code
from modelreg.transport import frames
from modelreg.transport.faults import ConnectionFault, ErrorCode, StreamFault
from modelreg.transport.frames import MAX_CONTINUATIONS

REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b":authority", b"here")]
RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK = [(b"grpc-status", b"0")]


def receive(core: Core, data: bytes) -> int:
    """Let a core have bytes until it has dealt with all of them; the number of steps."""
    left = memoryview(data)
    steps = 0
    while left or core.unfinished:
        left = left[core.receive(left) :]
        steps += 1
    return steps


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
                receive(self.core, back[start : start + self.piece])
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


@pytest.mark.parametrize("piece", [1, 5, 7, 8, 100])
def test_an_answer_in_http1(piece: int) -> None:
    core = Core()
    text = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
    with pytest.raises(ConnectionFault):
        for start in range(0, len(text), piece):
            receive(core, text[start : start + piece])
    assert core.http1 is not None
    assert core.http1.code == Code.UNIMPLEMENTED


def test_http1_without_a_status_line_is_given_up() -> None:
    core = Core()
    with pytest.raises(ConnectionFault):
        receive(core, b"HTTP/1.1 " + bytes(PAGE_BYTES))
    assert core.http1 is None


@pytest.mark.parametrize("text", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HELO you there", b"\x15\x03\x03\0\x02\x02\x46too long"])
def test_what_is_no_http_is_no_frame(text: bytes) -> None:
    core = Core()
    with pytest.raises(ConnectionFault, match="the first frame must be SETTINGS"):
        receive(core, text)
    assert not core.http2


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
    assert any(isinstance(event, h2.events.PingReceived) for event in peer.events)


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


# What a server can make a client do.


def header_block(stream: Any, block: bytes, *, end_stream: bool = False) -> bytes:
    flags = frames.END_HEADERS | (frames.END_STREAM if end_stream else 0)
    return frames.frame_header(len(block), frames.HEADERS, flags, stream.number) + block


def test_an_integer_without_end_is_refused_at_its_sixth_byte(peer: Peer) -> None:
    """60 KiB of 0xff took hpack's own decoder 0.8 s, in which the program's other tasks stood still."""
    stream = peer.call(b"request")
    with pytest.raises(ConnectionFault, match="integer too large") as fault:
        receive(peer.core, header_block(stream, b"\xff" * 60 * 1024))
    assert fault.value.code == ErrorCode.COMPRESSION_ERROR


def test_a_header_bomb_is_decoded_in_steps_and_costs_its_call_only(peer: Peer) -> None:
    """A field of 4,000 bytes, and one byte for each further time."""
    bomb, other = peer.call(b"1"), peer.call(b"2")
    entry = b"\x40\x01x\x7f" + bytes([(4000 - 127) & 0x7F | 0x80, (4000 - 127) >> 7]) + b"y" * 4000
    size = MAX_HEADER_BYTES - len(entry)
    raw = header_block(bomb, entry + b"\xbe" * size, end_stream=True)
    assert receive(peer.core, raw) > size // 2048
    assert bomb.outcome[0] == Code.INTERNAL
    assert "headers are larger than 65536 bytes" in bomb.outcome[1]
    peer.h2.encoder.header_table_size = 0  # h2 knows nothing of the entry: it must not refer to it
    peer.answer(other, b"fine")
    assert other.received == b"fine"
    assert other.outcome == Outcome(Code.OK, "")


def test_too_large_trailers_cost_their_call_only(peer: Peer) -> None:
    stream, other = peer.call(b"1"), peer.call(b"2")
    peer.answer(stream, b"reply", trailers=[*OK, *[(b"x", b"a" * 8000)] * 9])
    assert stream.outcome[0] == Code.INTERNAL
    peer.answer(other)
    assert other.outcome == Outcome(Code.OK, "")


@pytest.mark.parametrize("size", [1, 4000])
def test_a_header_block_without_end_is_refused(peer: Peer, size: int) -> None:
    stream = peer.call(b"request")
    peer.core.receive(memoryview(frames.frame_header(0, frames.HEADERS, 0, stream.number)))
    piece = frames.frame_header(size, frames.CONTINUATION, 0, stream.number) + bytes(size)
    with pytest.raises(ConnectionFault) as fault:
        for _ in range(MAX_CONTINUATIONS + 1):
            receive(peer.core, piece)
    assert fault.value.code == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "frame", [frames.ping(b"12345678"), frames.frame_header(0, frames.SETTINGS, 0, 0)], ids=["PING", "SETTINGS"]
)
def test_unsent_answers_are_few(peer: Peer, frame: bytes) -> None:
    left = memoryview(frame * 200_000)
    while left and not peer.core.congested:
        left = left[peer.core.receive(left) :]
    assert left
    assert sum(map(len, peer.core.plan())) <= (MAX_ANSWERS + FRAMES_AT_ONCE) * 17
    assert not peer.core.congested


def test_settings_that_all_streams_are_told_of_are_taken_in_a_few_at_a_time(peer: Peer) -> None:
    """256 of them beside 4,000 calls took 60 ms."""
    for _ in range(1000):
        peer.core.open(REQUEST)
    window = (4).to_bytes(2, "big") + (1000).to_bytes(4, "big")
    frame = frames.frame_header(len(window), frames.SETTINGS, 0, 0) + window
    assert 0 < peer.core.receive(memoryview(frame * FRAMES_AT_ONCE)) <= 3 * len(frame)


def test_a_new_call_looks_at_no_other(peer: Peer) -> None:
    """h2 counted all open streams for each new one, so that 4,000 watches took 0.7 s to begin."""
    calls = [peer.core.open(REQUEST) for _ in range(3)]
    looked_at: list[int] = []

    class Seen(dict[int, Any]):
        def items(self) -> Any:
            looked_at.append(len(self))
            return super().items()

    peer.core._h2.streams = Seen(peer.core._h2.streams)
    calls.append(peer.core.open(REQUEST))
    assert not looked_at
    assert peer.core.streams == len(peer.core._h2.streams) == len(calls)


def test_what_one_receive_takes_in_is_bounded(peer: Peer) -> None:
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, RESPONSE)
    peer.exchange()
    data = frames.frame_header(0, frames.DATA, 0, stream.number) * 10_000
    assert peer.core.receive(memoryview(data)) == FRAMES_AT_ONCE * frames.HEADER_SIZE


def test_nothing_is_kept_of_calls_that_have_ended(peer: Peer) -> None:
    for _ in range(1500):
        peer.answer(peer.call(b"request"))
    for _ in range(10):
        peer.core.cancel(peer.call(b"request"))
    inside = peer.core._h2
    assert not inside.streams
    assert not inside._closed_streams
    assert peer.core.streams == 0


def test_what_comes_late_for_calls_that_have_ended_is_ignored(peer: Peer) -> None:
    stream, other = peer.call(b"1"), peer.call(b"2")
    peer.answer(stream)
    for raw in (
        header_block(stream, b"\x88", end_stream=True),
        frames.frame_header(4, frames.DATA, 0, stream.number) + b"late",
        frames.rst_stream(stream.number, ErrorCode.CANCEL),
        frames.window_update(stream.number, 1),
    ):
        receive(peer.core, raw)
    assert stream.outcome == Outcome(Code.OK, "")
    peer.answer(other)
    assert other.outcome == Outcome(Code.OK, "")


def test_a_status_before_the_answers_own_is_not_the_answers(peer: Peer) -> None:
    stream = peer.call(b"request")
    peer.h2.send_headers(stream.number, [(b":status", b"103"), (b"link", b"x")])
    peer.exchange()
    peer.answer(stream, b"reply")
    assert stream.received == b"reply"
    assert stream.outcome == Outcome(Code.OK, "")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([b"\x00\x01x\x01y"], "the answer has no HTTP status"),
        ([b"\x88", b"\x00\x01x\x01y"], "the answer has trailers, and doesn't end with them"),
    ],
)
def test_headers_that_break_the_rules_cost_their_call_only(peer: Peer, blocks: Any, message: Any) -> None:
    stream, other = peer.call(b"1"), peer.call(b"2")
    for block in blocks:
        receive(peer.core, header_block(stream, block))
    assert stream.outcome == Outcome(Code.INTERNAL, message)
    peer.exchange()
    assert peer.saw(h2.events.StreamReset, stream)[0].error_code == ErrorCode.PROTOCOL_ERROR
    peer.answer(other)
    assert other.outcome == Outcome(Code.OK, "")


@pytest.mark.parametrize("kind", ["HEADERS", "RST_STREAM", "WINDOW_UPDATE"])
@pytest.mark.parametrize("number", [2, 99])
def test_frames_for_streams_that_never_were(peer: Peer, kind: str, number: int) -> None:
    raw = {
        "HEADERS": frames.frame_header(1, frames.HEADERS, frames.END_HEADERS, number) + b"\x88",
        "RST_STREAM": frames.rst_stream(number, ErrorCode.CANCEL),
        "WINDOW_UPDATE": frames.window_update(number, 1),
    }[kind]
    with pytest.raises(ConnectionFault, match="never opened"):
        receive(peer.core, raw)


def test_settings_that_h2_would_keep_for_ever_are_dropped(peer: Peer) -> None:
    peer.call(b"request")
    unknown = b"".join(number.to_bytes(2, "big") + bytes(4) for number in range(0x1000, 0x1030))
    receive(peer.core, frames.frame_header(len(unknown), frames.SETTINGS, 0, 0) + unknown)
    assert set(peer.core._h2.remote_settings) <= set(range(1, 9))


def test_request_headers_that_are_remembered_are_few(peer: Peer) -> None:
    """A server may offer a table of 4 GiB, and each call with a deadline of its own would stay in it."""
    table_size = (1).to_bytes(2, "big") + (2**32 - 1).to_bytes(4, "big")
    receive(peer.core, frames.frame_header(6, frames.SETTINGS, 0, 0) + table_size)
    for number in range(200):
        peer.core.cancel(peer.core.open([*REQUEST, (b"grpc-timeout", b"%dm" % number)]))
    assert len(peer.core._h2.encoder.header_table.dynamic_entries) < 4096 // 32
