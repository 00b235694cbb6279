"""Worker threads: for work that blocks or computes, beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
from typing_extensions import TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(function: Callable[[Unpack[Ts]], T], *args: Unpack[Ts], abandon: bool = False) -> T:
    """Call a function in a worker thread, and return its result. Cancelled, it's waited for, or left to itself with *abandon*.

    Programs still use the client when their main thread has ended: in threads that live longer, and in functions of `atexit`. Since
    Python 3.12 no thread can be started then. The function runs on the event loop in that case.
    """
    begun = False

    def call() -> T:
        nonlocal begun
        begun = True
        return function(*args)

    try:
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=abandon)
    except RuntimeError as error:
        if begun or not is_late(error):
            raise
    return function(*args)


def is_late(error: RuntimeError) -> bool:
    """Whether this is Python's error for a thread that is to be started while the program ends."""
    return "at interpreter shutdown" in str(error)
