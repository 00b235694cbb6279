"""How connections share the event loop. Work is a busy loop: it is time that is shared."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import trio
import trio.testing

from modelreg.transport import turns as module
from modelreg.transport.turns import SLICE, TURN, Share, Turns


def work(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Passes(trio.abc.Instrument):
    """Counts how often Trio has looked at the sockets."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_what_can_run_at_once_takes_many_rounds() -> None:
    turns, passes = Turns(), Passes()
    at: list[int] = []

    async def call() -> None:
        work(TURN / 8)
        at.append(passes.count)

    trio.lowlevel.add_instrument(passes)
    try:
        async with turns.kept(), trio.open_nursery() as nursery:
            shares = [Share() for _ in range(10)]
            for number in range(200):
                nursery.start_soon(turns.run, shares[number % 10], call)
    finally:
        trio.lowlevel.remove_instrument(passes)
    assert len(at) == 200
    assert max(map(at.count, at)) <= 4 * 8 + 2  # two turns, of which each has twice its time at most


async def test_connections_take_turns() -> None:
    """One with hundreds of tasks that can run doesn't hold up the only one of another."""
    turns = Turns()
    ran: list[str] = []

    async def call(name: str) -> None:
        work(TURN / 8)
        ran.append(name)

    async with turns.kept(), trio.open_nursery() as nursery:
        crowd = Share()
        for _ in range(300):
            nursery.start_soon(turns.run, crowd, call, "crowd")
        while "crowd" not in ran:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(turns.run, Share(), call, "lone")
    assert ran.index("lone") < 40


async def test_a_long_step_is_told_that_its_turn_is_over() -> None:
    turns = Turns()

    async def step() -> tuple[bool, bool]:
        before = turns.over()
        work(SLICE)
        return before, turns.over()

    async with turns.kept():
        assert await turns.run(Share(), step) == (False, True)


async def test_results_and_errors_come_through() -> None:
    turns = Turns()

    async def divide(a: int, b: int) -> float:
        await trio.lowlevel.checkpoint()
        return a / b

    async with turns.kept():
        assert await turns.run(Share(), divide, 1, 2) == 0.5
        with pytest.raises(ZeroDivisionError):
            await turns.run(Share(), divide, 1, 0)


async def test_a_task_that_is_cancelled_while_it_waits_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its turn, and is cancelled at its next checkpoint."""
    monkeypatch.setattr(module, "TURN", 0.0001)
    turns = Turns()
    began = ended = 0

    async def call() -> None:
        nonlocal began, ended
        began += 1
        try:
            work(0.0002)
            await trio.sleep_forever()
        finally:
            ended += 1

    async with turns.kept():
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(turns.run, Share(), call)
            while not began:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert began == ended == 100


async def test_a_task_that_is_cancelled_leaves_nothing_for_the_garbage_collector() -> None:
    """What it had is gone at once: mappings, for example, which hold descriptors."""

    class Thing:
        pass

    turns = Turns()
    things: list[weakref.ref[Thing]] = []

    async def call() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        await trio.sleep_forever()

    gc.disable()
    try:
        async with turns.kept():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(turns.run, Share(), call)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert [thing() for thing in things] == [None]
    finally:
        gc.enable()
