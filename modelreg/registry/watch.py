"""Who waits for new versions of a model.

A watcher has no queue: it remembers the number it was at, and looks up in the index what comes after it. However slowly it reads, it costs
nothing and holds up nobody.
"""

from __future__ import annotations

import trio


class Bell:
    """Wakes everybody who waits for it, each time it's rung."""

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
