"""The memory that uploads share: a budget of bytes, and the aligned buffers that come out of it.

An upload that wants more than is left waits, first come, first served; it doesn't read from its stream meanwhile, so that the
wait reaches the client as flow control. A client that's slow, or has stalled, must not make others wait: while somebody does, a buffer
that has been filling for too long is handed in as it is.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable

import trio

# Large enough that a thread's start (some 60 µs) vanishes beside hashing it (some 1.1 ms), small enough that
# a hundred uploads at once find one each. Buffers of half the size cost some 5 % more CPU time.
BUFFER_BYTES = 2 << 20

# How many free buffers are kept: as many as one busy upload uses. The kernel takes a moment to hand out new ones.
KEPT_BUFFERS = 4

# How long a buffer may be filling while others wait for one, in seconds: at 20 MB/s and more it's full before that.
FILLING_SECONDS = 0.1


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

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for bytes."""
        return bool(self._waiting)

    def take_now(self, amount: int) -> bool:
        """Take *amount* bytes if they're there and nobody waits; whether that was so."""
        amount = min(amount, self._size)
        if self._waiting or amount > self._free:
            return False
        self._free -= amount
        return True

    async def acquire(self, amount: int) -> None:
        """Take *amount* bytes, waiting until they're there; one that's larger than all there is takes all there is."""
        if self.take_now(amount):
            return
        turn = trio.Event()
        place = (min(amount, self._size), turn)
        self._waiting.append(place)
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_set():
                self._free += place[0]
            else:
                self._waiting.remove(place)
            self._serve()
            raise

    def release(self, amount: int) -> None:
        """Give back what was asked for."""
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

    @property
    def room(self) -> memoryview:
        """What isn't filled yet."""
        return self.view[self.filled :]

    def fill(self, data: memoryview) -> int:
        """Copy as much of *data* as fits; returns how much."""
        room = self.room
        size = min(len(data), len(room))
        room[:size] = data[:size]
        self.filled += size
        return size


class BufferPool:
    """Buffers out of a budget.

    Arguments:
        budget: where their memory comes from.
        nursery: where the task runs that gets buffers back from slow uploads, while anybody waits for one.
    """

    def __init__(self, budget: Budget, nursery: trio.Nursery) -> None:
        self._budget = budget
        self._nursery = nursery
        self._kept: list[Buffer] = []
        # Those being filled, the oldest first: since when, and whom to ask for it.
        self._filling: dict[Buffer, tuple[float, Callable[[], None]]] = {}
        self._calling_in = False

    async def take(self, hand_in: Callable[[], None]) -> Buffer:
        """An empty buffer to fill, as soon as the budget has one.

        When others have to wait, *hand_in* is called: it passes the buffer on as it is, without waiting for anything.

        Raises:
            OSError: the system has no memory for it.
        """
        if not self._budget.take_now(BUFFER_BYTES):
            if not self._calling_in:
                self._calling_in = True
                self._nursery.start_soon(self._call_in)
            await self._budget.acquire(BUFFER_BYTES)
        return self._take(hand_in)

    def take_now(self, hand_in: Callable[[], None]) -> Buffer | None:
        """As :meth:`take`, where nobody has to wait for it, and there's nothing to raise."""
        if not self._budget.take_now(BUFFER_BYTES):
            return None
        try:
            return self._take(hand_in)
        except OSError:
            return None

    def _take(self, hand_in: Callable[[], None]) -> Buffer:
        try:
            buffer = self._kept.pop() if self._kept else Buffer()
        except OSError:
            self._budget.release(BUFFER_BYTES)
            raise
        self._filling[buffer] = trio.current_time(), hand_in
        return buffer

    def filled(self, buffer: Buffer) -> None:
        """A buffer is on its way, and will be given back soon."""
        del self._filling[buffer]

    def give_back(self, buffer: Buffer) -> None:
        """Nobody uses the buffer any more."""
        self._filling.pop(buffer, None)
        buffer.filled = 0
        if len(self._kept) < KEPT_BUFFERS:
            self._kept.append(buffer)
        self._budget.release(BUFFER_BYTES)

    async def _call_in(self) -> None:
        """While somebody waits, get the buffers that have been filling for too long."""
        try:
            await trio.sleep(FILLING_SECONDS)
            while self._budget.waited_for:
                taken_before = trio.current_time() - FILLING_SECONDS
                for since, hand_in in list(self._filling.values()):
                    if since > taken_before:
                        break
                    hand_in()
                await trio.sleep(FILLING_SECONDS)
        finally:
            self._calling_in = False
