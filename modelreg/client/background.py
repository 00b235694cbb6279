"""What belongs to an event loop: tasks that outlive the call that starts them, like a connection's or a tracked model's.

The interface has calls that leave something running, and no block that it runs in. So these tasks belong to the event loop:
on Trio they are system tasks, on asyncio ordinary ones, and both end with the loop at the latest. Each is kept here until
it ends, and `close` ends all of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel

_logger = logging.getLogger("modelreg.client")

FORKED = "this client was made before a fork, and its connections belong to the parent process: make a Context in each process"


class BackgroundTask:
    """A task that was spawned. `cancel` may be called at any time, `wait` returns when it has ended."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    def cancel(self) -> None:
        self._scope.cancel()

    async def wait(self) -> None:
        await self._ended.wait()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def _run(self, function: Callable[[], Awaitable[None]], tasks: set[BackgroundTask]) -> None:
        try:
            with self._scope:
                await function()
        except Exception:  # nobody waits for it, and on Trio it would end the program
            _logger.exception("a background task failed: please report this")
        finally:
            tasks.discard(self)
            self._ended.set()


class Background:
    """The background tasks of one registry, on the event loop that runs when it's made."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = anyio.lowlevel.current_token()
        self._tasks: set[BackgroundTask] = set()
        self._handles: set[asyncio.Task[None]] = set()

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one in which they run."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raise `RuntimeError` on another event loop or in another process, where a call would wait for ever."""
        if self.forked:
            raise RuntimeError(FORKED)
        if anyio.lowlevel.current_token() != self._loop:
            raise RuntimeError(
                "this client belongs to another event loop: call get_model_registry_v2 on each event loop that needs a registry, "
                "or use modelreg.client.blocking, which works in all threads"
            )

    def spawn(self, function: Callable[[], Awaitable[None]], name: str) -> BackgroundTask:
        """Run a function in a task of its own, on the event loop that runs now."""
        task = BackgroundTask()
        if _on_trio():
            import trio.lowlevel  # 55 ms that programs on asyncio don't need

            trio.lowlevel.spawn_system_task(task._run, function, self._tasks, name=name)  # noqa: SLF001
        else:
            handle = asyncio.create_task(task._run(function, self._tasks), name=name)  # noqa: SLF001
            self._handles.add(handle)  # the loop itself holds tasks weakly
            handle.add_done_callback(self._handles.discard)
        self._tasks.add(task)
        return task

    async def close(self) -> None:
        """Cancel all tasks, and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            for task in tasks:
                await task.wait()


def call_soon(function: Callable[[], object]) -> Callable[[], None]:
    """What calls a function on the event loop that runs now, from all threads, and from the collection of garbage.

    It does nothing once the loop has ended, nor in a forked child, which shares the parent's means of waking the loop.
    """
    pid = os.getpid()
    soon: Callable[[Callable[[], object]], object]
    if _on_trio():
        import trio.lowlevel  # 55 ms that programs on asyncio don't need

        soon = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        soon = asyncio.get_running_loop().call_soon_threadsafe

    def call() -> None:
        if os.getpid() == pid:
            with suppress(RuntimeError):  # of both libraries, where the loop has ended
                soon(function)

    return call


def _on_trio() -> bool:
    """Whether this is a Trio task. Asked instead of asyncio, as a guest Trio runs within an asyncio loop."""
    if "trio" not in sys.modules:
        return False
    import trio.lowlevel  # 55 ms that programs on asyncio don't need

    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
