from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelreg.errors import ArchiveInUse, ArchiveUnusable, ForeignArchive
from modelreg.log import silent_logger
from modelreg.storage import durable, recovery, sidecars
from modelreg.storage.layout import HIGHEST_NUMBER, Layout
from modelreg.storage.recovery import NUMBERS_SKIPPED, ORPHAN_AGE, FoundModel
from tests.storage.surroundings import (
    fail_directory_syncs,
    files_below,
    model_record,
    no_free_descriptor,
    quick_directory,
    record_of,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as path:
        yield path


@contextlib.contextmanager
def locked(root: Path) -> Iterator[Layout]:
    layout = Layout(root)
    lock = recovery.lock(layout)
    try:
        yield layout
    finally:
        os.close(lock)


def boot(root: Path) -> dict[str, FoundModel]:
    with locked(root) as layout:
        return {found.record.model_id: found for found in recovery.recover(layout, silent_logger())}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    with locked(root):
        pass
    return root


@pytest.fixture
def layout(root: Path) -> Layout:
    return Layout(root)


def make(layout: Layout, model_id: str, numbers: list[int], ceiling: int = 0) -> None:
    sidecars.write_model(layout, model_record(model_id, ceiling))
    for number in numbers:
        content = f"{model_id} {number}".encode()
        record = record_of(model_id, number, content)
        put_blob(layout, content)
        sidecars.write_version(layout, record)


def put_blob(layout: Layout, content: bytes) -> Path:
    path = layout.blob(hashlib.sha256(content).digest())
    path.write_bytes(content)
    return path


def numbers(found: FoundModel) -> list[int]:
    return [version.version_number for version in found.versions]


def quarantined(root: Path) -> list[str]:
    """What is in quarantine, without what makes its names unique."""
    return sorted(path.name.rpartition(".")[0] for path in (root / "quarantine").iterdir())


def assert_second_boot_is_quiet(root: Path, first: dict[str, FoundModel]) -> None:
    before = files_below(root)
    again = boot(root)
    assert files_below(root) == before
    assert {model: numbers(found) for model, found in again.items()} == {
        model: numbers(found) for model, found in first.items()
    }
    for model, found in first.items():
        highest = max(found.highest_number, found.record.number_ceiling)
        assert max(again[model].highest_number, again[model].record.number_ceiling) == highest


# The directory


def test_a_new_directory_is_made_with_those_above_it(tmp_path: Path) -> None:
    root = tmp_path / "some" / "where" / "new"
    assert boot(root) == {}
    assert json.loads((root / "FORMAT").read_text()) == {"format": "modelreg", "version": 1}
    assert {path.name for path in root.iterdir()} == {"FORMAT", "LOCK", "blobs", "models", "tmp", "quarantine"}
    assert len(list((root / "blobs" / "sha256").iterdir())) == 256
    assert files_below(root) == set()


def record_syncs(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The paths of what is synced from now on."""
    synced: set[str] = set()
    sync = os.fsync

    def fsync(fd: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_a_new_directory_is_synced_into_the_one_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = record_syncs(monkeypatch)
    boot(tmp_path / "new" / "archive")
    assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new" / "archive")} <= synced
    assert str(tmp_path / "new" / "archive" / "blobs" / "sha256") in synced


def test_a_fresh_volume_is_as_good_as_an_empty_directory(tmp_path: Path) -> None:
    """mkfs makes lost+found, so the root of every mounted ext4 volume has it."""
    (tmp_path / "lost+found").mkdir()
    assert boot(tmp_path) == {}
    assert (tmp_path / "lost+found").is_dir()


FIRST_START = """
import sys, os, pathlib
from modelreg.storage import recovery
from modelreg.storage.layout import Layout
stop = int(sys.argv[2])
calls = {"os.mkdir", "open", "os.rename", "os.truncate"}
count = 0
def hook(event, arguments):
    global count
    if event in calls and isinstance(arguments[0], (str, bytes, int, os.PathLike)) and sys.argv[1] in str(arguments[0]):
        count += 1
        if count > stop:
            os._exit(9)
sys.addaudithook(hook)
recovery.lock(Layout(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5, 8, 11, 14, 100, 270, 272, 273, 274, 276])
def test_a_first_start_that_was_killed_is_gone_on_with(calls: int, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    subprocess.run([sys.executable, "-c", FIRST_START, str(root), str(calls)], check=False)
    assert boot(root) == {}
    assert files_below(root) == set()
    assert len(list((root / "blobs" / "sha256").iterdir())) == 256


@pytest.mark.parametrize("missing", ["models", "tmp", "quarantine", "blobs", "blobs/sha256/ab", "LOCK"])
def test_a_part_that_is_missing_is_made_again(missing: str, root: Path) -> None:
    path = root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert boot(root) == {}
    assert path.exists()


def test_the_directory_is_held_while_it_is_open(root: Path) -> None:
    with locked(root):
        with pytest.raises(ArchiveInUse, match=f"in use by process {os.getpid()} on "):
            recovery.lock(Layout(root))
    with locked(root):
        pass


def test_a_holder_that_has_not_said_who_it_is(root: Path) -> None:
    with locked(root):
        os.truncate(root / "LOCK", 0)
        with pytest.raises(ArchiveInUse, match="in use by another process"):
            recovery.lock(Layout(root))


def test_an_archive_of_cogments(tmp_path: Path) -> None:
    model = tmp_path / "modèle ✓"
    model.mkdir()
    (model / "modèle ✓.yaml").write_text("model_id: modèle ✓\nuser_data: {}\n")
    (model / "modèle ✓-v000001.data").write_bytes(b"data")
    before = files_below(tmp_path)
    with pytest.raises(ForeignArchive, match="Cogment Model Registry"):
        recovery.lock(Layout(tmp_path))
    assert files_below(tmp_path) == before
    assert not (tmp_path / "LOCK").exists()


@pytest.mark.parametrize("name", ["thesis.tex", "models.bak", ".hidden"])
def test_somebody_elses_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ForeignArchive, match=name):
        recovery.lock(Layout(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (b'{"format": "modelreg", "version": 2}', ArchiveUnusable, "has format 2, this program knows format 1"),
        (b'{"format": "other", "version": 1}', ForeignArchive, "belongs to 'other'"),
        (b"", ForeignArchive, "FORMAT file that can't be read"),
        (b"\xff\xfe", ForeignArchive, "FORMAT file that can't be read"),
        (b"[]", ForeignArchive, "FORMAT file that can't be read"),
        (b"{}", ForeignArchive, "FORMAT file that can't be read"),
        (b"1", ForeignArchive, "FORMAT file that can't be read"),
        (b"[" * 100_000, ForeignArchive, "FORMAT file that can't be read"),
    ],
)
def test_another_format(text: bytes, error: type[Exception], message: str, root: Path) -> None:
    (root / "FORMAT").write_bytes(text)
    with pytest.raises(error, match=message):
        recovery.lock(Layout(root))
    assert (root / "FORMAT").read_bytes() == text


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveUnusable, match="can't be used: "):
        recovery.lock(Layout(tmp_path / "file"))


@pytest.mark.parametrize("part", ["models", "tmp", "quarantine", "blobs"])
def test_a_file_in_the_place_of_a_part(part: str, root: Path) -> None:
    (root / part).rename(root.parent / "elsewhere")
    (root / part).touch()
    with pytest.raises(ArchiveUnusable):
        boot(root)


def test_a_lock_that_leads_elsewhere(root: Path, tmp_path: Path) -> None:
    (root / "LOCK").unlink()
    (root / "LOCK").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveUnusable):
        recovery.lock(Layout(root))
    assert not (tmp_path / "elsewhere").exists()


