"""A bell: tells all tasks that wait that something has changed, and leaves it to them to look at it.

Notifications are not stored: check the state, then wait, with no checkpoint between the two.
"""

from __future__ import annotations

from trio.lowlevel import ParkingLot

AT_ONCE = 128
"""Tasks that are woken and haven't run yet, at most: 1.5 ms of work. 13,000 at once take the event loop half a second.

Those of a connection that are woken together share a write, so fewer would cost more: with 32 a version took its 1,000
watchers' connections 125 writes.
"""


class Bell:
    """Wakes all tasks that wait for it, each time it's rung, a few at a time. (`trio.Event` is for once.)"""

    def __init__(self) -> None:
        self._waiting = ParkingLot()  # for the next time
        self._called = ParkingLot()  # to be woken, since it rang
        self._woken = 0  # and haven't run yet

    def ring(self) -> None:
        """Wake all tasks that wait now."""
        if not self._waiting:
            return
        if self._called:
            self._waiting.repark_all(self._called)
        else:
            self._waiting, self._called = self._called, self._waiting
        self._wake()

    async def wait(self) -> None:
        """Wait for the next time."""
        await self._waiting.park()
        self._woken -= 1
        self._wake()

    def _wake(self) -> None:
        if self._called and self._woken <= AT_ONCE // 2:  # many at once cost less than one by one
            self._woken += len(self._called.unpark(count=AT_ONCE - self._woken))
