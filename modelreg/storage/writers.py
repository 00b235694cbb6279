"""Content on its way in: hashed as the bytes arrive, and gathered in memory or written to a file.

Small content is gathered in memory: no threads, no buffers. Large content, and small content where there's no memory left to
gather it, goes through a pipeline::

    write() ──copies──> buffer ──full──> hash, in a thread ───────────┐
    room(), filled() ──>  ^        └───> write to file, in a thread ──┤
                          └──────────── both done: the next one ──────┘

Memory is a few buffers, whatever the content's size. A buffer that isn't full goes the same way when other uploads wait for one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Protocol

import trio

from modelreg.storage.buffers import Budget, Buffer, BufferPool
from modelreg.storage.durable import write_all
from modelreg.storage.stages import Stage
from modelreg.storage.threads import Threads

# Content up to this size is gathered in memory. SHA-256 of it takes the event loop some 70 µs, a thread's start and return as much.
SMALL_BYTES = 128 << 10

# How many buffers one upload may fill ahead of hashing and writing.
BUFFERS_AHEAD = 4

# From this size on, bytes go to the disk past the page cache where the file system allows it. 256 MiB stored and then fetched at once take
# 0.66 s so (the fetch reads the disk), and 1.1 s through the page cache, where writing costs three times the CPU time.
DIRECT_BYTES = 8 << 20

# What O_DIRECT wants offsets and sizes to be multiples of: the largest logical block in use.
BLOCK_BYTES = 4096


# Runs a function in a thread, and raises what there is to tell an upload of.
RunInThread = Callable[[Callable[[], None]], Awaitable[None]]


class ContentWriter(Protocol):
    """Takes content piece by piece."""

    async def write(self, data: memoryview) -> None:
        """Take the next bytes; *data* may be reused when this returns."""

    def room(self, limit: int) -> memoryview | None:
        """Memory for up to *limit* of the next bytes, in place of :meth:`write`: to be filled at once, and told to :meth:`filled`. None
        where there's none just now.
        """

    def filled(self, count: int) -> None:
        """The next *count* bytes are where :meth:`room` has said."""

    async def finish(self) -> bytes:
        """No more bytes come: the SHA-256 of all there were."""


class MemoryWriter:
    """Gathers small content."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._hash = hashlib.sha256()

    async def write(self, data: memoryview) -> None:
        self._hash.update(data)
        self.data += data

    def room(self, limit: int) -> memoryview | None:
        return None

    def filled(self, count: int) -> None:
        raise NotImplementedError

    async def finish(self) -> bytes:
        return self._hash.digest()


@contextmanager
def small_writer(budget: Budget, size: int) -> Iterator[MemoryWriter | None]:
    """A writer that gathers *size* bytes, which are the budget's until the context ends. None where that's too much, or the
    budget has no more: it could be held by clients that never send the rest, so that nobody waits for it.
    """
    if size > SMALL_BYTES or not budget.take_now(size):
        yield None
        return
    try:
        yield MemoryWriter()
    finally:
        budget.release(size)


