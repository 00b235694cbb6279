"""Receive buffers that are lent out and come back.

The reader receives into a `Buffer`, all but what it receives where it goes (`intake`); DATA payloads are slices of it.
Whoever holds slices of a buffer holds a reference (`refs`), and the last one to let go returns the memory to the pool. A
payload that is small against its buffer is copied instead (`streams.Stream.deposit`), so that a few bytes never pin a whole
buffer. When many buffers are lent out (`crowded`), every payload that has to wait is copied: it then takes what it has in
bytes, and its buffer comes back. A thousand uploads that wait for memory would pin 512 MiB.
"""

from __future__ import annotations

import mmap


class Buffer:
    """A piece of receive memory. `refs` counts the reader, while it fills it, and every slice that is in use."""

    __slots__ = ("pool", "refs", "view")

    def __init__(self, size: int, pool: BufferPool) -> None:
        # A mapping of its own: through malloc, buffers of this size leave holes in the heap, which grew for an hour of mixed load.
        self.view = memoryview(mmap.mmap(-1, size))
        self.refs = 1
        self.pool = pool

    def release(self) -> None:
        """Give up one reference."""
        self.refs -= 1
        if self.refs == 0:
            self.pool.put(self)


class BufferPool:
    """Buffers of one size, shared by all connections of a server.

    Arguments:
        size: of a buffer.
        keep: how many are kept while they are unused.
        plenty: bytes of buffers that may be lent out before it's crowded.

    Attributes:
        crowded: whether more buffers are lent out than should be: payloads should be copied rather than keep theirs.
    """

    def __init__(self, size: int = 512 * 1024, keep: int = 16, plenty: int = 64 << 20) -> None:
        self.size = size
        self._plenty = max(1, plenty // size)
        self._keep = keep
        self._lent = 0
        self.crowded = False
        self._free: list[Buffer] = []

    def take(self) -> Buffer:
        """A buffer with one reference, the caller's."""
        self._lent += 1
        self.crowded = self._lent > self._plenty
        if self._free:
            buffer = self._free.pop()
            buffer.refs = 1
            return buffer
        return Buffer(self.size, self)

    def put(self, buffer: Buffer) -> None:
        """Called by `Buffer.release` when nobody uses it any more."""
        self._lent -= 1
        self.crowded = self._lent > self._plenty
        if len(self._free) < self._keep:
            self._free.append(buffer)


class Allowance:
    """Bytes that all streams of a server share: what one borrows, all others lack until it is back."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, amount: int) -> int:
        """Borrow up to `amount` bytes; the number that was to be had."""
        granted = min(amount, self.left)
        self.left -= granted
        return granted

    def give(self, amount: int) -> None:
        """Return what was borrowed."""
        self.left += amount


class Account:
    """What one connection has of an `Allowance`. Its first `free` bytes are not borrowed, so others can't take them."""

    __slots__ = ("_allowance", "_borrowed", "_free", "_used")

    def __init__(self, allowance: Allowance, free: int) -> None:
        self._allowance = allowance
        self._free = free
        self._used = 0
        self._borrowed = 0

    def take(self, amount: int) -> bool:
        """Borrow `amount` bytes, or nothing if there are fewer."""
        more = max(0, self._used + amount - self._free - self._borrowed)
        granted = self._allowance.take(more)
        if granted < more:
            self._allowance.give(granted)
            return False
        self._borrowed += more
        self._used += amount
        return True

    def give(self, amount: int) -> None:
        """Return what was borrowed."""
        self._used -= amount
        surplus = self._borrowed - max(0, self._used - self._free)
        self._borrowed -= surplus
        self._allowance.give(surplus)
