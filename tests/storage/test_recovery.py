from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelreg.errors import ArchiveUnusable
from modelreg.storage import durable, sidecars
from modelreg.storage.layout import HIGHEST_NUMBER, Layout
from modelreg.storage.recovery import NUMBERS_SKIPPED, ORPHAN_AGE, FoundModel
from tests.storage.surroundings import (
    boot,
    contents_below,
    files_below,
    locked,
    model_record,
    plain_user,
    quick_directory,
    record_of,
    record_syncs,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as path:
        yield path


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
    going = layout.tmp / ("0123abcd" * 4)
    make(layout, "deleted", [1])
    layout.model("deleted").rename(going)
    (layout.tmp / ("11111111" * 4)).symlink_to(root)
    (layout.tmp / "somebody else's").touch()
    found = boot(root)
    assert list(found) == ["m"]
    assert [path.name for path in layout.tmp.iterdir()] == ["somebody else's"]
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


FAULTS = [truncated, emptied, garbage, huge, nested, directory, fifo, newer, another_models]
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
        if call == "open" and os.path.realpath(name) == str(path):
            raise OSError(error, os.strerror(error), str(name))
        return real_open(name, flags, *args)

    def read(fd: int, size: int) -> bytes:
        if call == "read" and os.path.samestat(os.fstat(fd), file):
            raise OSError(error, os.strerror(error))
        return real_read(fd, size)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "read", read)


unreadable = pytest.mark.parametrize(
    ("call", "error"),
    [
        *[
            ("open", error)
            for error in (errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENOTDIR, errno.ESTALE)
        ],
        *[("read", error) for error in (errno.EIO, errno.ESTALE)],
    ],
)


@unreadable
@pytest.mark.parametrize("kind", ["sidecar", "model record"])
def test_a_record_that_can_not_be_read_ends_the_boot(
    call: str, error: int, kind: str, layout: Layout, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(layout, "m", [1, 2, 3], ceiling=100)
    path = layout.version_sidecar("m", 3) if kind == "sidecar" else layout.model_record("m")
    before = contents_below(root)
    with monkeypatch.context() as broken:
        fail_to_read(broken, path, call, error)
        with pytest.raises(ArchiveUnusable, match=f"{path}: {os.strerror(error)}: "):
            boot(root)
    assert contents_below(root) == before
    found = boot(root)
    assert numbers(found["m"]) == [1, 2, 3]
    assert found["m"].record == model_record("m", 100)


@pytest.mark.parametrize(
    "name",
    [
        "FORMAT",
        "LOCK",
        "models",
        "models/m",
        "models/m/model.json",
        "models/m/versions",
        "models/m/versions/0000000002.json",
        "tmp",
        "quarantine",
        "blobs",
        "blobs/sha256",
        "blobs/sha256/ab",
        "a blob",
    ],
)
def test_what_the_user_may_not_read_is_named(name: str, layout: Layout, root: Path) -> None:
    """As after a backup that root has restored."""
    make(layout, "m", [1, 2])
    blob = layout.blob(hashlib.sha256(b"m 2").digest())
    path = blob if name == "a blob" else root / name
    before = contents_below(root)
    mode = path.stat().st_mode
    with plain_user(root.parent):
        path.chmod(0)
        with pytest.raises(
            ArchiveUnusable, match="Permission denied: give the directory to the server's user"
        ) as caught:
            boot(root)
        path.chmod(mode)
        assert str(path) in str(caught.value)
        assert f"chown -R {os.geteuid()}:{os.getegid()} {root})" in str(caught.value)
        assert contents_below(root) == before
        assert numbers(boot(root)["m"]) == [1, 2]


@pytest.mark.parametrize("name", ["models/m", "models/m/versions", "blobs/sha256/ab"])
def test_what_the_user_may_not_write_is_named(name: str, layout: Layout, root: Path) -> None:
    make(layout, "m", [1])
    with plain_user(root.parent):
        (root / name).chmod(0o550)
        with pytest.raises(ArchiveUnusable, match=f"{root / name}: Permission denied"):
            boot(root)


@pytest.mark.parametrize("name", ["models/m", "models/m/versions"])
def test_a_symbolic_link_to_a_directory_ends_the_boot(name: str, layout: Layout, root: Path, tmp_path: Path) -> None:
    """Without the model its blobs would be taken for such as nothing refers to."""
    make(layout, "m", [1])
    blob = layout.blob(hashlib.sha256(b"m 1").digest())
    age(blob, 2 * ORPHAN_AGE)
    (root / name).rename(tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    garbage_elsewhere = tmp_path / "elsewhere" / "0000000009.json"
    garbage_elsewhere.write_bytes(b"{")
    with pytest.raises(
        ArchiveUnusable, match=f"{root / name}: it's a symbolic link: put what it leads to in its place"
    ):
        boot(root)
    assert blob.exists()
    assert garbage_elsewhere.exists()


@pytest.mark.parametrize("link", [linked, dangling])
@pytest.mark.parametrize("kind", ["sidecar", "model record"])
def test_a_symbolic_link_to_a_record_ends_the_boot(
    link: Callable[[Path], None], kind: str, layout: Layout, root: Path
) -> None:
    """What it leads to isn't read, so nothing may take its place: the record may be sound."""
    make(layout, "m", [1, 2], ceiling=100)
    path = layout.version_sidecar("m", 2) if kind == "sidecar" else layout.model_record("m")
    link(path)
    before = contents_below(root)
    with pytest.raises(ArchiveUnusable, match=f"{path}: it's a symbolic link: put what it leads to in its place"):
        boot(root)
    assert path.is_symlink()
    assert contents_below(root) == before


def test_a_bad_model_record_that_may_not_be_linked_is_kept(
    layout: Layout, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(layout, "m", [1, 5], ceiling=100)
    garbage(layout.model_record("m"))
    before = layout.model_record("m").read_bytes()
    with monkeypatch.context() as broken:
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
        if os.path.realpath(other.parent) == str(directory):
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
        if os.path.realpath(path) == str(layout.version_sidecar("m", 2)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, other)

    good = layout.version_sidecar("m", 2).read_bytes()
    garbage(layout.version_sidecar("m", 2))
    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", broken_rename)
        found = boot(root)
    assert numbers(found["m"]) == [1]
    assert found["m"].highest_number == 2
    assert blob.exists()
    assert quarantined(root) == []
    layout.version_sidecar("m", 2).write_bytes(good)
    assert numbers(boot(root)["m"]) == [1, 2], "a person has put it right"


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
