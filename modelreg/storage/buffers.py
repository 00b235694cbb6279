"""The memory that uploads share: one budget of bytes, and the aligned buffers that come out of it.

An upload that wants more than is left waits, first come, first served; it doesn't read from its stream meanwhile, so that the
wait reaches the client as flow control.
"""

from __future__ import annotations

import mmap
from collections import deque

import trio

# Large enough that a thread's start (some 60 µs) vanishes beside hashing it (some 550 µs), small enough that
# a hundred uploads at once find a few each.
BUFFER_BYTES = 1 << 20

# How many free buffers are kept: as many as one busy upload uses. The kernel takes a moment to hand out new ones.
KEPT_BUFFERS = 8


class Budget:
    """So many bytes, shared, handed out in the order in which they were asked for."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = size
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def used(self) -> int:
        """Bytes handed out."""
        return self._size - self._free

    async def acquire(self, amount: int) -> None:
        """Take *amount* bytes, waiting until they're there; one that's larger than all there is takes all there is."""
        amount = min(amount, self._size)
        if not self._waiting and amount <= self._free:
            self._free -= amount
            return
        turn = trio.Event()
        place = (amount, turn)
        self._waiting.append(place)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self._free += amount
            else:
                self._waiting.remove(place)
            self._serve()
            raise

    def release(self, amount: int) -> None:
        """Give back what :meth:`acquire` was asked for."""
        self._free += min(amount, self._size)
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            amount, turn = self._waiting.popleft()
            self._free -= amount
            turn.set()


class Buffer:
    """A page-aligned piece of memory that is being filled."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, BUFFER_BYTES)
        self.view = memoryview(self._memory)
        self.filled = 0

    @property
    def full(self) -> bool:
        return self.filled == BUFFER_BYTES

    @property
    def content(self) -> memoryview:
        return self.view[: self.filled]

    def fill(self, data: memoryview) -> int:
        """Copy as much of *data* as fits; returns how much."""
        size = min(len(data), BUFFER_BYTES - self.filled)
        self.view[self.filled : self.filled + size] = data[:size]
        self.filled += size
        return size


class BufferPool:
    """Buffers out of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept: list[Buffer] = []

    async def take(self) -> Buffer:
        """An empty buffer, as soon as the budget has one.

        Raises:
            OSError: the system has no memory for it.
        """
        await self._budget.acquire(BUFFER_BYTES)
        try:
            return self._kept.pop() if self._kept else Buffer()
        except OSError:
            self._budget.release(BUFFER_BYTES)
            raise

    def give_back(self, buffer: Buffer) -> None:
        """Nobody uses the buffer any more."""
        buffer.filled = 0
        if len(self._kept) < KEPT_BUFFERS:
            self._kept.append(buffer)
        self._budget.release(BUFFER_BYTES)