def test_directories_that_can_not_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    with monkeypatch.context() as broken:
        fail_directory_syncs(broken)
        with pytest.raises(ArchiveUnusable, match="could not be synced"):
            recovery.lock(Layout(root))
    assert boot(root) == {}, "and the lock is free"


def test_without_a_free_descriptor(root: Path) -> None:
    with no_free_descriptor(), pytest.raises(ArchiveUnusable):
        recovery.lock(Layout(root))
    with locked(root) as layout, no_free_descriptor(), pytest.raises(ArchiveUnusable):
        recovery.recover(layout, silent_logger())


# Records


def test_what_was_stored_is_there(layout: Layout, root: Path) -> None:
    make(layout, "a/b", [1, 2, 10], ceiling=100)
    make(layout, "x" * 500, [3])
    make(layout, "empty", [])
    found = boot(root)
    assert {model: numbers(one) for model, one in found.items()} == {"a/b": [1, 2, 10], "x" * 500: [3], "empty": []}
    assert found["a/b"].record == model_record("a/b", 100)
    assert found["a/b"].highest_number == 10
    assert found["a/b"].versions[0] == record_of("a/b", 1, b"a/b 1")
    assert quarantined(root) == []
    assert_second_boot_is_quiet(root, found)


def test_what_a_crash_left_unfinished_is_swept(layout: Layout, root: Path) -> None:
    make(layout, "m", [1])
    durable.write_sealed(layout.tmp, b"half an upload", 0o640)
    going = layout.tmp / "0123abcd"
    make(layout, "deleted", [1])
    layout.model("deleted").rename(going)
    (layout.tmp / "link").symlink_to(root)
    found = boot(root)
    assert list(found) == ["m"]
    assert not list(layout.tmp.iterdir())
    assert (root / "FORMAT").exists()


