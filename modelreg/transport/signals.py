"""An event for exactly one waiting task, set again and again.

A `trio.Event` can be set only once, so each wait would need a new one; the transport waits for "more input" and "room to
send" hundreds of thousands of times a second. A signal that is set while nobody waits is remembered for the next wait.
"""

from __future__ import annotations

import trio
import trio.lowlevel


class Signal:
    """Wakes the one task that waits for it."""

    __slots__ = ("_set", "_task")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._set = False

    def set(self) -> None:
        """Wake the waiting task, or the next one to wait."""
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)
        else:
            self._set = True

    async def wait(self) -> None:
        """Wait until `set` is called. Always a checkpoint."""
        if self._set:
            self._set = False
            await trio.lowlevel.checkpoint()
            return
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
