"""Waking one task: what is set before somebody waits isn't lost."""

from __future__ import annotations

import anyio


class Signal:
    """An event for one waiter that resets itself."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: anyio.Event | None = None

    def set(self) -> None:
        """Wake the waiter, or let the next wait return at once."""
        self._set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Until it's set. May return early when it was set for something that was seen already."""
        if not self._set:
            self._event = anyio.Event()
            try:
                await self._event.wait()
            finally:
                self._event = None
        self._set = False
