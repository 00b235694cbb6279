"""Replies that are made of pieces: when, in which steps, and how much memory all of them take."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from modelreg.transport import connection, frames, reply_memory, server
from modelreg.transport.frames import window_update
from modelreg.transport.limits import Limits
from modelreg.transport.pieces import PiecewiseMessage
from modelreg.transport.reply_memory import Gate, ReplyMemory
from modelreg.transport.signals import Signal
from tests.faults.abuse import LARGEST_WINDOW, until
from tests.support.h2client import H2Client, block, connected, data, headers, message, request_fields
from tests.transport.memory import value
from tests.transport.service import Serving, field, path, serving

KIB = 1 << 10
MIB = 1 << 20

PIECES = block(request_fields(path("Pieces")))

NO_WINDOW = {4: 0}


async def ask(client: H2Client, number: int, size: int) -> int:
    """Begin a call whose reply has so many pieces."""
    stream_id = client.new_id()
    request = message(value(b"%d %d" % (number, size)))
    await client.send(headers(stream_id, PIECES), data(stream_id, request, end_stream=True))
    return stream_id


def memory(serve: Serving) -> ReplyMemory:
    return serve.server._shared.replies


async def quiet() -> None:
    await trio.testing.wait_all_tasks_blocked(0.02)


# How much


@pytest.mark.parametrize(("number", "size"), [(0, 0), (1, 100), (100, 1000), (1, 300_000), (3000, 1000), (30, 100_000)])
async def test_all_pieces_arrive(number: int, size: int) -> None:
    async with serving() as serve, connected(serve.port) as client:
        reply = await client.finished(await ask(client, number, size))
        assert (reply.status, reply.messages) == (0, [bytes(number * size)])
        assert memory(serve).used == 0


async def test_a_reply_that_is_too_large_is_refused_before_it_takes_more() -> None:
    async with serving(Limits(max_reply_bytes=MIB)) as serve, connected(serve.port) as client:
        reply = await client.finished(await ask(client, 1000, 10_000))
        assert (reply.status, reply.text) == (
            8,
            "the reply is larger than --max_reply_bytes allows, which is 1048576: ask for fewer pieces",
        )
        assert serve.state.pulled <= 2 * (MIB // 10_000 + 1)
        reply = await client.finished(await ask(client, 1, MIB))
        assert reply.status == 0
        assert memory(serve).used == 0


async def test_calls_wait_before_they_make_replies_that_are_not_read() -> None:
    limits = Limits(max_reply_bytes=2 * MIB, reply_pool=4 * MIB, max_connections=100)
    async with serving(limits) as serve, connected(serve.port, NO_WINDOW) as deaf, connected(serve.port) as other:
        calls = [await ask(deaf, 10, 100_000) for _ in range(100)]
        await quiet()
        assert 4 * MIB <= memory(serve).used < 6 * MIB
        # A quick look at each that waits isn't kept.
        assert serve.state.pulled < 200
        reply = await other.finished(await ask(other, 1, 30_000))
        assert reply.status == 0
        await deaf.send(frames.window_update(0, 2**30), *(window_update(call, 2**30) for call in calls))
        for call in calls:
            reply = await deaf.finished(call)
            assert (reply.status, len(reply.messages[0])) == (0, 1_000_000)
        assert memory(serve).used == 0


async def test_of_the_lists_that_find_no_memory_one_is_looked_at() -> None:
    limits = Limits(max_reply_bytes=2 * MIB, reply_pool=4 * MIB, max_connections=100)
    async with serving(limits) as serve, connected(serve.port, NO_WINDOW) as deaf, connected(serve.port) as other:
        for _ in range(10):
            await ask(deaf, 1, MIB)
        await quiet()
        looked_at = serve.state.pulled
        for _ in range(100):
            await ask(other, 1, MIB)
        await until(lambda: serve.server.statistics().streams == 110)
        await quiet()
        assert serve.state.pulled == looked_at + 1


async def test_what_is_to_be_read_is_counted_before_it_is_read() -> None:
    limits = Limits(max_reply_bytes=2 * MIB, reply_pool=2 * MIB, max_connections=100)
    async with serving(limits) as serve, connected(serve.port) as client:
        calls = []
        for _ in range(100):
            calls.append(client.new_id())
            request = data(calls[-1], message(value(b"100000")), end_stream=True)
            await client.send(headers(calls[-1], block(request_fields(path("Load")))), request)
        await until(lambda: len(serve.server._connections) == 1 and serve.server.statistics().streams == 100)
        await quiet()
        assert serve.state.pulled == 2 * MIB // 100_000 + 1
        assert 2 * MIB <= memory(serve).used < 2 * MIB + 200_000
        serve.state.go_on.set()
        await client.send(frames.window_update(0, 2**30))
        for call in calls:
            reply = await client.finished(call)
            assert (reply.status, reply.messages) == (0, [field(100_000) + bytes(100_000)])
        assert memory(serve).used == 0


async def test_large_replies_are_made_one_at_a_time_and_never_wait_for_each_other() -> None:
    limits = Limits(max_reply_bytes=2 * MIB, reply_pool=2 * MIB)
    async with serving(limits) as serve, connected(serve.port) as first, connected(serve.port) as second:
        calls = [(client, await ask(client, 2000, 1000)) for _ in range(5) for client in (first, second)]
        for client, call in calls:
            reply = await client.finished(call)
            assert (reply.status, len(reply.messages[0])) == (0, 2_000_000)


async def test_a_reset_a_deadline_and_a_lost_connection_give_the_memory_back() -> None:
    limits = Limits(max_reply_bytes=MIB, reply_pool=MIB)
    async with serving(limits) as serve, connected(serve.port) as other:
        for end in ("reset", "deadline", "lost"):
            client = H2Client(await trio.open_tcp_stream("127.0.0.1", serve.port))
            await client.start(NO_WINDOW)
            extra = [(b"grpc-timeout", b"300m")] if end == "deadline" else []
            held = client.new_id()
            fields = block(request_fields(path("Pieces"), extra))
            await client.send(headers(held, fields), data(held, message(value(b"1 1000000")), end_stream=True))
            await quiet()
            calls = [await ask(client, 1, 1_000_000) for _ in range(3)]
            await quiet()
            waiting = await ask(other, 1, 1_000_000)
            if end == "reset":
                await client.send(*(frames.rst_stream(call, 8) for call in (held, *calls)))
            elif end == "deadline":
                await client.send(*(frames.rst_stream(call, 8) for call in calls))
                assert (await client.finished(held)).status == 4
            await client.aclose()
            assert (await other.finished(waiting)).status == 0
        assert memory(serve).used == 0


async def test_replies_that_are_not_read_make_room_for_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CLOCK_INTERVAL", 0.05)
    monkeypatch.setattr(connection, "UNREAD_REPLY", 0.1)
    limits = Limits(max_reply_bytes=MIB, reply_pool=MIB)
    async with serving(limits) as serve, connected(serve.port, NO_WINDOW) as deaf, connected(serve.port) as other:
        held = await ask(deaf, 1, MIB)
        await until(lambda: memory(serve).used >= MIB)
        reply = await other.finished(await ask(other, 1, MIB))
        assert (reply.status, len(reply.messages[0])) == (0, MIB)
        reply = await deaf.finished(held)
        assert (reply.status, reply.text) == (
            8,
            "the reply was read too slowly while others waited for its memory: ask for less at once",
        )


async def test_a_reply_that_is_read_slowly_may_take_its_time_while_no_call_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "CLOCK_INTERVAL", 0.02)
    monkeypatch.setattr(connection, "UNREAD_REPLY", 0.04)
    monkeypatch.setattr(connection, "SLOW_REPLY", 0.04)
    async with serving(Limits(max_reply_bytes=MIB, reply_pool=MIB)) as serve, connected(serve.port, NO_WINDOW) as slow:
        held = await ask(slow, 1, MIB)
        await trio.sleep(0.2)
        await slow.send(window_update(0, 2**30), window_update(held, 2**30))
        assert (await slow.finished(held)).status == 0


async def test_a_call_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_memory, "REPLY_BACKLOG", MIB)
    async with (
        serving(Limits(stall_timeout=0.3)) as serve,
        connected(serve.port, NO_WINDOW) as deaf,
    ):
        await ask(deaf, 1, MIB + 1)
        await until(lambda: memory(serve).used > MIB)
        await quiet()
        waiting = await ask(deaf, 1, MIB + 1)
        reply = await deaf.finished(waiting)
        assert reply.status == 8
        assert reply.text is not None
        assert reply.text.startswith("there was no memory for the reply")


async def test_small_replies_in_whole_frames_are_counted_too() -> None:
    """A client that opens its windows and reads nothing from its socket."""
    async with serving(Limits(reply_pool=2 * MIB, max_reply_bytes=MIB)) as serve:
        async with connected(serve.port, {4: LARGEST_WINDOW}) as deaf:
            await deaf.send(window_update(0, 2**30))
            request = message(value(b"1 16000"))
            await deaf.send(*(headers(n, PIECES) + data(n, request, end_stream=True) for n in range(1, 1001, 2)))
            await quiet()
            assert MIB < memory(serve).used < 3 * MIB
        await quiet()
        assert memory(serve).used == 0


# How long


async def test_others_have_their_turns_while_a_long_reply_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(clock) * reply_memory.STEP_SECONDS / 10)
    made: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(1000):
            made.append(number)
            yield bytes(reply_memory.LOOK_BYTES)

    class Nothing:
        buffered = 0

        def hold(self, size: int) -> None:
            raise AssertionError

        def let_go(self, size: int) -> None:
            raise AssertionError

    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(len(made))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        memory = ReplyMemory(Limits())
        chunks = await Gate(Nothing(), memory).make(PiecewiseMessage(pieces))
        turns.append(len(made))
        nursery.cancel_scope.cancel()
    assert sum(map(len, chunks)) == 1000 * reply_memory.LOOK_BYTES
    assert max(later - sooner for sooner, later in itertools.pairwise(turns)) <= 25
    assert memory.used == 0


# The pool


async def test_memory_goes_to_those_that_asked_first() -> None:
    memory = ReplyMemory(Limits(reply_pool=100, max_reply_bytes=100))
    memory.take(100)
    order: list[str] = []

    async def wait(name: str) -> None:
        signal = Signal()
        memory.ask(signal)
        await signal.wait()
        order.append(name)
        memory.take(50)
        memory.give(0)

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(wait, name)
            await trio.testing.wait_all_tasks_blocked()
        memory.give(100)
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["a", "b"]
        assert memory.full
        memory.give(50)
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["a", "b", "c"]


async def test_a_task_that_stops_waiting_hands_its_turn_on() -> None:
    memory = ReplyMemory(Limits(reply_pool=100, max_reply_bytes=100))
    memory.take(100)
    first, second = Signal(), Signal()
    memory.ask(first)
    memory.ask(second)
    memory.give(1)  # wakes the first, which is cancelled at this moment
    memory.leave(first)
    with trio.fail_after(1):
        await second.wait()
    assert not memory.waited_for
