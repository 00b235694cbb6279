"""Data that goes where it is wanted without passing through the handler: whatever the cuts, all of it arrives, once, and in order."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modelreg.transport import intake
from modelreg.transport.buffers import Allowance, Buffer, BufferPool
from modelreg.transport.core import Core
from modelreg.transport.faults import ErrorCode
from modelreg.transport.intake import Requests
from modelreg.transport.limits import Limits
from modelreg.transport.messages import StreamedMessages
from modelreg.transport.streams import Stream
from tests.support.h2client import data, message
from tests.transport.service import Pieces
from tests.transport.test_core import OPEN, feed, make


@attrs.define
class Place:
    """A destination with room for so many bytes at a time: none at all where that's 0. Keeps all that lands, or is added."""

    rooms: Iterator[int] = attrs.field(factory=lambda: itertools.repeat(1 << 20))
    content: bytearray = attrs.field(factory=bytearray)
    landed: int = 0
    _memory: bytearray = attrs.field(factory=bytearray)

    def room(self, limit: int) -> memoryview | None:
        size = min(next(self.rooms), limit)
        if not size:
            return None
        self._memory = bytearray(size)
        return memoryview(self._memory)

    def filled(self, count: int) -> None:
        self.content += self._memory[:count]
        self.landed += count


@attrs.define
class Upload:
    """A stream that is being received, and what its handler has seen."""

    core: Core
    stream: Stream
    requests: Requests
    place: Place
    # Where in the content messages ended.
    ends: list[int] = attrs.field(factory=list)
    items: int = 0
    handler: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)

    def lands(self) -> None:
        """As its handler says, which never gets a turn."""
        self.handler.enter_context(self.requests.landing_in(self.place))

    async def handle(self) -> None:
        with self.requests.landing_in(self.place):
            async for item in self.requests:
                self.items += 1
                if isinstance(item, memoryview):
                    self.place.content += item
                else:
                    self.ends.append(len(self.place.content))

    def receive(self, sent: memoryview, buffer: Buffer) -> int:
        """Receive like a connection's reader; how much of what was sent."""
        room = self.core.room()
        if room is not None:
            size = min(len(room), len(sent))
            room[:size] = sent[:size]
            self.core.landed(size, 0.0)
            return size
        size = min(len(sent), len(buffer.view))
        view = buffer.view[:size]
        view[:] = sent[:size]
        while view:
            view = view[self.core.receive(view, buffer, 0.0) :]
        return size


@pytest.fixture(autouse=True)
def _land_from_the_first_byte_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "LAND_FROM", 1)


def upload(place: Place) -> Upload:
    core = make(Limits(stream_window=1 << 20, max_stream_window=1 << 20))
    (stream,) = feed(core, OPEN)
    return Upload(
        core, stream, Requests(core, stream, StreamedMessages(Pieces(), None, Allowance(0)), lambda: False), place
    )


def frames_of(content: bytes, sizes: Sequence[int]) -> bytes:
    """DATA frames of these sizes, again and again, until the end of the stream."""
    cut = []
    size = itertools.cycle(sizes)
    while content:
        piece = content[: next(size)]
        cut.append(piece)
        content = content[len(piece) :]
    return b"".join(data(1, piece, padding=place % 3) for place, piece in enumerate(cut)) + data(
        1, b"", end_stream=True
    )


@given(
    st.lists(st.integers(0, 40), max_size=5),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.sampled_from([1, 400]),
    st.integers(0, 3),
)
@hypothesis_settings(max_examples=200)
def test_any_cuts_give_the_same_content(
    lengths: list[int], frames: list[int], pieces: list[int], rooms: list[int], times: int, turns: int
) -> None:
    """Small cuts, and the same so much larger that payload isn't copied any more."""
    lengths, frames, pieces, rooms = ([times * size for size in sizes] for sizes in (lengths, frames, pieces, rooms))
    contents = [bytes((place + n) % 200 + 34 for n in range(length)) for place, length in enumerate(lengths)]
    sent = memoryview(frames_of(b"".join(map(message, contents)), frames))

    async def main() -> None:
        receiving = upload(Place(itertools.cycle(rooms)))
        pool = BufferPool(10_000)
        buffers = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiving.handle)
            start = 0
            for turn, size in enumerate(itertools.cycle(pieces)):
                if turn % (turns + 1) == 0:
                    await trio.testing.wait_all_tasks_blocked()
                if start == len(sent):
                    break
                buffer = pool.take()
                buffers.append(buffer)
                start += receiving.receive(sent[start : start + size], buffer)
                buffer.release()
        assert bytes(receiving.place.content) == b"".join(contents)
        assert receiving.ends == list(itertools.accumulate(lengths))
        assert all(buffer.refs == 0 for buffer in buffers)
        assert not receiving.stream.buffered

    trio.run(main)


