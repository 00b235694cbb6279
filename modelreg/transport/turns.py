"""Turns: how all connections of a server share the event loop.

Trio runs every task that can run before it looks at the sockets again. If each connection had a budget of its own, ten of
them would use ten budgets, and a call beside them would wait for all. So there is one budget for the server. It is measured
in seconds of work, as no count of frames or bytes says what handlers cost.

    a task's step ── time is left, no task waits ──────► it runs
                  └─ else: the queue of its connection ─► it runs in a later round, connections in rotation

The tasks of a connection run by `Turns.run`, one step (from one wait to the next) after the other. A step runs at once while
less than `TURN` seconds were spent since the last round and no task waits. Otherwise its task waits in the queue of its
connection. A round wakes a few tasks, one of each connection in rotation: a connection with thousands of calls
that can run gets no more of them than one with a single call. A step that may take long asks `over` in its loops,
and makes a checkpoint when it is.

This holds for everything that wakes many tasks at once: frames, a version that thousands watch, deadlines, windows.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, TypeVar

import trio
import trio.lowlevel

from .signals import Signal

T = TypeVar("T")

TURN = 0.004
"""Seconds of work between two rounds. A call has three or four steps, and waits for about one round at each."""

SLICE = 0.0005
"""Seconds after which a step makes way for others."""

MOST_TASKS = 64
"""Tasks that a round wakes at most. It wakes as many as a turn has time for, going by what steps took in the last round.
Should they take longer this time, those that come after two turns' time wait for the next round."""


class Share:
    """One connection's part of the turns."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: deque[trio.lowlevel.Task] = deque()


class Turns:
    """The event loop's time, for the tasks of all connections. They need `kept` around them."""

    def __init__(self) -> None:
        self._shares: deque[Share] = deque()  # those with tasks that wait
        self._spent = 0.0  # seconds of work since the last round
        self._steps = 0  # and in how many steps
        self._wave = MOST_TASKS
        self._began = 0.0  # when the step began that is running
        self._round_due = Signal()
        self._keeper = trio.CancelScope(shield=True)

    def over(self) -> bool:
        """Whether the step that is running has taken long enough, and should make a checkpoint."""
        return perf_counter() - self._began >= SLICE

    async def run(self, share: Share, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        """Run an async function, each of its steps in its turn."""
        return await self._drive(share, function(*args))

    @types.coroutine
    def _drive(self, share: Share, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        # What comes and goes here is between trio and the coroutine: traps one way, their outcomes the other.
        trap: Any
        outcome: Any = None
        send = coroutine.send
        try:
            while True:
                if self._shares or self._spent >= TURN:
                    yield from self._turn(share).__await__()
                self._began = began = perf_counter()
                try:
                    trap = send(outcome)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                finally:
                    before = self._spent
                    self._spent = spent = before + perf_counter() - began
                    self._steps += 1
                    if before < TURN / 2 <= spent:
                        self._round_due.set()
                outcome = yield trap
        finally:
            # An exception's traceback has this frame, and these have the exception: a cycle that would keep all that the
            # task had, descriptors too, until the next collection of garbage.
            trap = outcome = None
            coroutine.close()

    async def _turn(self, share: Share) -> None:
        """Wait for this connection's turn, even if the task is cancelled: it is as soon as the others'."""
        task = trio.lowlevel.current_task()
        if not share.waiting:
            self._shares.append(share)
        share.waiting.append(task)
        while True:
            self._round_due.set()
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
            if self._spent < 2 * TURN:
                return
            if not share.waiting:
                self._shares.appendleft(share)
            share.waiting.appendleft(task)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep the turns for as long as this lasts, also while what is within is being cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            try:
                yield
            finally:
                self._keeper.cancel()

    async def _keep(self) -> None:
        with self._keeper:
            while True:
                await self._round_due.wait()
                if self._steps:
                    self._wave = min(MOST_TASKS, 1 + int(TURN * self._steps / self._spent))
                self._spent = 0.0
                self._steps = 0
                self._wake()
                if self._shares:
                    self._round_due.set()

    def _wake(self) -> None:
        """Wake the tasks of a round."""
        shares = self._shares
        for _ in range(self._wave):
            if not shares:
                break
            share = shares.popleft()
            trio.lowlevel.reschedule(share.waiting.popleft())
            if share.waiting:
                shares.append(share)
