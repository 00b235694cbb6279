"""A cache of downloaded data on disk, keyed by its hash, so that the same data is downloaded once, whatever it's called.

    <directory>/ab/abcd…      content, named by its SHA-256 in hexadecimal

Files appear whole, by rename. A file that is used is touched; when there are more bytes than allowed, those that weren't used for the
longest time go. Content is verified each time it's read, and dropped when it's damaged. Several programs may share one
directory. A cache that can't be written is no reason to fail: that's logged, and the data comes from the registry.
"""

from __future__ import annotations

import io
import os
from base64 import b64decode
from pathlib import Path

import platformdirs

from modelreg.client.infos import ModelIterationInfo
from modelreg.client.logs import logger
from modelreg.client.targets import FileTarget, Target
from modelreg.client.workers import in_thread

DEFAULT_BYTES = 10 * 2**30
_READ_BYTES = 1024 * 1024


class Cache:
    """A directory of downloaded data.

    Arguments:
        directory: where; by default ``modelreg/models`` in the platform's directory for caches.
        max_bytes: how much it may hold.
    """

    def __init__(self, directory: os.PathLike[str] | None = None, max_bytes: int = DEFAULT_BYTES) -> None:
        self.directory = (
            Path(platformdirs.user_cache_dir("modelreg"), "models") if directory is None else Path(directory)
        )
        self.max_bytes = max_bytes

    async def fill(self, info: ModelIterationInfo, target: Target) -> bool:
        """Fill a target with an iteration's data, if that is here."""
        path = self._path(info)
        try:
            file = await in_thread(io.FileIO, path)
        except OSError:
            return False
        with file:
            if os.fstat(file.fileno()).st_size == info.size:
                target.restart()
                while data := await in_thread(file.read, _READ_BYTES):
                    target.write(memoryview(data))
                    await target.drain(final=False)
                await target.drain(final=True)
                if target.received == info.size and target.digest() == b64decode(info.hash):
                    _touch(path)
                    return True
            logger.warning("dropped damaged data from the cache in %s", self.directory)
            _remove(path)
        return False

    async def keep(self, info: ModelIterationInfo, filled: Target) -> None:
        """Add an iteration's data, which a target holds and has verified."""
        if info.size > self.max_bytes:
            return
        try:
            await in_thread(self._keep, info, filled)
        except OSError as error:
            logger.warning("can't write to the cache in %s: %s", self.directory, error.strerror or error)

    def _keep(self, info: ModelIterationInfo, filled: Target) -> None:
        path = self._path(info)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileTarget(path, info.size, durable=False) as target:
            target.store(filled.contents())
        self._shrink(path)

    def _shrink(self, newest: Path) -> None:
        """Remove what wasn't used for the longest time, until the rest fits."""
        found = []
        for path in self.directory.glob("??/*"):
            try:
                status = path.stat()
            except OSError:
                continue  # another program was faster
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.max_bytes:
                break
            if path != newest:
                _remove(path)
                total -= size

    def _path(self, info: ModelIterationInfo) -> Path:
        name = b64decode(info.hash).hex()
        return self.directory / name[:2] / name


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        pass


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        pass
