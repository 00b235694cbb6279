"""Reads files from the disk itself, to hash them: what the page cache holds says nothing of what is left on the disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator

PIECE_BYTES = 1 << 20


def pieces(fd: int) -> Iterator[memoryview]:
    """An open file's bytes, piece by piece; each is valid until the next is asked for.

    Raises:
        OSError: it could not be read.
    """
    with mmap.mmap(-1, PIECE_BYTES) as buffer, memoryview(buffer) as view:
        _set_direct(fd, True)
        offset = 0
        while True:
            try:
                size = os.preadv(fd, [buffer], offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not _set_direct(fd, False):
                    raise
                continue
            if not size:
                return
            with view[:size] as piece:
                yield piece
            offset += size
            if size % mmap.PAGESIZE:  # the end, or a place that can't be read on from past the page cache
                _set_direct(fd, False)


def sha256(fd: int) -> bytes:
    """The SHA-256 of an open file's bytes, as the disk has them. Raises OSError."""
    digest = hashlib.sha256()
    for piece in pieces(fd):
        digest.update(piece)
    return digest.digest()


def _set_direct(fd: int, direct: bool) -> bool:
    """Let reads go past the page cache, or not; whether that's another way than before. Where the file system can't, it stays as it is."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    wanted = flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT
    if wanted == flags:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, wanted)
    except OSError:
        return False
    return True
