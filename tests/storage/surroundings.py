"""What tests of storage and of the registry need around them: directories of several file systems, little space, few descriptors."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import resource
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
import trio

from modelreg.log import silent_logger
from modelreg.storage import lock, recovery
from modelreg.storage.archive import Archive, open_archive
from modelreg.storage.layout import Layout
from modelreg.storage.recovery import FoundModel
from modelreg.storage.sidecars import ModelRecord, VersionRecord

LARGE = (3 << 20) + 12_345
"""Bytes that take the way of large content: a few buffers, the last one not full."""


@asynccontextmanager
async def archive_at(
    path: Path,
    logger: structlog.typing.FilteringBoundLogger | None = None,
    upload_buffer_bytes: int = 64 << 20,
) -> AsyncIterator[Archive]:
    """An open archive; an exception in it isn't wrapped in a group by the archive's nursery."""
    failure: BaseException | None = None
    async with open_archive(path, logger or silent_logger(), upload_buffer_bytes=upload_buffer_bytes) as archive:
        try:
            yield archive
        except Exception as error:  # noqa: BLE001  # it's raised again
            failure = error
    if failure is not None:
        raise failure


async def store(archive: Archive, model_id: str, number: int, content: bytes) -> VersionRecord:
    """Store a version the way that the registry does."""
    digest = hashlib.sha256(content).digest()
    record = record_of(model_id, number, content)
    async with archive.incoming(len(content)) as incoming:
        await incoming.write(memoryview(content))
        assert await incoming.finish() == digest
        await archive.blobs.retain_for_commit(digest, len(content))
        try:
            await archive.install_large(incoming)
            await archive.store_version(record, incoming)
        except BaseException:
            archive.blobs.release(digest, len(content))
            await archive.blobs.collect()
            raise
    return record


def record_of(model_id: str, number: int, content: bytes) -> VersionRecord:
    return VersionRecord(
        model_id=model_id,
        version_number=number,
        creation_timestamp=1_700_000_000_000_000_000 + number,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        user_data={"number": str(number)},
    )


def model_record(model_id: str, number_ceiling: int = 0) -> ModelRecord:
    return ModelRecord(model_id=model_id, user_data={"made": "for a test"}, number_ceiling=number_ceiling)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes without a period that buffers share, other ones for every seed."""
    block = b"".join(hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(331))
    return (block * (size // len(block) + 1))[:size]


@contextlib.contextmanager
def locked(root: Path) -> Iterator[Layout]:
    """An archive directory that is held."""
    with contextlib.closing(lock.take(Layout(root))) as taken:
        yield taken.layout


def boot(root: Path) -> dict[str, FoundModel]:
    """What a start finds."""
    with locked(root) as layout:
        return {found.record.model_id: found for found in recovery.recover(layout, silent_logger())}


def files_below(root: Path) -> set[str]:
    """Everything below a directory that isn't a directory, except what every archive has."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if not path.is_dir() and path.name not in {"FORMAT", "LOCK"}
    }


def blobs_below(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs").rglob("*") if path.is_file()}


@contextlib.contextmanager
def plain_user(directory: Path) -> Iterator[None]:
    """Run without root's right to read and write everything. *directory* belongs to the user then, with all below it."""
    if os.geteuid():
        yield
        return
    nobody = 65534
    for path in (directory, *directory.rglob("*")):
        os.chown(path, nobody, nobody, follow_symlinks=False)
    os.setegid(nobody)
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def contents_below(root: Path) -> dict[str, bytes]:
    """All files below a directory that can be opened without waiting, and their bytes."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "LOCK"
    }


def refuse_hard_links(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Be a file system without hard links, and without modes."""

    def no_link(path: Path, _: Path, **__: bool) -> None:
        raise OSError(error, os.strerror(error), str(path))

    def no_mode(_: int, __: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(os, "fchmod", no_mode)


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Nothing can be opened."""
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def memory_directory() -> Iterator[Path]:
    """A directory on tmpfs."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("no tmpfs to write to at /dev/shm")
    with tempfile.TemporaryDirectory(dir=shm, prefix="modelreg-test-") as name:
        yield Path(name)


@contextlib.contextmanager
def quick_directory() -> Iterator[Path]:
    """A directory where hundreds of archives are made in no time: on tmpfs where there is one."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None, prefix="modelreg-test-") as name:
        yield Path(name)


@contextlib.contextmanager
def small_file_system(path: Path, size: int) -> Iterator[Path]:
    """A file system with little space."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "modelreg-test", str(path)],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        path.rmdir()
        pytest.skip(f"a small file system can't be mounted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)
        path.rmdir()


def fail_directory_syncs(monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """From the *after*-th on, no directory can be synced. The kernel only does that when a disk breaks."""
    sync = os.fsync
    left = after

    def fsync(fd: int) -> None:
        nonlocal left
        if Path(f"/proc/self/fd/{fd}").is_dir():
            if not left:
                raise OSError(5, "Input/output error")
            left -= 1
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)


def record_syncs(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The paths of what is synced from now on."""
    synced: set[str] = set()
    sync = os.fsync

    def fsync(fd: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def fail_file_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be synced any more."""
    sync = os.fsync

    def fsync(fd: int) -> None:
        if not Path(f"/proc/self/fd/{fd}").is_dir():
            raise OSError(5, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)


class _CancelAtStep(trio.abc.Instrument):
    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.left = step
        self._scope = scope
        self._token = trio.lowlevel.current_trio_token()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.left == 0:
            self._token.run_sync_soon(self._scope.cancel)
        self.left -= 1


async def cancelled_at_every_step(work: Callable[[], Awaitable[None]], check: Callable[[], Awaitable[None]]) -> None:
    """Run some work again and again, cancelling it one scheduler's step later each time until it's done before that."""
    for step in range(500):
        with trio.CancelScope() as scope:
            instrument = _CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await work()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await check()
        if instrument.left >= 0:
            return
    raise AssertionError("it takes too many steps")


async def all_closed(descriptors: set[str]) -> None:
    """Wait until no other descriptors are open than these: some are closed in threads that nobody waits for."""
    while not open_descriptors() <= descriptors:
        await trio.to_thread.run_sync(lambda: None)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
