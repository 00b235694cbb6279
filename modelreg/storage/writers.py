"""Content on its way in: hashed as the bytes arrive, and gathered in memory or written to a file.

Small content is gathered in memory: no threads, no buffers. Large content, and small content where there's no memory left to
gather it, goes through a pipeline::

    write() ──copies──> buffer ──full──> hash, in a thread ───────────┐
                          ^        └───> write to file, in a thread ──┤
                          └──────────── both done: the next one ──────┘

Both stages take all the buffers that wait for them at once, so that under load a thread's start is paid once for many. Memory is a
few buffers, whatever the content's size. A buffer that isn't full goes the same way when other uploads wait for one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import trio

from modelreg.storage.buffers import Budget, Buffer, BufferPool
from modelreg.storage.durable import write_all
from modelreg.storage.threads import Threads

# Content up to this size is gathered in memory. SHA-256 of it takes the event loop some 70 µs, a thread's start and return as much.
SMALL_BYTES = 128 << 10

# How many buffers one upload may fill ahead of hashing and writing.
BUFFERS_AHEAD = 4

# From this size on, bytes go to the disk past the page cache where the file system allows it.
DIRECT_BYTES = 8 << 20

# What O_DIRECT wants offsets and sizes to be multiples of: the largest logical block in use.
BLOCK_BYTES = 4096


class ContentWriter(Protocol):
    """Takes content piece by piece."""

    async def write(self, data: memoryview) -> None:
        """Take the next bytes; *data* may be reused when this returns."""

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


class _Stage:
    """One thing that's done to every buffer, in order."""

    def __init__(self, work: Callable[[Sequence[Buffer]], Awaitable[None]]) -> None:
        self.work = work
        self.finished = trio.Event()
        self._waiting, self._arrived = trio.open_memory_channel[Buffer](BUFFERS_AHEAD)

    def add(self, buffer: Buffer) -> None:
        self._waiting.send_nowait(buffer)

    async def finish(self) -> None:
        """Wait until all is done that was added."""
        self._waiting.close()
        await self.finished.wait()

    async def batches(self) -> AsyncIterator[Sequence[Buffer]]:
        """Whatever waits, each time that something does."""
        async for buffer in self._arrived:
            batch = [buffer]
            with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    batch.append(self._arrived.receive_nowait())
            yield batch


class FileWriter:
    """The pipeline; made by :func:`file_writer` only."""

    def __init__(self, fd: int, pool: BufferPool, threads: Threads) -> None:
        self._fd = fd
        self._pool = pool
        self._threads = threads
        self._hash = hashlib.sha256()
        self._filling: Buffer | None = None
        self._written = 0
        self._ahead = trio.Semaphore(BUFFERS_AHEAD)
        self._failure: Exception | None = None
        self._closed = False
        # A buffer is given back by the last of the stages that use it.
        self._users: dict[Buffer, int] = {}
        self._stages = [_Stage(self._hash_all), _Stage(self._write_all)]

    async def write(self, data: memoryview) -> None:
        while data:
            if self._failure is not None:
                raise self._failure
            if self._filling is None:
                self._filling = await self._next_buffer()
            data = data[self._filling.fill(data) :]
            if self._filling.full:
                self._pass_on()

    async def finish(self) -> bytes:
        self._pass_on()
        await self._drain()
        if self._failure is not None:
            raise self._failure
        return self._hash.digest()

    def start(self, nursery: trio.Nursery) -> None:
        for stage in self._stages:
            nursery.start_soon(self._run, stage)

    async def close(self) -> None:
        """Stop, and give back every buffer. When this returns no thread uses the file any more."""
        self._closed = True
        with trio.CancelScope(shield=True):  # no longer than what the threads are at just now
            await self._drain()
        if self._filling is not None:
            self._give_back(self._filling)
            self._filling = None

    async def _next_buffer(self) -> Buffer:
        await self._ahead.acquire()
        try:
            return await self._pool.take(self._pass_on)
        except (trio.Cancelled, OSError):
            self._ahead.release()
            raise

    def _pass_on(self) -> None:
        """Hash and write what has been filled; nothing else is filled until the next bytes come."""
        if self._filling is None:
            return
        buffer, self._filling = self._filling, None
        self._pool.filled(buffer)
        self._users[buffer] = len(self._stages)
        for stage in self._stages:
            stage.add(buffer)

    async def _drain(self) -> None:
        for stage in self._stages:
            await stage.finish()

    async def _run(self, stage: _Stage) -> None:
        # Its end is the upload's to say: a stage that's cancelled by itself would pass for one that has done its work.
        with trio.CancelScope(shield=True):
            async for buffers in stage.batches():
                try:
                    if self._failure is None and not self._closed:
                        await stage.work(buffers)
                except Exception as error:  # noqa: BLE001  # whatever it was, it's the upload's to hear of
                    self._failure = error
                finally:
                    self._used(buffers)
        stage.finished.set()

    def _used(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            self._users[buffer] -= 1
            if not self._users[buffer]:
                del self._users[buffer]
                self._give_back(buffer)

    def _give_back(self, buffer: Buffer) -> None:
        self._pool.give_back(buffer)
        self._ahead.release()

    async def _hash_all(self, buffers: Sequence[Buffer]) -> None:
        def work() -> None:
            for buffer in buffers:
                self._hash.update(buffer.content)

        await self._threads.hash(work)

    async def _write_all(self, buffers: Sequence[Buffer]) -> None:
        def work() -> None:
            for buffer in buffers:
                _write_buffer(self._fd, buffer.content, self._written)
                self._written += buffer.filled

        await self._threads.file(work)


@asynccontextmanager
async def file_writer(fd: int, pool: BufferPool, threads: Threads, nursery: trio.Nursery) -> AsyncIterator[FileWriter]:
    """A writer of large content to an open file, from its beginning. The file isn't synced, nor closed.

    The pipeline's stages run in *nursery*, and have ended with the context.
    """
    writer = FileWriter(fd, pool, threads)
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
