"""The few functions that sync, link and rename; nothing else in the project does.

What each promises holds after a power cut: measured on ext4 and xfs, a rename alone leaves the final name with no
bytes, fsync of the file alone leaves only the temporary name, and only both the file's and the directory's fsync leave
the data.

An fsync is never tried twice. After a failed one the kernel may drop the data and report success the next time
(https://lwn.net/Articles/752063/), so a file whose fsync failed is abandoned, and a directory whose fsync failed ends
the server: what the disk holds isn't known any more, and the next boot reads it again.

All of this blocks: it runs in worker threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from modelreg import renameat2

CONTENT_MODE = 0o440
RECORD_MODE = 0o640

# Held while a file is renamed to a name that nothing may have. Other processes give no names in an archive: it's locked.
_naming = threading.Lock()


class DirectorySyncError(Exception):
    """A directory's fsync failed: whether the change in it is durable isn't known.

    The archive must not be written any further.
    """


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of *data* at *offset*, going on after short writes."""
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


@contextlib.contextmanager
def _changing(*directories: Path) -> Iterator[None]:
    """Make the names durable that the block changes in directories, when it ends well.

    They're opened before anything has changed: a want of file descriptors must not pass for a failed fsync.

    Raises:
        OSError: a directory could not be opened; the block has not run.
        DirectorySyncError: see there.
    """
    opened: list[tuple[int, Path]] = []
    try:
        for path in directories:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.append((fd, path))
        yield
        for fd, path in opened:
            try:
                os.fsync(fd)
            except OSError as error:
                msg = f"the directory {path.name!r} could not be synced: {error.strerror}"
                raise DirectorySyncError(msg) from error
    finally:
        for fd, _ in opened:
            _close_synced(fd)


def _close_synced(fd: int) -> None:
    """Close a directory.

    What its fsync has said stands: a complaint that comes now must not undo, for the caller, what is durable.
    """
    with contextlib.suppress(OSError):
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable that somebody else may have changed.

    Raises:
        OSError: it could not be opened.
        DirectorySyncError: see there.
    """
    with _changing(path):
        pass


def temporary_path(directory: Path) -> Path:
    """A name in *directory* that nothing has."""
    return directory / os.urandom(16).hex()


def create_temporary(directory: Path, flags: int = 0) -> tuple[int, Path]:
    """Create and open a new file of a name of its own; *flags* are added to those of ``open``."""
    path = temporary_path(directory)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | flags, RECORD_MODE)
    return fd, path


def seal(fd: int, mode: int) -> None:
    """Make an open file's bytes durable, set its final mode, and close it, whatever happens."""
    try:
        os.fsync(fd)
        with contextlib.suppress(PermissionError):  # the file is ours: its file system has no modes
            os.fchmod(fd, mode)
    except OSError:
        with contextlib.suppress(OSError):  # the first failure is the one to report
            os.close(fd)
        raise
    os.close(fd)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable that somebody else may have written."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(temporary: Path, final: Path) -> None:
    """Give a sealed file its final name, durably, and take its temporary one away.

    Raises:
        FileExistsError: the final name is taken; nothing has changed.
        DirectorySyncError: see there.
    """
    with _changing(final.parent):
        give_name(temporary, final)
    discard(temporary)


def give_name(temporary: Path, final: Path) -> None:
    """Give a file another name, not durably. It keeps its temporary one, except on file systems without hard links.

    Raises:
        FileExistsError: the name is taken; nothing has changed.
    """
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in renameat2.NO_HARD_LINKS_ERRNOS:
            raise
        with _naming:
            if os.path.lexists(final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
            temporary.rename(final)


def replace(temporary: Path, final: Path) -> None:
    """Put a sealed file in another's place, durably: at any moment the name holds the old or the new one, whole."""
    with _changing(final.parent):
        temporary.replace(final)


def exchange(temporary: Path, final: Path) -> bool:
    """Let a sealed file and another have each other's name, durably; whether this file system can do that."""
    try:
        with _changing(final.parent, temporary.parent):
            renameat2.exchange(temporary, final)
    except OSError as error:
        if error.errno not in renameat2.UNKNOWN_FLAG_ERRNOS:
            raise
        return False
    return True


def move_away(path: Path, final: Path) -> None:
    """Move a file or directory to another directory, durably in both."""
    with _changing(final.parent, path.parent):
        path.rename(final)


def link_also(path: Path, other: Path) -> None:
    """Give a file a second name in another directory, durably; of a symbolic link, the link itself."""
    with _changing(other.parent):
        os.link(path, other, follow_symlinks=False)


def make_directory(path: Path) -> None:
    """Create a directory, durably; one that exists is synced into its parent all the same."""
    with _changing(path.parent), contextlib.suppress(FileExistsError):
        path.mkdir()


def make_directories(path: Path) -> None:
    """Create a directory and those above it that are missing, durably.

    Of one that exists nothing is said: it may be somebody else's.
    """
    missing = [parent for parent in (path, *path.parents) if not parent.is_dir()]
    for directory in reversed(missing):
        make_directory(directory)


def write_sealed(directory: Path, data: bytes | bytearray, mode: int) -> Path:
    """Write a whole file, sealed, under a temporary name in *directory*; it's for :func:`publish` or :func:`replace`.

    Raises:
        OSError: it could not be written; nothing is left of it.
    """
    fd, path = create_temporary(directory)
    try:
        try:
            write_all(fd, memoryview(data), 0)
        except OSError:
            os.close(fd)
            raise
        seal(fd, mode)
    except OSError:
        discard(path)
        raise
    return path


def discard(temporary: Path) -> None:
    """Remove a temporary file, if it can be; one that can't goes at the next boot, and fails nobody's work."""
    with contextlib.suppress(OSError):
        temporary.unlink()


def unlink_if_there(path: Path) -> None:
    """Remove a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
