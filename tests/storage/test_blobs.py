# ruff: noqa: ASYNC240  # a test may block: the loop is its own
from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from modelreg import renameat2
from modelreg.errors import Unavailable
from modelreg.storage import durable
from modelreg.storage.archive import Archive
from modelreg.storage.blobs import READ_BYTES, BlobStore, Damaged
from tests.storage.surroundings import (
    archive_at,
    fail_directory_syncs,
    files_below,
    no_free_descriptor,
    open_descriptors,
    pattern,
    plain_user,
    refuse_hard_links,
)

CONTENT = pattern(2 * READ_BYTES + 17)
DIGEST = hashlib.sha256(CONTENT).digest()
SIZE = len(CONTENT)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    async with archive_at(tmp_path) as archive:
        yield archive


@pytest.fixture
def blobs(archive: Archive) -> BlobStore:
    return archive.blobs


@pytest.fixture
def path(archive: Archive) -> Path:
    """Where the content lies."""
    return archive._layout.blob(DIGEST)


def temporary_file(archive: Archive, content: bytes = CONTENT) -> Path:
    return durable.write_sealed(archive._layout.tmp, content, durable.CONTENT_MODE)


def flip(path: Path) -> None:
    """Change one bit, as a disk does: nobody is told, but the change time, which a test can't leave alone."""
    before = path.stat().st_ctime_ns
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.seek(SIZE // 2)
        byte = file.read(1)
        file.seek(SIZE // 2)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o440)
    while path.stat().st_ctime_ns == before:  # a clock of coarse ticks
        path.chmod(0o440)


def truncate(path: Path) -> None:
    os.truncate(path, SIZE - 1)


def lengthen(path: Path) -> None:
    os.truncate(path, SIZE + 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def link(path: Path) -> None:
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def remove(path: Path) -> None:
    path.unlink()


def pipe(path: Path) -> None:
    """Who opens it waits for a writer."""
    path.unlink()
    os.mkfifo(path)


def listener(path: Path) -> None:
    path.unlink()
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as at:
        at.bind(f"/proc/self/fd/{here}/{path.name}")  # the whole path may be too long for one
    os.close(here)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


every_damage = pytest.mark.parametrize(
    "damage", [flip, truncate, lengthen, empty, link, remove, pipe, listener, directory]
)


# Installing


async def test_content_lies_under_its_digest(archive: Archive, blobs: BlobStore, path: Path, tmp_path: Path) -> None:
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o440
    assert path.stat().st_nlink == 1
    assert files_below(tmp_path) == {f"blobs/sha256/{DIGEST.hex()[:2]}/{DIGEST.hex()}"}


async def test_small_content_too(archive: Archive, blobs: BlobStore, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"small").digest()
    blobs.install_bytes(b"small", digest)
    blobs.install_bytes(bytearray(b"small"), digest)
    assert blobs.read(digest, 5) == b"small"
    assert len(files_below(tmp_path)) == 1


async def test_the_same_content_is_stored_once(archive: Archive, blobs: BlobStore, path: Path, tmp_path: Path) -> None:
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    first = path.stat().st_ino
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    assert path.stat().st_ino == first
    assert len(files_below(tmp_path)) == 1


async def test_installing_makes_a_directory_that_was_tidied_away(
    archive: Archive, blobs: BlobStore, path: Path
) -> None:
    path.parent.rmdir()
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    assert path.read_bytes() == CONTENT


@every_damage
@pytest.mark.parametrize("known", [True, False], ids=["known to be sound before", "from an earlier run"])
async def test_storing_the_same_content_again_heals(
    damage: Callable[[Path], None], known: bool, archive: Archive, blobs: BlobStore, path: Path, tmp_path: Path
) -> None:
    blobs.retain(DIGEST, SIZE)
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    if not known:
        blobs._sound.clear()
    damage(path)
    damaged = path.read_bytes() if path.is_file() else None
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    assert blobs.read(DIGEST, SIZE) == CONTENT
    assert not path.is_symlink()
    assert blobs.is_sound(DIGEST)
    quarantined = list((tmp_path / "quarantine").iterdir())
    assert [place.read_bytes() for place in quarantined if place.is_file()] == ([] if damaged is None else [damaged])
    assert len(quarantined) == blobs.damage_found == (damage is not remove)
    assert not list((tmp_path / "tmp").iterdir())


async def test_content_that_is_sound_from_an_earlier_run_is_kept(
    archive: Archive, blobs: BlobStore, path: Path, tmp_path: Path
) -> None:
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    first = path.stat().st_ino
    blobs._sound.clear()
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    assert path.stat().st_ino == first
    assert not list((tmp_path / "quarantine").iterdir())


async def test_a_blob_that_is_known_to_be_damaged_is_replaced_though_it_looks_sound(
    archive: Archive, blobs: BlobStore, path: Path, tmp_path: Path
) -> None:
    """The disk may have lost what the page cache still holds."""
    blobs.retain(DIGEST, SIZE)
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    first = path.stat().st_ino
    blobs.report_damage(DIGEST, "the disk holds something else")
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    assert path.stat().st_ino != first
    assert blobs.is_sound(DIGEST)
    assert not blobs.damaged
    assert [place.stat().st_ino for place in (tmp_path / "quarantine").iterdir()] == [first]


@pytest.mark.parametrize("damaged", [False, True], ids=["new content", "damaged content"])
async def test_many_install_the_same_content_at_once(
    damaged: bool, archive: Archive, blobs: BlobStore, path: Path, tmp_path: Path
) -> None:
    """Each of them has a good blob in its place from the moment on that it was told so: a power cut may come any time."""
    writers = 8
    with ThreadPoolExecutor(writers) as threads:
        for _ in range(5):
            if damaged:
                path.write_bytes(CONTENT[:-1] + b"!")
                blobs._sound.clear()
            together = threading.Barrier(writers)

            def install(temporary: Path, together: threading.Barrier = together) -> bytes:
                together.wait(10)
                blobs.install(temporary, DIGEST, SIZE)
                return path.read_bytes()

            blobs.retain(DIGEST, SIZE)
            seen = list(threads.map(install, [temporary_file(archive) for _ in range(writers)]))
            assert blobs.is_sound(DIGEST)
            blobs.release(DIGEST, SIZE)
            assert seen == [CONTENT] * writers
            quarantined = list((tmp_path / "quarantine").iterdir())
            assert len(quarantined) == damaged, "what was good must not go to quarantine"
            for file in quarantined:
                file.unlink()
            assert not list((tmp_path / "tmp").iterdir())
            path.chmod(0o640)
            path.unlink()


async def test_an_existing_blob_that_can_not_be_synced_is_replaced(
    archive: Archive, blobs: BlobStore, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    first = path.stat().st_ino
    temporary = temporary_file(archive)

    def fail(path: Path) -> None:
        path.chmod(0o440)  # as another upload changes it, between its failure and the look that is taken then
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "sync_file", fail)
    blobs.install(temporary, DIGEST, SIZE)
    assert path.stat().st_ino != first
    assert blobs.read(DIGEST, SIZE) == CONTENT
    assert not list((tmp_path / "tmp").iterdir())


async def test_the_name_of_an_existing_blob_is_made_durable(
    archive: Archive, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gave it the name may not have come to that."""
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    temporary = temporary_file(archive)
    fail_directory_syncs(monkeypatch)
    with pytest.raises(durable.DirectorySyncError):
        blobs.install(temporary, DIGEST, SIZE)


async def test_healing_never_leaves_the_name_empty(
    archive: Archive, blobs: BlobStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(CONTENT[:-1] + b"!")
    temporary = temporary_file(archive)
    sync = os.fsync

    def fsync(fd: int) -> None:
        assert path.exists()
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    blobs.install(temporary, DIGEST, SIZE)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("damage", [flip, directory])
async def test_healing_where_nothing_can_be_linked(
    damage: Callable[[Path], None],
    exchanges: bool,
    archive: Archive,
    blobs: BlobStore,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody else's file may be linked (fs.protected_hardlinks in proc(5)), no directory, and on some file systems nothing."""

    def cannot(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    blobs.retain(DIGEST, SIZE)
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    damage(path)
    inode = path.stat().st_ino
    refuse_hard_links(monkeypatch, errno.EPERM)
    if not exchanges:
        monkeypatch.setattr(renameat2, "exchange", cannot)
    blobs.install(temporary_file(archive), DIGEST, SIZE)
    assert blobs.read(DIGEST, SIZE) == CONTENT
    assert [place.stat().st_ino for place in (tmp_path / "quarantine").iterdir()] == [inode]
    assert not list((tmp_path / "tmp").iterdir())


async def test_a_blob_of_another_user_heals(archive: Archive, blobs: BlobStore, path: Path, tmp_path: Path) -> None:
    blobs.retain(DIGEST, SIZE)
    path.write_bytes(CONTENT[:-1] + b"!")
    path.chmod(0o444)
    with plain_user(tmp_path):
        if os.geteuid() == 65534:
            os.seteuid(0)
            os.chown(path, 0, 0)
            os.seteuid(65534)
        temporary = temporary_file(archive)
        blobs.install(temporary, DIGEST, SIZE)
        assert blobs.read(DIGEST, SIZE) == CONTENT
    (place,) = (tmp_path / "quarantine").iterdir()
    assert place.read_bytes() == CONTENT[:-1] + b"!"


async def test_without_a_free_descriptor_nothing_is_installed(archive: Archive, blobs: BlobStore, path: Path) -> None:
    temporary = temporary_file(archive)
    with no_free_descriptor(), pytest.raises(OSError) as caught:
        blobs.install(temporary, DIGEST, SIZE)
    assert caught.value.errno == errno.EMFILE
    assert not path.exists()


# References


async def put(archive: Archive) -> None:
    """Store the content with one reference."""
    await archive.blobs.retain_for_commit(DIGEST, SIZE)
    await archive.threads.file(archive.blobs.install, temporary_file(archive), DIGEST, SIZE)


async def drop(archive: Archive) -> None:
    archive.blobs.release(DIGEST, SIZE)
    await archive.blobs.collect()


async def test_a_blob_goes_with_its_last_reference(archive: Archive, blobs: BlobStore, path: Path) -> None:
    await put(archive)
    await put(archive)
    assert blobs.bytes == SIZE
    await drop(archive)
    assert path.exists()
    assert blobs.is_sound(DIGEST)
    await drop(archive)
    assert not path.exists()
    assert not blobs.is_sound(DIGEST)
    assert blobs.bytes == 0


async def test_a_reference_that_comes_before_the_collection_saves_the_blob(
    archive: Archive, blobs: BlobStore, path: Path
) -> None:
    await put(archive)
    blobs.release(DIGEST, SIZE)
    blobs.retain(DIGEST, SIZE)
    await blobs.collect()
    assert path.exists()
    assert blobs.is_sound(DIGEST)


async def test_collecting_nothing_is_no_checkpoint(blobs: BlobStore) -> None:
    with trio.testing.assert_no_checkpoints():
        await blobs.collect()


async def test_a_commit_waits_for_the_blob_to_be_gone(
    archive: Archive, blobs: BlobStore, path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    await put(archive)
    go_on = threading.Event()
    unlink = durable.unlink_if_there

    def slowly(path: Path) -> None:
        go_on.wait(10)
        unlink(path)

    monkeypatch.setattr(durable, "unlink_if_there", slowly)
    nursery.start_soon(drop, archive)
    await trio.testing.wait_all_tasks_blocked()
    assert not blobs.is_sound(DIGEST), "a transient version must not share it any more"
    committed = trio.Event()

    async def commit() -> None:
        await put(archive)
        committed.set()

    nursery.start_soon(commit)
    await trio.testing.wait_all_tasks_blocked()
    assert not committed.is_set()
    go_on.set()
    await committed.wait()
    assert path.read_bytes() == CONTENT
    assert blobs.bytes == SIZE


async def test_a_cancelled_collection_is_finished(archive: Archive, path: Path) -> None:
    await put(archive)
    with trio.CancelScope() as scope:
        scope.cancel()
        await drop(archive)
    assert not path.exists()


async def test_commits_and_deletions_of_one_content_race(archive: Archive, blobs: BlobStore, path: Path) -> None:
    async def come_and_go(rounds: int) -> None:
        for _ in range(rounds):
            await put(archive)
            assert path.read_bytes() == CONTENT, "whoever refers to it has it"
            await trio.lowlevel.checkpoint()
            assert blobs.read(DIGEST, SIZE) == CONTENT
            await drop(archive)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(come_and_go, 8)
    assert not path.exists()
    assert blobs.bytes == 0
    assert blobs.damage_found == 0
    assert not blobs._leaving
    assert not blobs._unreferenced


class Lines:
    """A log that a test can read."""

    def __init__(self) -> None:
        self.entries: list[dict[str, object]] = []

    def logger(self) -> structlog.typing.FilteringBoundLogger:
        wrapped: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            None,
            processors=[self._keep],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            context_class=dict,
        ).bind()
        return wrapped

    def _keep(self, _: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        self.entries.append({"level": level, **event})
        raise structlog.DropEvent


async def test_a_blob_that_can_not_be_deleted_is_nobodys_failure(tmp_path: Path) -> None:
    """A reader has had all its bytes, a model has been deleted: neither hears of a file that stays until the next boot."""
    lines = Lines()
    other = hashlib.sha256(b"other").digest()
    async with archive_at(tmp_path, lines.logger()) as archive:
        path = archive._layout.blob(DIGEST)
        path.mkdir()  # unlink(2) fails for a directory
        archive.blobs.retain(DIGEST, SIZE)
        archive.blobs.install_bytes(b"other", other)
        archive.blobs.retain(other, 5)
        archive.blobs.release(other, 5)
        await drop(archive)
        assert path.exists()
        assert not archive._layout.blob(other).exists(), "one doesn't keep the others"
        assert lines.entries[-1]["sha256"] == DIGEST.hex()


async def test_nothing_is_deleted_once_the_archive_has_failed(
    archive: Archive, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(archive)
    fail_directory_syncs(monkeypatch)
    with pytest.raises(Unavailable):
        await archive.threads.file(durable.sync_directory, path.parent)
    assert archive.threads.failed.is_set()
    await drop(archive)
    assert path.exists()


# Reading, and trust


@every_damage
async def test_damage_is_noticed_though_it_was_sound_before(
    damage: Callable[[Path], None], archive: Archive, blobs: BlobStore, path: Path
) -> None:
    await put(archive)
    assert blobs.read(DIGEST, SIZE) == CONTENT
    damage(path)
    with pytest.raises(Damaged):
        blobs.read(DIGEST, SIZE)
    assert blobs.damage_found == 1
    assert not blobs.is_sound(DIGEST)


async def test_what_has_been_read_is_not_hashed_again(archive: Archive, blobs: BlobStore) -> None:
    await put(archive)
    blobs._sound.clear()
    with contextlib.closing(blobs.open(DIGEST, SIZE)) as blob:
        sound_before = blob.sound
        blob.check(SIZE)
        assert (sound_before, blob.sound) == (False, True)
    with contextlib.closing(blobs.open(DIGEST, SIZE)) as blob:
        assert blob.sound


async def test_the_end_is_given_out_last(archive: Archive, blobs: BlobStore, path: Path) -> None:
    await put(archive)
    flip(path)
    with contextlib.closing(blobs.open(DIGEST, SIZE)) as blob:
        assert not blob.sound
        blob.check(READ_BYTES)
        blob.check(SIZE - 1)
        with pytest.raises(Damaged, match="its content has changed"):
            blob.check(SIZE)
        assert not blob.sound


async def test_cut_short_while_it_is_read(archive: Archive, blobs: BlobStore, path: Path) -> None:
    await put(archive)
    blobs._sound.clear()
    with contextlib.closing(blobs.open(DIGEST, SIZE)) as blob:
        blob.check(10)
        os.truncate(path, 20)
        with pytest.raises(Damaged, match=f"it ends after 20 bytes of {SIZE}"):
            blob.check(SIZE)


async def test_a_change_while_it_is_read_is_noticed_by_the_next(archive: Archive, blobs: BlobStore, path: Path) -> None:
    await put(archive)
    blobs._sound.clear()
    with contextlib.closing(blobs.open(DIGEST, SIZE)) as blob:
        blob.check(SIZE)
        flip(path)
    with pytest.raises(Damaged):
        blobs.read(DIGEST, SIZE)


async def test_what_is_being_read_can_be_read_to_its_end(archive: Archive, blobs: BlobStore, path: Path) -> None:
    await put(archive)
    with contextlib.closing(blobs.open(DIGEST, SIZE)) as blob:
        await drop(archive)
        assert not path.exists()
        assert blob.read() == CONTENT


async def test_no_descriptor_is_left(archive: Archive, blobs: BlobStore, path: Path) -> None:
    await put(archive)
    before = open_descriptors()
    for damage in (flip, truncate):
        damage(path)
        with pytest.raises(Damaged):
            blobs.read(DIGEST, SIZE)
    with pytest.raises(Damaged):
        blobs.open(DIGEST, SIZE + 1)
    assert open_descriptors() <= before


async def test_an_empty_blob(blobs: BlobStore) -> None:
    digest = hashlib.sha256().digest()
    blobs.install_bytes(b"", digest)
    assert blobs.read(digest, 0) == b""
    blobs._sound.clear()
    with contextlib.closing(blobs.open(digest, 0)) as blob:
        blob.check(0)
        assert blob.sound


async def test_a_pipe_in_the_place_of_an_empty_blob(archive: Archive, blobs: BlobStore) -> None:
    os.mkfifo(archive._layout.blob(hashlib.sha256().digest()))
    with pytest.raises(Damaged, match="not a regular file"):
        blobs.open(hashlib.sha256().digest(), 0)


async def test_a_blob_that_can_not_be_opened_is_not_called_damaged(archive: Archive, blobs: BlobStore) -> None:
    await put(archive)
    with no_free_descriptor(), pytest.raises(OSError) as caught:
        blobs.open(DIGEST, SIZE)
    assert caught.value.errno == errno.EMFILE
    assert blobs.damage_found == 0
