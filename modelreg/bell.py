"""A bell: tells everybody who waits that something has changed, and leaves it to them to look at what.

It keeps nothing: whoever comes after it rang waits for the next time. So look first, then wait, without a checkpoint between the two.
"""

from __future__ import annotations

import trio


class Bell:
    """Wakes everybody who waits for it, each time it's rung. (`trio.Event` is for once.)"""

    def __init__(self) -> None:
        self._next = trio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        if self._next.statistics().tasks_waiting:
            self._next.set()
            self._next = trio.Event()

    async def wait(self) -> None:
        """Wait for the next time."""
        await self._next.wait()
