"""The memory of replies: how much a server spends on them, and who waits for it.

A reply takes memory from its making until the kernel has it, and a client that doesn't read leaves it there. So a call
waits first and makes its reply then::

    Gate.wait        until the connection's replies take no more than `REPLY_BACKLOG`, and the server's fit into its pool
    Gate.load        reads a `LoadedMessage`, which is counted from before it is read
    Gate.make        makes a `PiecewiseMessage`: at once where one step is enough; else one long reply at a time
    Outbound         counts what is queued, until it has been written (`ReplyMemory.take`, `give`)

While the pool is full, a connection may still hold its `share` of it. So a client that reads never waits for one that
doesn't, unless its own replies are long. `Server` ends the slowest replies while anybody waits for the pool.

Making a long reply takes time, too, so it's done in steps of `STEP_SECONDS` with a checkpoint after each.
"""

from __future__ import annotations

import time
from typing import Protocol

import trio
import trio.lowlevel

from modelreg.grpc.status import Code

from ._purerpc import failure
from .limits import Limits
from .pieces import LoadedMessage, PiecewiseMessage
from .signals import Signal

REPLY_BACKLOG = 16 * 1024 * 1024
"""No reply is made while more than this is queued for its connection in memory."""

STEP_SECONDS = 0.0005
"""How long a task goes on making a reply before others have their turn. A list of 100,000 versions takes 0.3 s altogether."""

LOOK_BYTES = 2048
"""So often it looks at the clock: some 15 versions, in 40 us."""

CHUNK_BYTES = 64 * 1024
"""Pieces are joined to chunks of this size, which are sent and freed one by one."""


class ReplyMemory:
    """The pool that all replies of a server share.

    Attributes:
        size: of the pool, in bytes.
        used: bytes that replies take.
        limit: the size of the largest reply, in bytes.
        share: what a connection may hold even if the pool is full.
        long: held while a long reply is made. Two half-made ones could wait for each other's memory.
    """

    def __init__(self, limits: Limits) -> None:
        self.limit = limits.max_reply_bytes
        self.patience = limits.stall_timeout
        self.share = max(limits.reply_pool, limits.max_reply_bytes) // limits.max_connections
        self.long = trio.Lock()
        self.size = max(limits.reply_pool, limits.max_reply_bytes)
        self.used = 0
        self._waiting: dict[Signal, None] = {}

    @property
    def full(self) -> bool:
        """Whether replies have to wait."""
        return self.used >= self.size

    @property
    def waited_for(self) -> bool:
        """Whether a call waits for memory."""
        return bool(self._waiting)

    def take(self, size: int) -> None:
        """Count bytes of a reply."""
        self.used += size

    def give(self, size: int) -> None:
        """Count bytes that a reply takes no more, and wake the next call."""
        self.used -= size
        if self._waiting and not self.full:
            signal = next(iter(self._waiting))
            del self._waiting[signal]
            signal.set()

    def ask(self, signal: Signal) -> None:
        """Have a signal set when there is memory, first come, first served. It sets once; ask again if that was in vain."""
        self._waiting.setdefault(signal)

    def leave(self, signal: Signal) -> None:
        """Stop waiting; the next call is woken in its place."""
        self._waiting.pop(signal, None)
        self.give(0)

    async def make(self, message: PiecewiseMessage) -> list[bytearray]:
        """Make a long message in steps. What it takes is counted while it is made, and not any more when it's returned."""
        making = _Making(message, self.limit)
        signal = Signal()
        counted = 0
        try:
            while not making.done:
                while self.full and self.used > counted:  # what others hold will be read, or given up
                    self.ask(signal)
                    await signal.wait()
                await trio.lowlevel.checkpoint()
                making.step()
                self.take(making.size - counted)
                counted = making.size
        finally:
            self._waiting.pop(signal, None)
            self.give(counted)
        return making.chunks


