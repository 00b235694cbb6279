"""Work that's done to one buffer after the other, in a thread.

A thread's start and return costs the event loop as much as hashing 100 KB does. So that it isn't paid for each buffer, a thread goes on
with the next one, and stays a moment where there's none yet; unless somebody else waits for a thread: then it leaves after each.
"""

from __future__ import annotations

import queue
from collections.abc import Awaitable, Callable

import trio

from modelreg.storage.buffers import Buffer

# How long a thread stays, in seconds: buffers of an upload with more than 400 MB/s follow each other faster.
STAY_SECONDS = 0.005


class Stage:
    """What is done to every buffer, in order.

    Arguments:
        work: do it; this runs in a thread.
        run: runs a function in a thread, and raises what there is to tell an upload of.
        crowded: whether others wait for a thread.
        progress: called in the thread after each buffer.
        resting: called when the thread has left.

    Attributes:
        done: how many buffers have been worked on, or dropped.
        failure: why the rest is being dropped.
        finished: set when all is done, and no thread is at it any more.
    """

    def __init__(
        self,
        work: Callable[[Buffer], None],
        run: Callable[[Callable[[], None]], Awaitable[None]],
        crowded: Callable[[], bool],
        progress: Callable[[], None],
        resting: Callable[[], None],
    ) -> None:
        self.done = 0
        self.failure: Exception | None = None
        self.finished = trio.Event()
        self._work = work
        self._run_in_thread = run
        self._crowded = crowded
        self._progress = progress
        self._resting = resting
        self._waiting: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self._arrived = trio.Event()
        self._dropping = False
        self._last_seen = False

    def add(self, buffer: Buffer | None) -> None:
        """Work on a buffer, as soon as those before it are done; None says that it was the last."""
        self._waiting.put(buffer)
        self._arrived.set()

    def drop(self) -> None:
        """Nobody wants what waits any more."""
        self._dropping = True

    async def run(self) -> None:
        """Work off what is added, until the end."""
        while not self._last_seen:
            if self._waiting.empty():
                self._arrived = trio.Event()
                await self._arrived.wait()
            try:
                await self._run_in_thread(self._work_off)
            except Exception as error:  # noqa: BLE001  # whatever it was, it's the upload's to hear of
                self.failure = self.failure or error
                self._dropping = True
                while not self._waiting.empty():  # there may be no thread to do it
                    self._take(self._waiting.get_nowait())
            self._resting()
        del self._work, self._progress, self._resting  # they refer to the upload, which refers to its stages
        self.finished.set()

    def _work_off(self) -> None:
        while not self._last_seen:
            try:
                buffer = self._waiting.get(timeout=STAY_SECONDS)
            except queue.Empty:
                return
            self._take(buffer)
            self._progress()
            if self._crowded():
                return  # to queue again, behind those who wait

    def _take(self, buffer: Buffer | None) -> None:
        if buffer is None:
            self._last_seen = True
            return
        try:
            if not self._dropping:
                self._work(buffer)
        finally:
            self.done += 1
