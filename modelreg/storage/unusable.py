"""Says why an archive directory can't be used: which file, what is wrong, and what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from modelreg.errors import ArchiveUnusable
from modelreg.storage import durable
from modelreg.storage.layout import Layout

_ADVICE = {
    errno.ELOOP: "put what it leads to in its place, or point --archive_dir at a link to the whole directory",
    errno.ENOTDIR: "put the directory back, or choose another --archive_dir",
    errno.EXDEV: "put all of the archive directory on one file system",
    errno.EROFS: "make it writable, or choose another --archive_dir",
    errno.EMFILE: "allow the server more open files (ulimit -n)",
    errno.ENFILE: "close files of other programs, or raise the machine's limit (fs.file-max)",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
}


@contextmanager
def unusable(layout: Layout) -> Iterator[None]:
    """Turn errors of the operating system into ArchiveUnusable, for a person."""
    try:
        yield
    except OSError as error:
        msg = f"{layout.title} can't be used: {layout.explain(error)}: {_advice(layout, error)}"
        raise ArchiveUnusable(msg) from error
    except durable.DirectorySyncError as error:
        msg = f"{layout.title} can't be used: {error}: look at the disk"
        raise ArchiveUnusable(msg) from error


def _advice(layout: Layout, error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        owner = f"{os.geteuid()}:{os.getegid()}"
        return f"give the directory to the server's user (chown -R {owner} {layout.given}), or choose another --archive_dir"
    return _ADVICE.get(error.errno or 0, "look at the disk, or choose another --archive_dir")
