"""Where downloaded data goes: memory, a caller's buffer, or a file.

The connection's reader gives each piece to `write`, which only puts it aside, as all calls of the connection wait meanwhile. `drain`, asked
by the call's own task, does what takes long, in a worker thread: hashing, and writing to disk. What it's done with is given
back to the server as window, so memory beside the target is bounded by the stream's window (`transport.core.STREAM_WINDOW`). A target in
memory gives it back at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol

from typing_extensions import Self

from modelreg import renameat2
from modelreg.client.sources import INLINE_BYTES, PIECE_BYTES
from modelreg.client.workers import in_thread
from modelreg.transport.faults import ErrorCode, StreamFault

DRAIN_BYTES = 2 * 1024 * 1024
"""Work for a thread is worth its while from here on."""


class Target(Protocol):
    """Takes a download of a size that is known.

    Attributes:
        size: what is expected, in bytes.
        received: what has been given to `write`.
        has_room: whether it can take all there is to come, however long `drain` takes.
    """

    size: int
    received: int
    has_room: bool

    def restart(self) -> None:
        """Forget what came: begin at the first byte."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes. Raises `StreamFault` when they are more than expected."""

    async def drain(self, *, final: bool) -> int:
        """Deal with what was written, if that's much or `final`; how many bytes it was."""

    def digest(self) -> bytes:
        """SHA-256 of all that was drained."""

    def contents(self) -> Iterator[bytes | memoryview]:
        """All that was drained."""


class MemoryTarget:
    """Memory of the caller's, at least as large as the download; hashed while more arrives."""

    has_room = True

    def __init__(self, view: memoryview, size: int) -> None:
        self.size = size
        self._view = view
        self.restart()

    def restart(self) -> None:
        self.received = 0
        self._hashed = 0
        self._sha = hashlib.sha256()

    def write(self, data: memoryview) -> None:
        start = self.received
        self.received += len(data)
        if self.received > self.size:
            raise _too_much(self.size)
        self._view[start : self.received] = data

    async def drain(self, *, final: bool) -> int:
        size = self.received - self._hashed
        if size == 0 or (size < DRAIN_BYTES and not final):
            return 0
        part = self._view[self._hashed : self._hashed + size]
        if size < INLINE_BYTES:
            self._sha.update(part)
        else:
            await in_thread(self._sha.update, part)
        self._hashed += size
        return size

    def digest(self) -> bytes:
        return self._sha.digest()

    def contents(self) -> Iterator[bytes | memoryview]:
        yield self._view[: self.size]


class BytesTarget(MemoryTarget):
    """New memory, which becomes a `bytes` without being copied: BytesIO gives away its own when that has the right size."""

    def __init__(self, size: int) -> None:
        self._io = io.BytesIO(bytes(size))
        super().__init__(self._io.getbuffer(), size)

    def value(self) -> bytes:
        """The data. The target is of no use afterwards."""
        self._view.release()
        return self._io.getvalue()


