"""Blocking work, in worker threads behind limiters, with the operating system's errors turned into the domain's.

Two limiters, as waiting for a disk and hashing are different scarcities: threads that hash keep a core each busy, so there are
as many as cores; threads that sync mostly sleep.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import structlog
import trio

from modelreg.errors import ResourceExhausted, StorageFailed, Unavailable
from modelreg.storage.durable import DirectorySyncError

P = ParamSpec("P")
T = TypeVar("T")

FILE_THREADS = 16
NO_FILES_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE})
NO_SPACE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
# Of files in memory. They are temporary files where there is no memfd_create(2).
NO_MEMORY_ERRNOS = frozenset({errno.ENOMEM, *NO_SPACE_ERRNOS})


class Threads:
    """Where an archive's blocking work runs. A cancelled caller still waits for its thread, and only then sees the cancellation.

    Arguments:
        explain: what an error is, for the log.

    Attributes:
        failed: set once the archive must not be written any further, because a directory's fsync failed: see
            :mod:`modelreg.storage.durable`. Whoever runs the server waits for it, and stops.
    """

    def __init__(self, logger: structlog.typing.FilteringBoundLogger, explain: Callable[[OSError], str] = str) -> None:
        self.failed = trio.Event()
        self._logger = logger
        self._explain = explain
        self._files = trio.CapacityLimiter(FILE_THREADS)
        self._hashes = trio.CapacityLimiter(os.cpu_count() or 1)

    async def hash(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that keeps a core busy. Raises what :meth:`file` raises."""
        return await self._run(self._hashes, functools.partial(function, *args, **kwargs), self._archive_failed)

    async def file(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that waits for the disk.

        Raises:
            ResourceExhausted: there's no space, no quota, or no file descriptor left, or files may not be so large.
            StorageFailed: any other error of the operating system; it has been logged.
            Unavailable: the archive has failed, now or before.
        """
        return await self._run(self._files, functools.partial(function, *args, **kwargs), self._archive_failed)

    async def memory(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on a file in memory.

        Raises:
            ResourceExhausted: there's no memory or no file descriptor left, or files may not be so large.
            StorageFailed, Unavailable: as :meth:`file`.
        """
        return await self._run(self._files, functools.partial(function, *args, **kwargs), self._memory_failed)

    def hash_crowded(self) -> bool:
        """Whether work that keeps a core busy waits for a thread. Any thread may ask."""
        return bool(self._hashes.statistics().tasks_waiting)

    def file_crowded(self) -> bool:
        """Whether work that waits for the disk waits for a thread. Any thread may ask."""
        return bool(self._files.statistics().tasks_waiting)

    async def _run(
        self,
        limiter: trio.CapacityLimiter,
        work: Callable[[], T],
        translate: Callable[[OSError], ResourceExhausted | StorageFailed],
    ) -> T:
        if self.failed.is_set():
            raise Unavailable("the archive directory has failed, the registry is stopping")
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter)
        except DirectorySyncError as error:
            self._logger.critical("the archive's state is uncertain, stopping", error=str(error))
            self.failed.set()
            raise Unavailable("the archive directory has failed, the registry is stopping") from error
        except OSError as error:
            raise translate(error) from error

    def _archive_failed(self, error: OSError) -> ResourceExhausted | StorageFailed:
        self._logger.error("the archive directory could not be used", error=self._explain(error))
        if error.errno in NO_SPACE_ERRNOS:
            return ResourceExhausted(
                "no space left in the archive directory: make room, or start with another --archive_dir"
            )
        return _files_failed(error) or StorageFailed(f"the archive directory could not be used ({_reason(error)})")

    def _memory_failed(self, error: OSError) -> ResourceExhausted | StorageFailed:
        self._logger.error("the memory for transient versions could not be used", error=str(error))
        if error.errno in NO_MEMORY_ERRNOS:
            return ResourceExhausted(
                "no memory left for transient versions: lower --cache_max_bytes, or store the version"
            )
        return _files_failed(error) or StorageFailed(
            f"the memory for transient versions could not be used ({_reason(error)})"
        )


def _files_failed(error: OSError) -> ResourceExhausted | None:
    """What has to do with files, wherever they are."""
    if error.errno in NO_FILES_ERRNOS:
        return ResourceExhausted("too many files are open: allow the server more (ulimit -n), or try again later")
    if error.errno == errno.EFBIG:
        return ResourceExhausted("the version is larger than a file of the server may be: raise the limit (ulimit -f)")
    return None


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO)