def test_what_a_killed_server_did_not_come_to_sync_is_made_durable(
    layout: Layout, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that find a version after the start take it for stored."""
    make(layout, "m", [1])
    synced = record_syncs(monkeypatch)
    boot(root)
    named = {root, layout.models, layout.blobs, layout.model("m"), layout.versions("m")}
    named.add(layout.blob(hashlib.sha256(b"m 1").digest()).parent)
    assert named <= {Path(path) for path in synced}


@pytest.mark.parametrize("begun", ["directory", "versions"])
def test_a_creation_that_was_cut_short_leaves_nothing(begun: str, layout: Layout, root: Path) -> None:
    layout.model("m").mkdir()
    if begun == "versions":
        layout.versions("m").mkdir()
    assert boot(root) == {}
    assert not layout.model("m").exists()
    assert quarantined(root) == []


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(500))


def huge(path: Path) -> None:
    os.truncate(path, 33 << 20)


def nested(path: Path) -> None:
    path.write_bytes(b'{"a":' * 200_000)


def linked(path: Path) -> None:
    target = path.with_name("target")
    path.rename(target)
    path.symlink_to(target)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))


def another_models(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_id": "another"}))


def half_a_surrogate_pair(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"user_data": {"a": "\ud800"}}))


def no_number_at_all(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "1"}))


FAULTS = [truncated, emptied, garbage, huge, nested, linked, dangling, directory, fifo, newer, another_models]
FAULTS += [half_a_surrogate_pair, no_number_at_all]
every_fault = pytest.mark.parametrize("spoil", FAULTS)


@every_fault
def test_a_bad_sidecar_goes_to_quarantine_and_its_number_stays_given(
    spoil: Callable[[Path], None], layout: Layout, root: Path
) -> None:
    make(layout, "m", [1, 2, 3])
    make(layout, "other", [1])
    spoil(layout.version_sidecar("m", 3))
    found = boot(root)
    assert numbers(found["m"]) == [1, 2]
    assert found["m"].highest_number == 3
    assert numbers(found["other"]) == [1]
    assert quarantined(root) == ["m+versions+0000000003.json"]
    assert_second_boot_is_quiet(root, found)
    assert boot(root)["m"].record.number_ceiling == 3


@every_fault
def test_a_bad_model_record_is_restored(spoil: Callable[[Path], None], layout: Layout, root: Path) -> None:
    make(layout, "m", [1, 5], ceiling=100)
    spoil(layout.model_record("m"))
    found = boot(root)
    assert numbers(found["m"]) == [1, 5]
    assert found["m"].record.number_ceiling >= 5 + NUMBERS_SKIPPED
    assert found["m"].record.user_data == {}
    assert quarantined(root) == ["m+model.json"]
    assert_second_boot_is_quiet(root, found)


@every_fault
def test_a_bad_model_record_without_versions_keeps_numbers_from_being_given_again(
    spoil: Callable[[Path], None], layout: Layout, root: Path
) -> None:
    make(layout, "m", [], ceiling=100)
    spoil(layout.model_record("m"))
    found = boot(root)
    assert found["m"].record.number_ceiling >= NUMBERS_SKIPPED
    assert_second_boot_is_quiet(root, found)


def test_a_lost_model_record_of_a_long_id_is_restored_from_its_versions(layout: Layout, root: Path) -> None:
    model_id = "é" * 250
    make(layout, model_id, [7])
    layout.model_record(model_id).unlink()
    found = boot(root)
    assert numbers(found[model_id]) == [7]
    assert found[model_id].record.number_ceiling == 7 + NUMBERS_SKIPPED
    assert_second_boot_is_quiet(root, found)


def fail_to_read(monkeypatch: pytest.MonkeyPatch, path: Path, call: str, error: int) -> None:
    """One file can't be opened, or not read: a bad sector under its inode or its bytes, or somebody else's file."""
    real_open, real_read, file = os.open, os.read, path.stat()

    def open_(name: str | Path, flags: int, *args: int) -> int:
        if call == "open" and Path(name) == path:
            raise OSError(error, os.strerror(error))
        return real_open(name, flags, *args)

    def read(fd: int, size: int) -> bytes:
        if call == "read" and os.path.samestat(os.fstat(fd), file):
            raise OSError(error, os.strerror(error))
        return real_read(fd, size)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "read", read)


unreadable = pytest.mark.parametrize(
    ("call", "error"), [("open", errno.EIO), ("open", errno.EACCES), ("read", errno.EIO)]
)


@unreadable
def test_a_sidecar_that_can_not_be_read_goes_to_quarantine(
    call: str, error: int, layout: Layout, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(layout, "m", [1, 2, 3])
    make(layout, "other", [1])
    with monkeypatch.context() as broken:
        fail_to_read(broken, layout.version_sidecar("m", 3), call, error)
        found = boot(root)
    assert numbers(found["m"]) == [1, 2]
    assert found["m"].highest_number == 3
    assert numbers(found["other"]) == [1]
    assert quarantined(root) == ["m+versions+0000000003.json"]
    assert_second_boot_is_quiet(root, found)


@unreadable
def test_a_model_record_that_can_not_be_read_is_restored_and_kept(
    call: str, error: int, layout: Layout, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(layout, "m", [1, 5], ceiling=100)
    before = layout.model_record("m").read_bytes()
    with monkeypatch.context() as broken:
        fail_to_read(broken, layout.model_record("m"), call, error)
        broken.setattr(os, "link", refuse_links(layout.quarantine))  # fs.protected_hardlinks, of somebody else's file
        found = boot(root)
    assert numbers(found["m"]) == [1, 5]
    assert found["m"].record.number_ceiling >= 5 + NUMBERS_SKIPPED
    (place,) = layout.quarantine.iterdir()
    assert place.read_bytes() == before
    assert_second_boot_is_quiet(root, found)


def refuse_links(directory: Path) -> Callable[..., None]:
    real_link = os.link

    def link(path: Path, other: Path, **options: bool) -> None:
        if Path(other).parent == directory:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real_link(path, other, **options)

    return link


def test_a_bad_sidecar_that_can_not_be_moved_stays_and_so_does_its_blob(
    layout: Layout, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(layout, "m", [1, 2])
    blob = layout.blob(hashlib.sha256(b"m 2").digest())
    os.utime(blob, (0, 0))
    rename = Path.rename

    def broken_rename(path: Path, other: Path) -> Path:
        if path == layout.version_sidecar("m", 2):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, other)

    with monkeypatch.context() as broken:
        fail_to_read(broken, layout.version_sidecar("m", 2), "read", errno.EIO)
        broken.setattr(Path, "rename", broken_rename)
        found = boot(root)
    assert numbers(found["m"]) == [1]
    assert found["m"].highest_number == 2
    assert blob.exists()
    assert quarantined(root) == []
    assert numbers(boot(root)["m"]) == [1, 2], "it could be read after all"


def test_a_ceiling_stays_below_the_last_number(layout: Layout, root: Path) -> None:
    make(layout, "m", [HIGHEST_NUMBER - 5])
    layout.model_record("m").unlink()
    assert boot(root)["m"].record.number_ceiling == HIGHEST_NUMBER


def test_everything_of_a_model_is_bad(layout: Layout, root: Path) -> None:
    make(layout, "m", [1, 2])
    for path in (layout.model_record("m"), layout.version_sidecar("m", 1), layout.version_sidecar("m", 2)):
        emptied(path)
    found = boot(root)
    assert numbers(found["m"]) == []
    assert found["m"].record.number_ceiling > 2
    assert len(quarantined(root)) == 3
    assert_second_boot_is_quiet(root, found)


def test_everything_of_a_model_with_a_long_id_is_bad(layout: Layout, root: Path) -> None:
    """Nothing tells its id any more: all of it is kept for a person."""
    model_id = "x" * 400
    make(layout, model_id, [1])
    emptied(layout.model_record(model_id))
    emptied(layout.version_sidecar(model_id, 1))
    found = boot(root)
    assert found == {}
    assert not layout.model(model_id).exists()
    assert_second_boot_is_quiet(root, found)


def test_a_misnamed_sidecar(layout: Layout, root: Path) -> None:
    make(layout, "m", [1, 2])
    layout.version_sidecar("m", 2).rename(layout.version_sidecar("m", 9))
    found = boot(root)
    assert numbers(found["m"]) == [1]
    assert found["m"].highest_number == 9
    assert quarantined(root) == ["m+versions+0000000009.json"]


def test_a_model_directory_that_was_copied(layout: Layout, root: Path) -> None:
    make(layout, "m", [1])
    shutil.copytree(layout.model("m"), layout.models / "copy")
    found = boot(root)
    assert numbers(found["m"]) == [1]
    assert numbers(found["copy"]) == []
    assert_second_boot_is_quiet(root, found)


@pytest.mark.parametrize("name", ["NOTES.txt", "\udcff\udcfe", "é" * 127, ".git", "%zz"])
@pytest.mark.parametrize("kind", [Path.touch, Path.mkdir, make], ids=["file", "directory", "full directory"])
def test_odd_names_among_the_models_stop_nothing(
    name: str, kind: Callable[..., None], layout: Layout, root: Path
) -> None:
    make(layout, "m", [1])
    path = layout.models / name
    if kind is make:
        path.mkdir()
        (path / "versions").mkdir()
        (path / "versions" / "0000000001.json").touch()
    else:
        kind(path)
    found = boot(root)
    assert list(found) == ["m"]
    assert path.is_file() == (kind is Path.touch)
    assert_second_boot_is_quiet(root, found)


def test_odd_names_among_the_versions_are_left_alone(layout: Layout, root: Path) -> None:
    make(layout, "m", [1])
    odd = [layout.versions("m") / name for name in ("0000000000.json", "9999999999.json", "1.json", "a~", "\udcff")]
    for path in odd:
        path.touch()
    found = boot(root)
    assert numbers(found["m"]) == [1]
    assert found["m"].highest_number == 1
    assert all(path.exists() for path in odd)
    assert quarantined(root) == []


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_model_without_a_place_for_versions_gets_one(kind: str, layout: Layout, root: Path) -> None:
    make(layout, "m", [])
    layout.versions("m").rmdir()
    if kind == "a file":
        layout.versions("m").touch()
    assert numbers(boot(root)["m"]) == []
    sidecars.write_version(layout, record_of("m", 1, b""))


# Blobs


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_blob_that_nothing_refers_to_goes_after_a_day(layout: Layout, root: Path) -> None:
    make(layout, "m", [1])
    used = layout.blob(hashlib.sha256(b"m 1").digest())
    old, young = put_blob(layout, b"old"), put_blob(layout, b"young")
    age(used, 10 * ORPHAN_AGE)
    age(old, ORPHAN_AGE + 60)
    age(young, ORPHAN_AGE - 600)
    boot(root)
    assert (used.exists(), old.exists(), young.exists()) == (True, False, True)


def test_a_blob_that_a_record_in_quarantine_may_refer_to_is_kept(layout: Layout, root: Path) -> None:
    make(layout, "m", [1, 2])
    newer(layout.version_sidecar("m", 2))
    blob = layout.blob(hashlib.sha256(b"m 2").digest())
    age(blob, 10 * ORPHAN_AGE)
    for _ in range(2):
        boot(root)
        assert blob.exists()
    (record,) = layout.quarantine.iterdir()
    record.unlink()
    boot(root)
    assert not blob.exists()


def test_so_is_one_of_a_whole_model_in_quarantine(layout: Layout, root: Path) -> None:
    model_id = "x" * 400
    make(layout, model_id, [1])
    blob = layout.blob(hashlib.sha256(f"{model_id} 1".encode()).digest())
    age(blob, 10 * ORPHAN_AGE)
    layout.model_record(model_id).unlink()
    newer(layout.version_sidecar(model_id, 1))
    for _ in range(2):
        assert boot(root) == {}
        assert blob.exists()


def test_a_damaged_blob_in_quarantine_keeps_nothing(layout: Layout, root: Path) -> None:
    orphan = put_blob(layout, b"old")
    age(orphan, 2 * ORPHAN_AGE)
    layout.quarantine_place(orphan.name).touch()
    boot(root)
    assert not orphan.exists()


def test_unknown_names_among_the_blobs_are_left_alone(layout: Layout, root: Path) -> None:
    digest = hashlib.sha256(b"old").hexdigest()
    odd = [layout.blobs / "README", layout.blobs / "ab" / "README", layout.blobs / "00" / digest]
    for path in odd:
        path.touch()
        age(path, 2 * ORPHAN_AGE)
    (layout.blobs / "ab" / "lost+found").mkdir()
    boot(root)
    assert all(path.exists() for path in odd)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 1)], ids=["missing", "cut short"])
def test_a_version_without_its_blob_stays_listed(damage: Callable[[Path], None], layout: Layout, root: Path) -> None:
    make(layout, "m", [1, 2])
    damage(layout.blob(hashlib.sha256(b"m 2").digest()))
    found = boot(root)
    assert numbers(found["m"]) == [1, 2]
    assert_second_boot_is_quiet(root, found)
