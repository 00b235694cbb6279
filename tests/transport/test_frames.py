"""Bytes in, frames out, however the bytes are cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.transport import frames
from modelreg.transport.faults import ConnectionFault, ErrorCode
from modelreg.transport.frames import PREFACE, Splitter, frame_header
from tests.support.h2client import data, headers, settings

START = PREFACE + settings({})
MAX_BLOCK = 16384


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def data_begins(self, stream_id: int, length: int, end_stream: bool) -> Callable[[memoryview], None] | None:
        self.events.append(("begin", stream_id, length, end_stream, bytearray()))
        return None if stream_id == 99 else self._data

    def _data(self, payload: memoryview) -> None:
        assert len(payload)
        self.events[-1][-1].__iadd__(payload)  # type: ignore[attr-defined]

    def data_ends(self, stream_id: int, padding: int, end_stream: bool) -> None:
        self.events.append(("end", stream_id, padding, end_stream))

    def frame(self, kind: int, flags: int, stream_id: int, raw: bytes) -> None:
        self.events.append((kind, flags, stream_id, raw))

    def block_grows(self, size: int) -> None:
        if size > MAX_BLOCK:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too large")


def split(*pieces: bytes, max_frame: int = 1 << 20) -> list[tuple[object, ...]]:
    recorder = Recorder()
    splitter = Splitter(recorder, max_frame_bytes=max_frame)
    for piece in pieces:
        assert splitter.feed(memoryview(piece)) == len(piece)
    return recorder.events


CONVERSATION = (
    START
    + headers(1, b"abc", end_headers=False)
    + frame_header(2, frames.CONTINUATION, frames.END_HEADERS, 1)
    + b"de"
    + data(1, b"payload")
    + data(1, b"padded", padding=3)
    + data(1, b"", padding=0)
    + data(1, b"padded with nothing", padding=0)
    + data(99, b"nobody wants this", padding=1)
    + frame_header(5, 0x42, 0, 7)
    + b"other"
    + frame_header(0, 0x43, 0, 0)
    + data(1, b"", end_stream=True)
    + frame_header(0, frames.SETTINGS, frames.ACK, 0)
    + frames.ping(b"12345678")
    + frames.window_update(0, 5)
    + frames.rst_stream(1, 8)
    + frames.goaway(0, 0, "bye")
)

EXPECTED = [
    (frames.SETTINGS, 0, 0, settings({})),
    (frames.HEADERS, 0, 1, headers(1, b"abc", end_headers=False)),
    (frames.CONTINUATION, frames.END_HEADERS, 1, frame_header(2, frames.CONTINUATION, frames.END_HEADERS, 1) + b"de"),
    ("begin", 1, 7, False, b"payload"),
    ("end", 1, 0, False),
    ("begin", 1, 10, False, b"padded"),
    ("end", 1, 4, False),
    ("begin", 1, 1, False, b""),
    ("end", 1, 1, False),
    ("begin", 1, 20, False, b"padded with nothing"),
    ("end", 1, 1, False),
    ("begin", 99, 19, False, b""),
    ("end", 99, 2, False),
    (0x42, 0, 7, b""),
    (0x43, 0, 0, b""),
    ("begin", 1, 0, True, b""),
    ("end", 1, 0, True),
    (frames.SETTINGS, frames.ACK, 0, frame_header(0, frames.SETTINGS, frames.ACK, 0)),
    (frames.PING, 0, 0, frames.ping(b"12345678")),
    (frames.WINDOW_UPDATE, 0, 0, frames.window_update(0, 5)),
    (frames.RST_STREAM, 0, 1, frames.rst_stream(1, 8)),
    (frames.GOAWAY, 0, 0, frames.goaway(0, 0, "bye")),
]


def test_a_conversation() -> None:
    assert split(CONVERSATION) == EXPECTED


def test_cut_in_two_anywhere() -> None:
    for at in range(len(CONVERSATION) + 1):
        assert split(CONVERSATION[:at], CONVERSATION[at:]) == EXPECTED, at


def test_byte_by_byte() -> None:
    assert split(*(bytes([byte]) for byte in CONVERSATION)) == EXPECTED


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=20))
def test_cut_anywhere(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(CONVERSATION)]
    assert split(*(CONVERSATION[a:b] for a, b in itertools.pairwise(places))) == EXPECTED


def test_few_frames_at_a_time() -> None:
    recorder = Recorder()
    splitter = Splitter(recorder, max_frame_bytes=1 << 20)
    view = memoryview(CONVERSATION)
    turns = 0
    while view:
        taken = splitter.feed(view, 1)
        assert taken
        view = view[taken:]
        turns += 1
    assert recorder.events == EXPECTED
    assert turns > 5


def test_established_and_inside_control() -> None:
    splitter = Splitter(Recorder(), max_frame_bytes=1 << 20)
    splitter.feed(memoryview(PREFACE))
    states = [splitter.established]
    splitter.feed(memoryview(settings({})))
    assert [*states, splitter.established] == [False, True]
    assert not splitter.inside_control
    splitter.feed(memoryview(data(1, b"x" * 100)[:50]))
    assert not splitter.inside_control  # slow DATA is a slow client
    splitter.feed(memoryview(data(1, b"x" * 100)[50:]))
    splitter.feed(memoryview(headers(1, b"", end_headers=False)))
    assert splitter.inside_control


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\n", ErrorCode.PROTOCOL_ERROR),
        (PREFACE + frames.ping(bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (PREFACE + frame_header(0, frames.SETTINGS, frames.ACK, 0), ErrorCode.PROTOCOL_ERROR),
        (PREFACE + data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (START + data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (START + frame_header(0, frames.DATA, frames.PADDED, 1), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(3, frames.DATA, frames.PADDED, 1) + b"\x03xx", ErrorCode.PROTOCOL_ERROR),
        (START + frame_header(1 << 20 | 1, frames.DATA, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(1 << 20 | 1, 0x42, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(16385, frames.HEADERS, 0, 1), ErrorCode.ENHANCE_YOUR_CALM),
        (START + frame_header(7, frames.SETTINGS, 0, 0), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(6, frames.SETTINGS, frames.ACK, 0), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(6000, frames.SETTINGS, 0, 0), ErrorCode.ENHANCE_YOUR_CALM),
        (START + frame_header(7, frames.PING, 0, 0), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(5, frames.WINDOW_UPDATE, 0, 0), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(3, frames.RST_STREAM, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(4, frames.PRIORITY, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(7, frames.GOAWAY, 0, 0), ErrorCode.FRAME_SIZE_ERROR),
        (START + frame_header(100_000, frames.GOAWAY, 0, 0), ErrorCode.ENHANCE_YOUR_CALM),
        (START + frame_header(5, frames.PUSH_PROMISE, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (START + frame_header(5, frames.CONTINUATION, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (START + headers(1, b"", end_headers=False) + data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (START + headers(1, b"", end_headers=False) + frames.ping(bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (
            START + headers(1, b"", end_headers=False) + frame_header(0, frames.CONTINUATION, 4, 3),
            ErrorCode.PROTOCOL_ERROR,
        ),
        (
            START + headers(1, b"", end_headers=False) + frame_header(0, frames.CONTINUATION, 0, 1) * 40,
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
        (
            START + headers(1, bytes(16000), end_headers=False) + frame_header(400, frames.CONTINUATION, 0, 1),
            ErrorCode.ENHANCE_YOUR_CALM,
        ),
    ],
)
def test_what_is_refused_before_its_payload(sent: bytes, code: ErrorCode) -> None:
    with pytest.raises(ConnectionFault) as caught:
        split(sent)
    assert caught.value.code is code
    with pytest.raises(ConnectionFault) as caught:
        split(*(bytes([byte]) for byte in sent))
    assert caught.value.code is code


@given(st.binary(max_size=300))
def test_random_bytes(garbage: bytes) -> None:
    """Row 30."""
    try:
        split(START, garbage)
    except ConnectionFault:
        pass


def test_goaway_reason_is_bounded() -> None:
    assert len(frames.goaway(1, 2, "ö" * 1000)) == frames.HEADER_SIZE + 8 + 256
