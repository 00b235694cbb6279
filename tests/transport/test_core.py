"""A connection without I/O: frames in, frames out (RFC 9113's answer to each fault: row 26)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import hpack
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modelreg.transport import frames
from modelreg.transport.buffers import Allowance, BufferPool
from modelreg.transport.core import Core
from modelreg.transport.faults import ConnectionFault, ErrorCode
from modelreg.transport.files import FileMessage
from modelreg.transport.frames import PREFACE, frame_header, rst_stream, window_update
from modelreg.transport.limits import Limits
from modelreg.transport.outbound import FileSpan, Outbound
from modelreg.transport.reply_memory import ReplyMemory
from modelreg.transport.streams import Stream
from tests.support.h2client import block, data, headers, literal, message, request_fields, settings

OPEN = headers(1, block(request_fields("/a/b")))


def make(limits: Limits | None = None, start: bytes = PREFACE + settings({})) -> Core:
    limits = limits or Limits()
    core = Core(limits, Allowance(limits.window_pool), Allowance(limits.header_pool), ReplyMemory(limits), "")
    feed(core, start)
    return core


def feed(core: Core, *parts: bytes, now: float = 0.0) -> list[Stream]:
    """Give it all of the parts; the streams that were opened."""
    view = memoryview(b"".join(parts))
    opened = []
    while view or core.unfinished:
        view = view[core.receive(view, None, now) :]
        opened += core.take_opened()
    return opened


def written(core: Core, limit: int = 1 << 30) -> list[tuple[int, int, int, bytes]]:
    """Everything it wants written now, as frames (kind, flags, stream, payload)."""
    sent = bytearray()
    while len(sent) < limit:
        plan = core.outbound.next_plan()
        if plan is None:
            break
        for item in plan.items:
            sent += (item.header + bytes(item.size)) * item.count if isinstance(item, FileSpan) else item
        core.outbound.done(plan)
    found = []
    while sent:
        size = int.from_bytes(sent[:3], "big")
        found.append((sent[3], sent[4], int.from_bytes(sent[5:9], "big"), bytes(sent[9 : 9 + size])))
        del sent[: 9 + size]
    return found


def payload(frames_: Iterable[tuple[int, int, int, bytes]], stream_id: int = 1) -> bytes:
    return b"".join(body for kind, _, of, body in frames_ if kind == frames.DATA and of == stream_id)


def resets(core: Core) -> dict[int, ErrorCode]:
    return {
        stream_id: ErrorCode(int.from_bytes(body, "big"))
        for kind, _, stream_id, body in written(core)
        if kind == frames.RST_STREAM
    }


def test_start() -> None:
    core = Core(Limits(), Allowance(0), Allowance(0), ReplyMemory(Limits()), "")
    kinds = [(kind, stream_id) for kind, _, stream_id, _ in written(core)]
    assert kinds == [(frames.SETTINGS, 0), (frames.WINDOW_UPDATE, 0)]
    feed(core, PREFACE + settings({}) + frames.ping(b"12345678"))
    assert written(core) == [(frames.SETTINGS, frames.ACK, 0, b""), (frames.PING, frames.ACK, 0, b"12345678")]


def test_request_and_reply() -> None:
    core = make()
    (stream,) = feed(core, OPEN, data(1, message(b"hi"), end_stream=True))
    assert stream.request.path == "/a/b"
    assert stream.remote_ended
    assert [bytes(chunk) for chunk, _ in stream.inbox] == [message(b"hi")]
    written(core)
    core.reply(stream, b"hello")
    kinds = [(kind, flags) for kind, flags, _, _ in written(core)]
    assert kinds == [
        (frames.HEADERS, frames.END_HEADERS),
        (frames.DATA, 0),
        (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM),
    ]
    assert not core.streams


# ---- flow control: what the peer may send ---------------------------------------------------------------------------


def test_more_than_the_stream_window() -> None:
    core = make(Limits(stream_window=65535))
    (one, two) = feed(core, OPEN, headers(3, block(request_fields("/a/b"))))
    feed(core, data(1, bytes(65535)))
    assert not core.take_gone()
    feed(core, data(1, b"x"), data(1, bytes(100)), data(3, b"x"))
    assert one.closed
    assert core.take_gone() == [one]
    assert resets(core) == {1: ErrorCode.FLOW_CONTROL_ERROR}
    assert not two.closed


def test_padding_counts_and_is_given_back() -> None:
    core = make(Limits(stream_window=100_000))
    (stream,) = feed(core, OPEN)
    feed(core, *(data(1, b"", padding=255) for _ in range(1000)))
    assert not stream.closed
    assert not stream.inbox


def test_credit_only_for_what_was_consumed() -> None:
    core = make(Limits(stream_window=100_000))
    (stream,) = feed(core, OPEN)
    written(core)
    feed(core, data(1, bytes(60_000)))
    assert not written(core)
    core.consumed(stream, 60_000)
    assert written(core) == [(frames.WINDOW_UPDATE, 0, 1, (60_000).to_bytes(4, "big"))]
    feed(core, data(1, bytes(100_000)))
    assert not stream.closed


def test_a_stream_that_keeps_up_gets_a_larger_window_and_gives_it_back() -> None:
    limits = Limits(stream_window=100_000, max_stream_window=400_000, window_pool=250_000)
    windows = Allowance(limits.window_pool)
    core = Core(limits, windows, Allowance(limits.header_pool), ReplyMemory(limits), "")
    (stream,) = feed(core, PREFACE + settings({}), OPEN)
    stream.wants_window = True
    for _ in range(40):
        feed(core, data(1, bytes(50_000)))
        stream.drop_inbox()
        core.consumed(stream, 50_000)
    assert stream.extra_window == 250_000
    assert windows.left == 0
    assert stream.recv_window + stream.consumed == 350_000
    core.finish(stream, 0, "")
    assert windows.left == 250_000


def test_the_connection_window_is_topped_up() -> None:
    core = make(Limits(max_frame_bytes=1 << 20, stream_window=1 << 20))
    (stream,) = feed(core, OPEN)
    written(core)
    core._recv_window = (1 << 30) + 10
    feed(core, data(1, bytes(11)))
    assert written(core) == [(frames.WINDOW_UPDATE, 0, 0, ((1 << 30) - 1 + 1 + 0).to_bytes(4, "big"))]
    assert core._recv_window == 2**31 - 1
    assert not stream.closed


def test_more_than_the_connection_window() -> None:
    core = make()
    feed(core, OPEN)
    core._recv_window = 5
    with pytest.raises(ConnectionFault) as caught:
        feed(core, data(1, bytes(6)))
    assert caught.value.code is ErrorCode.FLOW_CONTROL_ERROR


# ---- flow control: what we may send ---------------------------------------------------------------------------------


def test_windows_of_stream_and_connection() -> None:
    core = make(start=PREFACE + settings({4: 100}))
    (stream,) = feed(core, OPEN)
    written(core)
    core.send_message(stream, bytes(100_000))
    assert len(payload(written(core))) == 100
    feed(core, window_update(1, 50))
    assert len(payload(written(core))) == 50
    feed(core, window_update(1, 2**31 - 1 - 0))
    assert len(payload(written(core))) == 65535 - 150
    feed(core, window_update(0, 10))
    assert len(payload(written(core))) == 10
    assert not stream.sent
    feed(core, window_update(0, 1 << 20))
    assert len(payload(written(core))) == 100_005 - 65535 - 10
    assert stream.sent


def test_the_initial_window_changes_while_streams_are_open() -> None:
    core = make(start=PREFACE + settings({4: 1000}))
    (stream,) = feed(core, OPEN)
    written(core)
    core.send_message(stream, bytes(50_000))
    assert len(payload(written(core))) == 1000
    feed(core, settings({4: 0}))  # now it is -1000
    feed(core, window_update(1, 999))
    assert not payload(written(core))
    feed(core, window_update(1, 1))
    assert not payload(written(core))
    feed(core, window_update(1, 5))
    assert len(payload(written(core))) == 5
    feed(core, settings({4: 200}))
    assert len(payload(written(core))) == 200


def test_the_frame_size_changes_while_a_message_is_sent() -> None:
    core = make(start=PREFACE + settings({4: 1 << 20, 5: 1 << 20}))
    (stream,) = feed(core, OPEN, window_update(0, 1 << 24))
    written(core)
    core.send_message(stream, bytes(2_000_000))
    assert max(len(body) for *_, body in written(core)) == 1 << 20
    feed(core, settings({5: 16384}), window_update(1, 1 << 20))
    assert max(len(body) for *_, body in written(core)) == 16384


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (settings({4: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
        (settings({5: 100}), ErrorCode.PROTOCOL_ERROR),
        (settings({2: 7}), ErrorCode.PROTOCOL_ERROR),
        (window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (window_update(3, 1), ErrorCode.PROTOCOL_ERROR),
        (window_update(2, 1), ErrorCode.PROTOCOL_ERROR),
        (rst_stream(3, 8), ErrorCode.PROTOCOL_ERROR),
        (rst_stream(0, 8), ErrorCode.PROTOCOL_ERROR),
        (data(3, b"x"), ErrorCode.PROTOCOL_ERROR),
        (data(2, b"x"), ErrorCode.PROTOCOL_ERROR),
        (headers(2, block(request_fields("/a/b"))), ErrorCode.PROTOCOL_ERROR),
        (headers(0, block(request_fields("/a/b"))), ErrorCode.PROTOCOL_ERROR),
        (headers(3, b"\xff\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (frame_header(8, frames.PING, 0, 1) + bytes(8), ErrorCode.PROTOCOL_ERROR),
        (frame_header(0, frames.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frame_header(8, frames.GOAWAY, 0, 1) + bytes(8), ErrorCode.PROTOCOL_ERROR),
        (frame_header(5, frames.PRIORITY, 0, 0) + bytes(5), ErrorCode.PROTOCOL_ERROR),
        (headers(1, block([(b"x", b"y")])), ErrorCode.PROTOCOL_ERROR),  # trailers that don't end the stream
    ],
)
def test_connection_errors(sent: bytes, code: ErrorCode) -> None:
    core = make()
    feed(core, OPEN)
    with pytest.raises(ConnectionFault) as caught:
        feed(core, sent)
    assert caught.value.code is code


def test_an_overflowing_initial_window() -> None:
    core = make()
    feed(core, OPEN, window_update(1, 2**31 - 1 - 65535))
    with pytest.raises(ConnectionFault) as caught:
        feed(core, settings({4: 65536}))
    assert caught.value.code is ErrorCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        (window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    ],
)
def test_stream_errors(sent: bytes, code: ErrorCode) -> None:
    core = make()
    one, two = feed(core, OPEN, headers(3, block(request_fields("/a/b"))))
    feed(core, sent)
    assert core.take_gone() == [one]
    assert resets(core) == {1: code}
    assert not two.closed


def test_data_and_headers_after_the_end() -> None:
    for sent in (data(1, b"late"), headers(1, block(request_fields("/a/b")))):
        core = make()
        (stream,) = feed(core, OPEN, data(1, b"", end_stream=True))
        with contextlib.suppress(ConnectionFault):  # either is allowed (section 5.1, half-closed (remote))
            feed(core, sent)
            assert resets(core) == {1: ErrorCode.STREAM_CLOSED}
            assert core.take_gone() == [stream]


def test_a_closed_stream_id_cannot_be_used_again() -> None:
    core = make()
    (stream,) = feed(core, OPEN, data(1, b"", end_stream=True))
    core.finish(stream, 0, "")
    with pytest.raises(ConnectionFault) as caught:
        feed(core, headers(1, block(request_fields("/a/b"))))
    assert caught.value.code in (ErrorCode.STREAM_CLOSED, ErrorCode.PROTOCOL_ERROR)


def test_what_crosses_with_our_trailers_is_no_fault() -> None:
    core = make()
    (stream,) = feed(core, OPEN, data(1, b"", end_stream=True))
    core.finish(stream, 0, "")
    written(core)
    feed(core, window_update(1, 10), window_update(1, 0), rst_stream(1, 8))
    assert not written(core)


def test_data_that_crosses_with_our_reset_is_dropped() -> None:
    """Row 25."""
    core = make()
    (stream,) = feed(core, OPEN)
    core.finish(stream, 5, "no")
    assert resets(core) == {1: ErrorCode.NO_ERROR}
    window = core._recv_window
    for _ in range(5000):
        feed(core, data(1, bytes(100)))
    assert not written(core)
    assert core._recv_window == window - 500_000
    feed(core, data(1, b"", end_stream=True))
    assert not written(core)


def test_content_length_must_be_true() -> None:
    fields = request_fields("/a/b", [(b"content-length", b"5")])
    core = make()
    streams = feed(core, headers(1, block(fields)), headers(3, block(fields)))
    feed(core, data(1, b"12345", end_stream=True, padding=3), data(3, b"1234", end_stream=True))
    assert core.take_gone() == [streams[1]]
    assert resets(core) == {3: ErrorCode.PROTOCOL_ERROR}


def test_a_malformed_request_costs_its_stream() -> None:
    core = make()
    (stream,) = feed(
        core, headers(1, block(request_fields("/a/b", [(b"Upper", b"x")]))), headers(3, block(request_fields("/a/b")))
    )
    assert stream.id == 3
    assert resets(core) == {1: ErrorCode.PROTOCOL_ERROR}


def test_a_refused_request_is_answered() -> None:
    core = make()
    assert not feed(core, headers(1, block(request_fields("/a/b", method=b"GET")), end_stream=True))
    assert [(kind, flags) for kind, flags, _, _ in written(core) if kind == frames.HEADERS] == [(frames.HEADERS, 5)]
    assert not core.streams


def test_priority_and_padding_in_headers() -> None:
    core = make()
    encoded = block(request_fields("/a/b"))
    padded = bytes([4]) + bytes(5) + encoded + bytes(4)
    flags = frames.END_HEADERS | frames.PADDED | 0x20
    (stream,) = feed(core, frame_header(len(padded), frames.HEADERS, flags, 1) + padded)
    assert stream.request.path == "/a/b"


def test_continuation() -> None:
    core = make()
    encoded = block(request_fields("/a/b"))
    (stream,) = feed(
        core,
        headers(1, encoded[:10], end_headers=False, end_stream=True),
        frame_header(5, frames.CONTINUATION, 0, 1) + encoded[10:15],
        frame_header(len(encoded) - 15, frames.CONTINUATION, frames.END_HEADERS, 1) + encoded[15:],
    )
    assert stream.request.path == "/a/b"
    assert stream.remote_ended


def test_trailers_of_a_request() -> None:
    core = make()
    (stream,) = feed(core, OPEN, data(1, b"x"), headers(1, block([(b"x-checksum", b"1")]), end_stream=True))
    assert stream.remote_ended


def test_reset_by_the_peer() -> None:
    core = make()
    (stream,) = feed(core, OPEN)
    core.send_message(stream, bytes(100_000))
    feed(core, rst_stream(1, 8))
    assert core.take_gone() == [stream]
    assert stream.closed
    assert not payload(written(core))
    core.send_message(stream, b"late")
    core.finish(stream, 0, "")
    assert not written(core)


def test_the_table_size_is_acknowledged_with_the_first_block() -> None:
    core = make(start=PREFACE + settings({1: 0}))
    one, two = feed(core, OPEN, headers(3, block(request_fields("/a/b"))))
    core.finish(one, 0, "")
    core.finish(two, 0, "")
    blocks = [body for kind, _, _, body in written(core) if kind == frames.HEADERS]
    assert [encoded[:1] for encoded in blocks] == [b"\x20", b"\x88"]


def test_unknown_settings_are_not_kept() -> None:
    core = make()
    for number in range(7, 5000):
        feed(core, settings({number: 1, 4: 1000 + number, 0: 7}), now=float(number))
        assert written(core)[-1] == (frames.SETTINGS, frames.ACK, 0, b"")
    assert len(core.engine._h2.remote_settings) < 10
    (stream,) = feed(core, OPEN, now=5000.0)
    assert stream.handle.outbound_flow_control_window == 5999


def test_streams_take_turns() -> None:
    core = make(start=PREFACE + settings({4: 1 << 24}))
    streams = feed(core, window_update(0, 1 << 28), *(headers(n, block(request_fields("/a/b"))) for n in (1, 3, 5)))
    written(core)
    for stream in streams:
        core.send_message(stream, FileMessage(b"", 0, 0, 8 << 20))
    core.outbound.resident = lambda *_: True
    sent = written(core, 3 << 20)
    sizes = [len(payload(sent, stream.id)) for stream in streams]
    assert max(sizes) - min(sizes) <= 512 * 1024
    core.finish(streams[0], 0, "")  # queued behind its payload
    rest = written(core)
    last = [(kind, stream_id) for kind, _, stream_id, _ in rest if stream_id == 1][-2:]
    assert last == [(frames.HEADERS, 1), (frames.RST_STREAM, 1)]


def test_a_cold_file_waits_aside() -> None:
    core = make(start=PREFACE + settings({4: 1 << 24}))
    one, two = feed(core, window_update(0, 1 << 24), OPEN, headers(3, block(request_fields("/a/b"))))
    core.outbound.resident = lambda *_: False
    core.send_message(one, FileMessage(b"", 0, 0, 1 << 20))
    core.send_message(two, bytes(1 << 20))
    assert len(payload(written(core), 3)) == (1 << 20) + 5
    assert core.outbound.cold == [one]
    assert one.parked
    assert one.file is not None
    one.file.checked_until = 1 << 20
    one.parked = False
    core.outbound.resume(one)
    assert len(payload(written(core), 1)) == (1 << 20) + 5


def test_a_huge_window_costs_no_memory() -> None:
    core = make(start=PREFACE + settings({4: 2**31 - 1}))
    (stream,) = feed(core, window_update(0, 2**31 - 1 - 65535), OPEN)
    core.outbound.resident = lambda *_: True
    core.send_message(stream, FileMessage(b"", 0, 0, 2**31))
    plan = core.outbound.next_plan()
    assert plan is not None
    assert sum(len(item) for item in plan.items if not isinstance(item, FileSpan)) < 1024
    assert sum(item.count * item.size for item in plan.items if isinstance(item, FileSpan)) <= 512 * 1024
    core.outbound.done(plan)


# ---- abuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        frames.ping(bytes(8)),
        frame_header(8, frames.PING, frames.ACK, 0) + bytes(8),
        settings({}),
        frame_header(0, frames.SETTINGS, frames.ACK, 0),
        settings({4: 70_000}),
        data(1, b""),
        frame_header(5, frames.PRIORITY, 0, 1) + bytes(5),
        window_update(0, 1),
        window_update(1, 1),
        rst_stream(1, 8),
        frame_header(0, 0x42, 0, 0),
    ],
)
def test_floods(frame: bytes) -> None:
    """Row 20."""
    core = make()
    feed(core, OPEN)
    with pytest.raises(ConnectionFault) as caught:
        for _ in range(10):
            feed(core, frame * 1000)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_flood_of_data_for_a_stream_that_has_ended() -> None:
    core = make()
    (stream,) = feed(core, OPEN, data(1, b"", end_stream=True))
    core.finish(stream, 0, "")
    with pytest.raises(ConnectionFault):
        for _ in range(5000):
            feed(core, data(1, b"x"))


def test_the_same_at_a_walking_pace_is_fine() -> None:
    core = make()
    feed(core, OPEN)
    for second in range(5000):
        feed(core, frames.ping(bytes(8)) * 10, settings({}), data(1, b"") * 10, window_update(0, 1), now=float(second))
        written(core)


def test_window_updates_for_what_was_sent_are_fine() -> None:
    core = make(start=PREFACE + settings({4: 2**30}))
    feed(core, window_update(0, 2**30))
    for number in range(1, 40_000, 2):
        (stream,) = feed(core, headers(number, block(request_fields("/a/b")), end_stream=True))
        core.reply(stream, b"x")
        feed(core, window_update(0, 6), window_update(number, 6))
        written(core)


def test_streams_over_the_limit_without_end() -> None:
    core = make()
    with pytest.raises(ConnectionFault):
        for number in range(1, 10_000, 2):
            (stream,) = feed(core, headers(number, block(request_fields("/a/b"))))
            core.refuse(stream)


def test_a_ping_for_each_round_trip_of_a_download_is_fine() -> None:
    """What grpc-go does to measure the bandwidth."""
    core = make(start=PREFACE + settings({4: 2**31 - 1}))
    (stream,) = feed(core, window_update(0, 2**30), OPEN)
    for _ in range(5000):
        core.send_message(stream, bytes(10_000))
        written(core)
        feed(core, frames.ping(bytes(8)), window_update(0, 10_005), window_update(1, 10_005))


def test_rapid_reset() -> None:
    """Row 19."""
    core = make()
    encoded = block(request_fields("/a/b"))
    with pytest.raises(ConnectionFault) as caught:
        for number in range(1, 10_000, 2):
            assert not feed(core, headers(number, encoded), rst_stream(number, 8))
            assert len(core.streams) <= 1
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


def test_small_payloads_share_memory() -> None:
    core = make()
    (stream,) = feed(core, OPEN)
    for _ in range(200):
        feed(core, data(1, b"x") * 100)
    assert len(stream.inbox) == 1
    assert stream.buffered == 20_000


def test_buffers_come_back() -> None:
    pool = BufferPool(size=65536)
    core = make()
    (stream,) = feed(core, OPEN)
    buffer = pool.take()
    frame = data(1, bytes(30_000))
    buffer.view[: len(frame)] = frame
    core.receive(buffer.view[: len(frame)], buffer, 0.0)
    assert buffer.refs == 2
    buffer.release()
    assert pool.take() is not buffer
    feed(core, rst_stream(1, 8))
    assert stream.buffered == 0
    assert pool.take() is buffer


# ---- row 30 ---------------------------------------------------------------------------------------------------------

STREAM_IDS = st.sampled_from([0, 1, 2, 3, 5, 7])
# ---- what costs more than it looks like ---------------------------------------------------------------------------------


def with_note(stream_id: int, size: int) -> bytes:
    """A call with so many bytes of metadata."""
    return headers(stream_id, block(request_fields("/a/b", [(b"note", b"x" * size)])))


def statuses(core: Core) -> list[int]:
    """The statuses of the replies that are sent now."""
    decoder = hpack.Decoder()
    blocks = [dict(decoder.decode(body)) for kind, *_, body in written(core) if kind == frames.HEADERS]
    return [int(fields["grpc-status"]) for fields in blocks if "grpc-status" in fields]


def test_large_headers_are_borrowed_from_a_pool_of_the_server() -> None:
    limits = Limits(max_header_bytes=10_000)
    pool = Allowance(10_000)
    core = Core(limits, Allowance(0), pool, ReplyMemory(limits), "")
    small, large, _ = feed(core, PREFACE + settings({}), with_note(1, 1000), with_note(3, 9000), with_note(5, 9000))
    assert 4000 < pool.left < 6000
    assert not feed(core, with_note(7, 9000))
    assert statuses(core) == [8]
    other = Core(limits, Allowance(0), pool, ReplyMemory(limits), "")
    assert feed(other, PREFACE + settings({}), with_note(1, 9000))  # what one may have can't be taken by others
    core.finish(large, 0, "")
    assert feed(core, with_note(9, 9000))
    core.close()
    assert pool.left == 10_000
    assert small.closed


def test_a_header_block_that_arrives_is_borrowed_from_the_pool() -> None:
    limits = Limits(max_header_bytes=1024)
    pool = Allowance(10_000)
    core = Core(limits, Allowance(0), pool, ReplyMemory(limits), "")
    other = Core(limits, Allowance(0), pool, ReplyMemory(limits), "")
    for one in (core, other):
        feed(one, PREFACE + settings({}))
    large = headers(1, bytes(9000), end_headers=False)
    feed(core, large[:100])  # what its header announces counts
    assert pool.left == 10_000 - (9000 - 1024)
    with pytest.raises(ConnectionFault) as caught:
        feed(other, large)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM
    core.close()
    other.close()
    assert pool.left == 10_000
    third = Core(limits, Allowance(0), pool, ReplyMemory(limits), "")
    assert not feed(third, PREFACE + settings({}), with_note(1, 9000))
    assert statuses(third) == [8]
    assert pool.left == 10_000


def test_nothing_is_taken_in_before_a_large_header_block_is_decoded() -> None:
    core = make()
    data_ = memoryview(headers(1, block([(b"x", b"y" * 10)]) * 2000) + OPEN[:4] + b"\x04\0\0\0\x03" + OPEN[9:])
    taken = core.receive(data_, None, 0.0)
    steps = 0
    while core.unfinished:
        assert not core.take_opened()
        assert core.receive(data_[taken:], None, 0.0) == 0
        steps += 1
    assert steps > 5
    assert not core.take_opened()  # the large one is refused, and the other one hasn't been looked at
    core.receive(data_[taken:], None, 0.0)
    assert [stream.id for stream in core.take_opened()] == [3]


def test_what_headers_are_once_decoded_counts_for_the_turn() -> None:
    core = make()
    entry = b"\x40" + literal(b"note", b"x" * 3000)[1:]
    feed(core, headers(1, block(request_fields("/a/b")) + entry))
    calls = [headers(number, block(request_fields("/a/b", [(b"n", b"%d" % number)])) + b"\xbe") for number in (3, 5)]
    assert core.receive(memoryview(b"".join(calls)), None, 0.0) == len(calls[0])


def test_settings_change_the_windows_of_streams_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make()
    streams = feed(core, *(headers(number, block(request_fields("/a/b"))) for number in range(1, 200, 2)))
    resumed = []
    monkeypatch.setattr(Outbound, "resume", lambda _, stream: resumed.append(stream))
    sent = [settings({4: size}) for size in range(1, 20)] + [headers(201, OPEN[9:]), settings({4: 1000})]
    (late,) = feed(core, *sent)
    assert len(resumed) == 101
    assert {stream.handle.outbound_flow_control_window for stream in [*streams, late]} == {1000}


def test_streams_that_the_peer_has_reset_count() -> None:
    core = make()
    opened = b"".join(headers(number, block(request_fields("/a/b"))) for number in range(1, 4000, 2))
    feed(core, opened)
    with pytest.raises(ConnectionFault) as caught:
        for number in range(1, 4000, 2):
            feed(core, window_update(number, 0))
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_client_whose_calls_end_may_break_off_as_many() -> None:
    """Thousands of uploads that are refused, each of which has its end under way, and as many watches that are cancelled."""
    core = make()
    for number in range(1, 20_000, 4):
        refused, _ = feed(
            core, headers(number, block(request_fields("/a/b"))), headers(number + 2, block(request_fields("/a/b")))
        )
        core.finish(refused, 16, "no")
        feed(core, data(number, b"", end_stream=True), rst_stream(number + 2, ErrorCode.CANCEL))
    assert not core.streams


ANY_FRAME = st.one_of(
    st.builds(
        data, STREAM_IDS, st.binary(max_size=50), end_stream=st.booleans(), padding=st.none() | st.integers(0, 20)
    ),
    st.builds(
        headers,
        STREAM_IDS,
        st.just(block(request_fields("/a/b"))) | st.binary(max_size=20),
        end_stream=st.booleans(),
        end_headers=st.sampled_from([True, True, True, False]),
    ),
    st.builds(rst_stream, STREAM_IDS, st.integers(0, 20)),
    st.builds(window_update, STREAM_IDS, st.sampled_from([0, 1, 1000, 2**31 - 1])),
    st.builds(settings, st.dictionaries(st.integers(0, 7), st.sampled_from([0, 1, 16384, 70_000, 2**32 - 1]))),
    st.builds(frames.ping, st.binary(min_size=8, max_size=8)),
    st.builds(frames.goaway, STREAM_IDS, st.integers(0, 20)),
    st.builds(
        lambda body, kind, flags, stream_id: frame_header(len(body), kind, flags, stream_id) + body,
        st.binary(max_size=20),
        st.integers(0, 12),
        st.integers(0, 255),
        STREAM_IDS,
    ),
)
ACTIONS = st.sampled_from(["reply", "send", "finish", "abort", "withdraw", "write", "consume"])


@hypothesis_settings(max_examples=300)
@given(st.lists(ANY_FRAME | ACTIONS, max_size=25))
def test_any_frames_in_any_order(steps: list[bytes | str]) -> None:
    core = make()
    streams: list[Stream] = []
    try:
        for step in steps:
            if isinstance(step, bytes):
                streams += feed(core, step)
                for stream in core.take_gone():
                    assert stream.closed
            elif step == "write":
                written(core)
            elif streams:
                stream = streams[-1]
                if step == "reply":
                    core.reply(stream, b"x" * 100)
                elif step == "send":
                    core.send_message(stream, bytes(70_000))
                elif step == "finish":
                    core.finish(stream, 3, "no")
                elif step == "abort":
                    core.abort(stream, ErrorCode.CANCEL)
                elif step == "withdraw":
                    core.withdraw(stream)
                elif not stream.closed:
                    size = stream.drop_inbox()
                    core.consumed(stream, size)
    except ConnectionFault as fault:
        core.fail(fault.code, str(fault))
    written(core)
    assert core.outbound.buffered >= 0
