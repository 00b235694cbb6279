"""Open files: what uploads and large downloads may have of the process's descriptors, and each client of that.

A call whose client has its share waits until another one of the same client has ended. Calls that don't go on end by
themselves (--stall_timeout).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

import trio

from modelreg.transport import Request, host_of

# Of all open files of the process: half may be connections, and a quarter large transient versions (`transient.FILES_SHARE`).
FILES_SHARE = 5

# Of the files that are for calls: those of one address, and of one connection.
HOST_SHARE = 2
CONNECTION_SHARE = 4


class OpenFiles:
    """The files that calls may have open.

    Arguments:
        process_files: how many files the process may have open.
    """

    def __init__(self, process_files: int) -> None:
        total = max(1, process_files // FILES_SHARE)
        self._all = trio.Semaphore(total)
        self._of_host = max(1, total // HOST_SHARE)
        self._of_connection = max(1, total // CONNECTION_SHARE)
        self._hosts: WeakValueDictionary[str, trio.Semaphore] = WeakValueDictionary()
        self._connections: WeakValueDictionary[str, trio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def one(self, request: Request) -> AsyncIterator[None]:
        """One file, for a call; waits until it's to be had."""
        peer = request.peer
        async with AsyncExitStack() as stack:
            # From the small to the large: who waits for its own holds up no others.
            for semaphore in (
                _shared(self._connections, peer, self._of_connection),
                _shared(self._hosts, host_of(peer), self._of_host),
                self._all,
            ):
                try:
                    semaphore.acquire_nowait()
                except trio.WouldBlock:
                    await semaphore.acquire()
                stack.callback(semaphore.release)
            yield


def _shared(semaphores: MutableMapping[str, trio.Semaphore], key: str, size: int) -> trio.Semaphore:
    """The semaphore of a key; it's there for as long as it's in use."""
    semaphore = semaphores.get(key)
    if semaphore is None:
        semaphores[key] = semaphore = trio.Semaphore(size)
    return semaphore