class FileTarget:
    """A file that appears at its path whole, or not at all: written beside it, synced, and renamed. A context, which removes what
    isn't committed.

    A symbolic link is followed. The new file has the permissions of the one that it replaces and, where this user may give them,
    its owner and group.

    Arguments:
        path: where it's to be.
        size: of the data, in bytes.
        overwrite: whether a file that is there already is replaced; `FileExistsError` from `commit` where not.
    """

    has_room = False

    def __init__(self, path: os.PathLike[str], size: int, *, overwrite: bool = True, durable: bool = True) -> None:
        self.size = size
        self._named = os.fspath(path)
        self._path = os.path.realpath(path) if overwrite else os.path.abspath(path)
        folder, name = os.path.split(self._path)
        self._temporary = os.path.join(folder, f".{_cut(name)}.{secrets.token_hex(8)}.part")
        self._overwrite = overwrite
        self._durable = durable
        self._fd = -1
        # New memory costs a page fault for each 4 KiB, half as much time as hashing takes.
        self._spare: list[memoryview] = []

    def __enter__(self) -> Self:
        with self._named_in_errors():
            replaced = self._replaced()
            mode = 0o666 if replaced is None else 0o600
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                if replaced is not None:
                    _take_after(self._fd, replaced)
            except OSError:
                self._discard()
                raise
        self.restart()
        return self

    def _replaced(self) -> os.stat_result | None:
        """What is to be replaced; None where there is nothing. Also tells in time that the name is too long."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        if self._overwrite and not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file, so it can't be replaced", self._path)
        return status if self._overwrite else None

    @contextlib.contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        """Name the file in an `OSError` as the caller knows it, and not by its temporary name."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._named) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        os.close(self._fd)
        try:
            os.unlink(self._temporary)
        except FileNotFoundError:
            pass  # committed

    def restart(self) -> None:
        self.received = 0
        self._sha = hashlib.sha256()
        self._pending: list[memoryview] = []
        self._pending_bytes = 0
        self._filled = 0  # of the last one
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def write(self, data: memoryview) -> None:
        self.received += len(data)
        if self.received > self.size:
            raise _too_much(self.size)
        self._pending_bytes += len(data)
        while data:
            if not self._pending or self._filled == PIECE_BYTES:
                self._pending.append(self._spare.pop() if self._spare else memoryview(bytearray(PIECE_BYTES)))
                self._filled = 0
            part = data[: PIECE_BYTES - self._filled]
            self._pending[-1][self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            data = data[len(part) :]

    async def drain(self, *, final: bool) -> int:
        size = self._pending_bytes
        if size == 0 or (size < DRAIN_BYTES and not final):
            return 0
        pending, filled = self._pending, self._filled
        self._pending, self._pending_bytes = [], 0
        await in_thread(self._write_all, [*pending[:-1], pending[-1][:filled]])
        self._spare += pending
        return size

    def _write_all(self, pending: Iterable[bytes | memoryview]) -> None:
        for part in pending:
            self._sha.update(part)
            view = memoryview(part)
            with self._named_in_errors():
                while view:
                    view = view[os.write(self._fd, view) :]

    def digest(self) -> bytes:
        return self._sha.digest()

    def contents(self) -> Iterator[bytes | memoryview]:
        at = 0
        while data := os.pread(self._fd, PIECE_BYTES, at):
            yield data
            at += len(data)

    def store(self, contents: Iterable[bytes | memoryview]) -> None:
        """Write all of it, and make it appear, in a thread that may wait. Raises `OSError`."""
        self._write_all(contents)
        self._commit()

    async def commit(self) -> None:
        """Make it appear. Raises `OSError`."""
        await in_thread(self._commit)

    def _commit(self) -> None:
        with self._named_in_errors():
            if self._durable:
                os.fsync(self._fd)
            if self._overwrite:
                os.replace(self._temporary, self._path)
            else:
                _rename_new(self._temporary, self._path)
            if self._durable:
                folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)


def _rename_new(old: str, new: str) -> None:
    """Rename a file to a name that nothing has.

    File systems without hard links may have a rename that replaces nothing. On others an empty file holds the name for
    a moment.

    Raises:
        FileExistsError: something has the name.
    """
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in renameat2.NO_HARD_LINKS_ERRNOS:
            raise
    else:
        os.unlink(old)
        return
    try:
        renameat2.rename_new(old, new)
    except OSError as error:
        if error.errno not in renameat2.UNKNOWN_FLAG_ERRNOS:
            raise
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.replace(old, new)


def _cut(name: str) -> str:
    """The beginning of a file's name, in whole characters. With what is added to it, it fits names of 143 bytes, as eCryptfs has them."""
    return os.fsencode(name)[:100].decode("utf-8", "ignore")


def _take_after(fd: int, replaced: os.stat_result) -> None:
    """Give an open file the permissions of another one and, where this user may, its owner and group."""
    for uid, gid in ((-1, replaced.st_gid), (replaced.st_uid, -1)):
        try:
            os.fchown(fd, uid, gid)
        except OSError:
            pass  # only root may give files away, and not on each file system
    status = os.fstat(fd)
    mode = stat.S_IMODE(replaced.st_mode) & 0o777
    if status.st_gid != replaced.st_gid:
        mode &= ~0o070  # those bits were for another group
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(fd, mode)


def _too_much(size: int) -> StreamFault:
    return StreamFault(ErrorCode.CANCEL, f"more data came than the {size} bytes that the version has")