class FileWriter:
    """The pipeline; made by :func:`file_writer` only."""

    def __init__(self, fd: int | None, pool: BufferPool, threads: Threads, run: RunInThread) -> None:
        self._pool = pool
        self._hash = hashlib.sha256()
        self._filling: Buffer | None = None
        self._written = 0
        # Those passed on that have not come back, and how many have.
        self._ahead: deque[Buffer] = deque()
        self._returned = 0
        # Set when there's room for more of them. The threads only speak of their progress while somebody waits for it.
        self._room = trio.Event()
        self._room_wanted = False
        self._ending = False
        self._loop = trio.lowlevel.current_trio_token()
        self._stages = [Stage(self._update_hash, threads.hash, threads.hash_crowded, self._progress, self._take_back)]
        if fd is not None:
            write = partial(self._write_to_file, fd)
            self._stages.append(Stage(write, run, threads.file_crowded, self._progress, self._take_back))

    async def write(self, data: memoryview) -> None:
        while data:
            self._raise_failure()
            if self._filling is None:
                self._filling = await self._next_buffer()
            data = data[self._filling.fill(data) :]
            if self._filling.full:
                self._pass_on()

    def room(self, limit: int) -> memoryview | None:
        if limit <= 0 or self._ending or self._failed:
            return None
        if self._filling is None:
            self._take_back()
            if len(self._ahead) >= BUFFERS_AHEAD:
                return None
            self._filling = self._pool.take_now(self._pass_on)
            if self._filling is None:
                return None
        return self._filling.room[:limit]

    def filled(self, count: int) -> None:
        assert self._filling is not None
        self._filling.filled += count
        if self._filling.full:
            self._pass_on()

    async def finish(self) -> bytes:
        self._pass_on()
        await self._end()
        self._raise_failure()
        return self._hash.digest()

    def start(self, nursery: trio.Nursery) -> None:
        for stage in self._stages:
            nursery.start_soon(self._run, stage)

    async def close(self) -> None:
        """Stop, and give back every buffer. When this returns no thread uses the file any more."""
        for stage in self._stages:
            stage.drop()
        if self._filling is not None:  # before anything else can happen: nothing takes what is passed on from now on
            self._pool.give_back(self._filling)
            self._filling = None
        with trio.CancelScope(shield=True):  # no longer than what the threads are at just now
            await self._end()

    async def _next_buffer(self) -> Buffer:
        self._room_wanted = True
        try:
            self._take_back()
            while len(self._ahead) >= BUFFERS_AHEAD:
                self._room = trio.Event()
                await self._room.wait()
            return await self._pool.take(self._pass_on)
        finally:
            self._room_wanted = False

    def _pass_on(self) -> None:
        """Hash and write what has been filled; nothing else is filled until the next bytes come."""
        if self._filling is None:
            return
        buffer, self._filling = self._filling, None
        self._pool.filled(buffer)
        self._ahead.append(buffer)
        for stage in self._stages:
            stage.add(buffer)

    def _progress(self) -> None:
        """A stage has done with a buffer; this runs in its thread."""
        if self._room_wanted:
            self._loop.run_sync_soon(self._take_back, idempotent=True)

    def _take_back(self) -> None:
        """Give back the buffers that all stages have done with."""
        done = min(stage.done for stage in self._stages)
        while self._returned < done:
            self._returned += 1
            self._pool.give_back(self._ahead.popleft())
        if len(self._ahead) < BUFFERS_AHEAD:
            self._room.set()

    async def _end(self) -> None:
        """Wait until all is done that was passed on."""
        for stage in self._stages:
            if not self._ending:
                stage.add(None)
        self._ending = True
        for stage in self._stages:
            await stage.finished.wait()

    async def _run(self, stage: Stage) -> None:
        # Its end is the upload's to say: a stage that's cancelled by itself would pass for one that has done its work.
        with trio.CancelScope(shield=True):
            await stage.run()

    @property
    def _failed(self) -> bool:
        return any(stage.failure is not None for stage in self._stages)

    def _raise_failure(self) -> None:
        for stage in self._stages:
            if stage.failure is not None:
                raise stage.failure

    def _update_hash(self, buffer: Buffer) -> None:
        self._hash.update(buffer.content)

    def _write_to_file(self, fd: int, buffer: Buffer) -> None:
        _write_buffer(fd, buffer.content, self._written)
        self._written += buffer.filled


@asynccontextmanager
async def file_writer(
    fd: int | None, pool: BufferPool, threads: Threads, nursery: trio.Nursery, run: RunInThread | None = None
) -> AsyncIterator[FileWriter]:
    """A writer of large content to an open file, from its beginning. The file isn't synced, nor closed.

    With no file the content is only hashed. *run* runs what writes, in place of :meth:`Threads.file`.

    The pipeline's stages run in *nursery*, and have ended with the context.
    """
    writer = FileWriter(fd, pool, threads, run or threads.file)
    writer.start(nursery)
    try:
        yield writer
    finally:
        await writer.close()


def bypass_page_cache(fd: int) -> None:
    """Let writes go past the page cache where the file system can do that; where it can't (tmpfs, some overlays), nothing changes."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)


def _write_buffer(fd: int, content: memoryview, offset: int) -> None:
    """Write a buffer's content. What isn't a whole number of blocks takes the way of the page cache, and so does all that follows:
    mostly nothing, as it's the file's end.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_DIRECT:
        written = _write_blocks(fd, content, offset)
        content, offset = content[written:], offset + written
        if content:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    write_all(fd, content, offset)


def _write_blocks(fd: int, content: memoryview, offset: int) -> int:
    """Write whole blocks past the page cache, as many as can be; returns how many bytes that were."""
    written = 0
    blocks = len(content) - len(content) % BLOCK_BYTES
    try:
        while written < blocks and not written % BLOCK_BYTES:  # a short write may leave half a block
            written += os.pwrite(fd, content[written:blocks], offset + written)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that takes the flag, but wants larger blocks
            raise
    return written
