from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from modelreg.errors import ArchiveInUse, ResourceExhausted, StorageFailed, Unavailable
from modelreg.storage import durable
from modelreg.storage.archive import Archive
from modelreg.storage.writers import DIRECT_BYTES, SMALL_BYTES
from tests.storage.surroundings import (
    LARGE,
    archive_at,
    blobs_below,
    cancelled_at_every_step,
    fail_directory_syncs,
    fail_file_syncs,
    files_below,
    model_record,
    no_free_descriptor,
    open_descriptors,
    pattern,
    record_of,
    refuse_hard_links,
    store,
)


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    async with archive_at(tmp_path) as archive:
        await archive.write_model(model_record("m"))
        yield archive
        assert archive._budget.used == archive._small_budget.used == 0
    assert not list((tmp_path / "tmp").iterdir())


SIZES = [0, 1, SMALL_BYTES, SMALL_BYTES + 1, LARGE, DIRECT_BYTES + 4097]


@pytest.mark.parametrize("size", SIZES)
async def test_what_was_stored_is_found_by_the_next(size: int, tmp_path: Path) -> None:
    content = pattern(size)
    async with archive_at(tmp_path) as archive:
        await archive.write_model(model_record("m", 7))
        record = await store(archive, "m", 1, content)
        assert archive.blobs.bytes == size
    async with archive_at(tmp_path) as archive:
        (found,) = archive.found
        assert found.record == model_record("m", 7)
        assert found.versions == [record]
        assert archive.blobs.bytes == size
        digest = bytes.fromhex(record.sha256)
        assert not archive.blobs.is_sound(digest), "what another run wrote has to be looked at first"
        assert archive.blobs.read(digest, size) == content
        assert archive.blobs.is_sound(digest)
        assert stat.S_IMODE(archive._layout.blob(digest).stat().st_mode) == 0o440


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_a_file_system_without_hard_links(error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfat, exFAT, and many in user space."""
    refuse_hard_links(monkeypatch, error)
    async with archive_at(tmp_path) as archive:
        await archive.write_model(model_record("m"))
        records = [await store(archive, "m", number, pattern(LARGE)) for number in (1, 2)]
        records.append(await store(archive, "m", 3, b"small"))
        assert len(files_below(tmp_path)) == 1 + 3 + 2  # the model's record, the versions', their contents
        with pytest.raises(StorageFailed):
            await store(archive, "m", 3, b"another")
        assert not list((tmp_path / "tmp").iterdir())
    async with archive_at(tmp_path) as archive:
        assert archive.found[0].versions == records
        assert archive.blobs.read(bytes.fromhex(records[0].sha256), LARGE) == pattern(LARGE)


async def test_moved_while_it_is_served(tmp_path: Path) -> None:
    """Another one that is started on the old path gets nothing of it."""
    path = tmp_path / "archive"
    async with archive_at(path) as archive:
        await archive.write_model(model_record("m"))
        async with archive.incoming(LARGE) as incoming:
            path.rename(tmp_path / "moved")
            async with archive_at(path) as other:
                await other.write_model(model_record("other"))
                await incoming.write(memoryview(pattern(LARGE)))
                digest = await incoming.finish()
                await archive.blobs.retain_for_commit(digest, LARGE)
                await archive.install_large(incoming)
                record = record_of("m", 1, pattern(LARGE))
                await archive.store_version(record, incoming)
                small = await store(archive, "m", 2, b"small")
    async with archive_at(path) as archive:
        assert [found.record.model_id for found in archive.found] == ["other"]
    assert blobs_below(path) == set()
    async with archive_at(tmp_path / "moved") as archive:
        (found,) = archive.found
        assert found.versions == [record, small]


async def test_two_can_not_have_it(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ArchiveInUse):
        async with archive_at(tmp_path):
            raise AssertionError("not to be reached")


async def test_cancelled_it_is_free_again(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with archive_at(tmp_path):
            scope.cancel()
            await trio.sleep_forever()
    async with archive_at(tmp_path):
        pass


async def test_what_does_not_fit_is_refused_before_a_byte_came(archive: Archive) -> None:
    with pytest.raises(ResourceExhausted, match="--archive_dir"):
        async with archive.incoming(2**63):
            raise AssertionError("not to be reached")


@pytest.mark.parametrize("size", [10, LARGE])
async def test_what_is_not_installed_leaves_no_trace(size: int, archive: Archive, tmp_path: Path) -> None:
    before = files_below(tmp_path)

    async def work() -> None:
        async with archive.incoming(size) as incoming:
            await incoming.write(memoryview(pattern(size)))
            await incoming.finish()

    async def check() -> None:
        assert files_below(tmp_path) == before
        assert archive._budget.used == archive._small_budget.used == 0

    await cancelled_at_every_step(work, check)


async def test_small_uploads_that_stall_keep_nobody_waiting(archive: Archive) -> None:
    async with contextlib.AsyncExitStack() as stack:
        while archive._small_budget.take_now(1 << 10):
            stack.callback(archive._small_budget.release, 1 << 10)
        for number in (1, 2, 3):
            stalled = await stack.enter_async_context(archive.incoming(1 << 10))
            await stalled.write(memoryview(b"stalled"))
            content = pattern(1 << 10, seed=number)
            record = await store(archive, "m", number, content)
            assert archive.blobs.read(bytes.fromhex(record.sha256), 1 << 10) == content


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("failure", ["file", "directory"])
async def test_a_failing_installation_cleans_up(
    size: int, failure: str, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(tmp_path)
    with monkeypatch.context() as broken:
        if failure == "file":
            fail_file_syncs(broken)
        else:
            fail_directory_syncs(broken)
        with pytest.raises(StorageFailed if failure == "file" else Unavailable):
            await store(archive, "m", 1, pattern(size))
    assert archive.threads.failed.is_set() == (failure == "directory")
    left = files_below(tmp_path) - before
    if failure == "file":
        assert not left
        await store(archive, "m", 1, pattern(size))
    else:  # what the disk holds isn't known, so it isn't touched any more: the next boot sorts it out
        shutil.rmtree(tmp_path / "tmp")
        (tmp_path / "tmp").mkdir()


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_sidecar_that_fails_after_its_blob_was_installed(size: int, archive: Archive, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    shutil.rmtree(archive._layout.versions("m"))
    with pytest.raises(StorageFailed):
        await store(archive, "m", 1, pattern(size))
    assert files_below(tmp_path) == before
    assert archive.blobs.bytes == 0


async def test_a_number_that_is_taken(archive: Archive) -> None:
    first = await store(archive, "m", 1, b"first")
    with pytest.raises(StorageFailed):
        await store(archive, "m", 1, b"second")
    assert archive.blobs.read(bytes.fromhex(first.sha256), 5) == b"first"
    assert not archive._layout.blob(hashlib.sha256(b"second").digest()).exists()


async def test_content_is_installed_once(archive: Archive) -> None:
    content = pattern(LARGE)
    digest = hashlib.sha256(content).digest()
    async with archive.incoming(LARGE) as incoming:
        await incoming.write(memoryview(content))
        await incoming.finish()
        await archive.blobs.retain_for_commit(digest, LARGE)
        await archive.install_large(incoming)
        inode = archive._layout.blob(digest).stat().st_ino
        await archive.store_version(record_of("m", 1, content), incoming)
    assert archive._layout.blob(digest).stat().st_ino == inode
    assert archive._layout.blob(digest).stat().st_nlink == 1


# Deleting a model


async def test_a_model_goes_with_all_its_records(archive: Archive, tmp_path: Path) -> None:
    await store(archive, "m", 1, b"content")
    await archive.delete_model("m")
    assert not archive._layout.model("m").exists()
    assert len(files_below(tmp_path)) == 1, "its blob is the caller's to release"
    await archive.write_model(model_record("m"))
    await store(archive, "m", 1, b"content")


async def test_a_deletion_is_one_rename(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes after it: the model is gone whole, and what is left of it is the next boot's to sweep."""
    await store(archive, "m", 1, b"content")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    await archive.delete_model("m")
    (left,) = (tmp_path / "tmp").iterdir()
    assert (left / "model.json").exists()
    assert (left / "versions" / "0000000001.json").exists()
    monkeypatch.undo()
    shutil.rmtree(left)


async def test_a_deletion_that_can_not_begin_changes_nothing(archive: Archive, tmp_path: Path) -> None:
    await store(archive, "m", 1, b"content")
    before = files_below(tmp_path)

    def delete() -> None:
        with no_free_descriptor():
            archive._delete_model("m")

    with pytest.raises(OSError) as caught:
        delete()
    assert caught.value.errno == errno.EMFILE
    assert files_below(tmp_path) == before


async def test_a_deletion_that_may_not_last_stops_everything(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as broken:
        fail_directory_syncs(broken, after=1)
        with pytest.raises(Unavailable):
            await archive.delete_model("m")
    assert archive.threads.failed.is_set()
    for left in (tmp_path / "tmp").iterdir():
        shutil.rmtree(left)


# Descriptors


async def test_a_hundred_uploads_leave_no_descriptor(archive: Archive) -> None:
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        for number in range(1, 101):
            nursery.start_soon(store, archive, "m", number, pattern(SMALL_BYTES + number % 3, seed=number % 7))
    assert len(os.listdir(archive._layout.versions("m"))) == 100
    assert open_descriptors() <= before


async def test_without_a_free_descriptor_an_upload_fails_alone(archive: Archive) -> None:
    def make() -> None:
        with no_free_descriptor():
            durable.create_temporary(archive._layout.tmp)

    with pytest.raises(ResourceExhausted, match="ulimit"):
        await archive.threads.file(make)
    await store(archive, "m", 1, pattern(LARGE))
