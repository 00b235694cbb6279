"""The flags of renameat2(2), which Python's ``os.rename`` doesn't have: for file systems without hard links."""

from __future__ import annotations

import ctypes
import errno
import os

# linux/fs.h
_NOREPLACE = 1
_EXCHANGE = 2
_AT_FDCWD = -100

# What link(2) says on vfat and exFAT (EPERM), in FUSE (ENOSYS), and on network file systems.
NO_HARD_LINKS_ERRNOS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})

# What is said where the kernel, the file system or the C library doesn't know of a flag.
UNKNOWN_FLAG_ERRNOS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def rename_new(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Rename a file to a name that nothing has.

    Raises:
        FileExistsError: something has it.
        OSError: one of UNKNOWN_FLAG_ERRNOS where that can't be done here.
    """
    _renameat2(old, new, _NOREPLACE)


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Let two files, or directories, have each other's name: no name is ever without one.

    Raises:
        OSError: one of UNKNOWN_FLAG_ERRNOS where that can't be done here.
    """
    _renameat2(one, other, _EXCHANGE)


def _renameat2(old: str | os.PathLike[str], new: str | os.PathLike[str], flags: int) -> None:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an old C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(old)) from None
    if function(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(old), None, str(new))