class _Making:
    """A message that is being made."""

    def __init__(self, message: PiecewiseMessage, limit: int) -> None:
        self.chunks = [bytearray()]
        self.size = 0
        self.done = False
        self._pieces = message.pieces()
        self._advice = message.advice
        self._limit = limit

    def step(self) -> None:
        """Go on for `STEP_SECONDS`. Raises RESOURCE_EXHAUSTED where the message is larger than a reply may be."""
        until = time.perf_counter() + STEP_SECONDS
        look = self.size + LOOK_BYTES
        chunk = self.chunks[-1]
        for piece in self._pieces:
            self.size += len(piece)
            if self.size > self._limit and self._advice is not None:
                raise failure(
                    Code.RESOURCE_EXHAUSTED,
                    f"the reply is larger than --max_reply_bytes allows, which is {self._limit}: {self._advice}",
                )
            if len(chunk) + len(piece) > CHUNK_BYTES and chunk:
                chunk = bytearray()
                self.chunks.append(chunk)
            chunk += piece
            if self.size >= look:
                if time.perf_counter() >= until:
                    return
                look = self.size + LOOK_BYTES
        self.done = True


class Backlog(Protocol):
    """What a gate looks at: the sending side of its connection."""

    @property
    def buffered(self) -> int:
        """Bytes of replies in memory."""

    def hold(self, size: int) -> None:
        """Count bytes of replies in memory."""

    def let_go(self, size: int) -> None:
        """Count bytes that replies take no more."""


class Gate:
    """Holds up the calls of a connection while too much of their replies, or of everybody's, waits in memory."""

    def __init__(self, outbound: Backlog, memory: ReplyMemory) -> None:
        self._outbound = outbound
        self._memory = memory
        self._queue = trio.Lock()  # only the first of those that wait is woken
        self._waiting = 0
        self._long = trio.Lock()
        self._signal = Signal()

    def _fits(self, size: int) -> bool:
        """Whether the pool has room for a reply, or the connection's share of it has."""
        memory = self._memory
        return memory.used < memory.size or self._outbound.buffered + size <= memory.share

    def _has_room(self) -> bool:
        memory = self._memory
        buffered = self._outbound.buffered
        return buffered <= REPLY_BACKLOG and (memory.used < memory.size or buffered <= memory.share)

    @property
    def is_open(self) -> bool:
        """Whether `wait` would return at once. Looking saves each reply a coroutine."""
        return not self._waiting and self._has_room()

    async def wait(self) -> None:
        """Wait until there is room; no checkpoint if there is.

        Raises RESOURCE_EXHAUSTED where that takes as long as a client may leave a reply unread.
        """
        if self.is_open:
            return
        self._waiting += 1
        try:
            with trio.move_on_after(self._memory.patience):
                async with self._queue:
                    try:
                        while not self._has_room():
                            if self._outbound.buffered <= REPLY_BACKLOG:
                                self._memory.ask(self._signal)
                            await self._signal.wait()
                    finally:
                        self._memory.leave(self._signal)
                return
        finally:
            self._waiting -= 1
        raise failure(
            Code.RESOURCE_EXHAUSTED,
            "there was no memory for the reply, as others weren't read in time: read them, then try again",
        )

    def open(self) -> None:
        """Something was sent or given up."""
        if self._waiting:
            self._signal.set()

    async def load(self, message: LoadedMessage) -> bytes:
        """Read a message when there is room for it. The caller queues it at once.

        It is counted before it is read: thousands of calls that all found room would read theirs at the same time.
        """
        if not self.is_open:
            await self.wait()
        self._outbound.hold(message.size)
        try:
            return await message.load()
        finally:
            self._outbound.let_go(message.size)

    async def make(self, message: PiecewiseMessage) -> list[bytearray]:
        """Make a message when there is room for it. The caller queues it at once.

        Raises RESOURCE_EXHAUSTED where it's too large.
        """
        memory = self._memory
        if not self.is_open:
            await self.wait()
        # While the pool is full and a long list waits, others of the connection are taken for as long: a look at each of a
        # thousand that have an entry of 1 MB took 2 s.
        if message.advice is None or not (memory.full and self._long.locked()):
            making = _Making(message, memory.limit)
            making.step()
            if making.done and self._fits(making.size):
                return making.chunks
            del making  # a thousand calls may wait for the locks below
        async with self._long:
            await self.wait()
            async with memory.long:
                return await memory.make(message)
