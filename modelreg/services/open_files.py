"""Open files: what uploads and large downloads may have of the process's descriptors, and each client of that.

A call whose client has its share waits until another one of the same client has ended. Calls that don't go on end by
themselves (--stall_timeout).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from modelreg.transport.places import host_of
from modelreg.transport.requests import Request

# Of all open files of the process: half may be connections, and a quarter large transient versions (`transient.FILES_SHARE`).
FILES_SHARE = 5

# Of the files that are for calls: those of one address, and of one connection.
HOST_SHARE = 2
CONNECTION_SHARE = 4

# Semaphores of clients that have no file open, at most: making one for each upload took 2 µs.
MOST_KEPT = 1000


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
        # Those that are in use, and some that were.
        self._hosts: dict[str, trio.Semaphore] = {}
        self._connections: dict[str, trio.Semaphore] = {}

    @asynccontextmanager
    async def one(self, request: Request) -> AsyncIterator[None]:
        """One file, for a call; waits until it's to be had."""
        peer = request.peer
        host = host_of(peer)
        # From the small to the large: who waits for its own holds up no others.
        await _take(self._connections, peer, self._of_connection)
        try:
            await _take(self._hosts, host, self._of_host)
            try:
                await _acquire(self._all)
                try:
                    yield
                finally:
                    self._all.release()
            finally:
                _give(self._hosts, host, self._of_host)
        finally:
            _give(self._connections, peer, self._of_connection)


async def _acquire(semaphore: trio.Semaphore) -> None:
    try:
        semaphore.acquire_nowait()
    except trio.WouldBlock:
        await semaphore.acquire()


async def _take(shares: dict[str, trio.Semaphore], key: str, size: int) -> None:
    """Take one of a key's share, which begins with *size*."""
    semaphore = shares.get(key)
    if semaphore is None:
        semaphore = shares[key] = trio.Semaphore(size)
    await _acquire(semaphore)


def _give(shares: dict[str, trio.Semaphore], key: str, size: int) -> None:
    shares[key].release()
    if len(shares) > MOST_KEPT:
        for unused in [key for key, semaphore in shares.items() if semaphore.value == size]:
            del shares[unused]