async def run(receiving: Upload, sent: bytes) -> None:
    pool = BufferPool(100_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiving.handle)
        await trio.testing.wait_all_tasks_blocked()
        view = memoryview(sent)
        while view:
            buffer = pool.take()
            view = view[receiving.receive(view, buffer) :]
            buffer.release()
            await trio.testing.wait_all_tasks_blocked()


async def test_the_handler_sees_no_data_that_lands() -> None:
    receiving = upload(Place())
    await run(receiving, frames_of(message(bytes(500_000)), [100_000]))
    assert receiving.place.landed == len(receiving.place.content) == 500_000
    assert receiving.items == 1  # the message's end


async def test_what_lands_is_credited_at_once() -> None:
    """The client may send on while the handler does nothing."""
    receiving = upload(Place())
    await run(receiving, frames_of(message(bytes(5 << 20)), [1 << 18]))
    assert len(receiving.place.content) == 5 << 20  # five times the window


async def test_without_room_the_client_has_to_wait() -> None:
    receiving = upload(Place(itertools.repeat(0)))
    receiving.lands()
    sent = message(bytes(900_000))
    feed(receiving.core, data(1, sent[:500_000]), data(1, sent[500_000:800_000]))
    assert receiving.stream.buffered == 300_000  # behind what the handler was woken for
    assert receiving.stream.recv_window == (1 << 20) - 800_000


async def test_nothing_overtakes_what_the_handler_has_not_taken() -> None:
    receiving = upload(Place())
    sent = memoryview(frames_of(message(b"a" * 50_000) + message(b"b" * 50_000), [20_000]))
    buffer = BufferPool(100_000).take()
    assert receiving.receive(sent[:30_000], buffer) == 30_000  # before the handler has said where it goes
    receiving.lands()
    assert receiving.core.room() is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiving.handle)
        await trio.testing.wait_all_tasks_blocked()
        assert receiving.core.room() is not None
        sent = sent[30_000:]
        while sent:
            sent = sent[receiving.receive(sent, buffer) :]
    assert receiving.place.content == b"a" * 50_000 + b"b" * 50_000
    assert 0 < receiving.place.landed < 100_000


async def test_many_messages_in_one_piece_leave_others_their_turn() -> None:
    receiving = upload(Place())
    with receiving.requests.landing_in(receiving.place):
        for _ in range(10):  # frames of fewer messages than make a turn
            feed(receiving.core, data(1, message(b"x") * 100))
        assert 0 < receiving.place.landed < 1000
        assert receiving.stream.buffered


async def test_bytes_that_are_no_message_are_the_handlers_to_hear_of() -> None:
    receiving = upload(Place())
    sent = frames_of(message(b"fine") + message(b"!" * 10), [1000])
    receiving.lands()
    feed(receiving.core, sent)  # nobody else's: the connection goes on
    with pytest.raises(Exception, match="no exclamation marks"):
        await receiving.handle()
    assert receiving.place.content == b"fine"


async def test_nothing_lands_once_the_handler_has_ended() -> None:
    receiving = upload(Place())
    sent = frames_of(message(bytes(50_000)), [40_000])
    with receiving.requests.landing_in(receiving.place):
        feed(receiving.core, sent[:1000])
        assert receiving.core.room() is not None
    assert receiving.core.room() is None
    landed = receiving.place.landed
    feed(receiving.core, sent[1000:])
    assert receiving.place.landed == landed


async def test_nothing_lands_on_a_stream_that_is_reset() -> None:
    receiving = upload(Place())
    receiving.lands()
    feed(receiving.core, frames_of(message(bytes(50_000)), [40_000])[:1000])
    receiving.core.abort(receiving.stream, ErrorCode.CANCEL)
    assert receiving.core.room() is None
