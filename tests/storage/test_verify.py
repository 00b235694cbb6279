"""Looking at all of an archive, and moving what is damaged to quarantine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from modelreg.errors import ArchiveInUse, ArchiveUnusable, ForeignArchive
from modelreg.log import silent_logger
from modelreg.storage import hashing, inspection, lock, recovery, sidecars, verify
from modelreg.storage.layout import Layout
from modelreg.storage.sidecars import ModelRecord, VersionRecord
from modelreg.storage.verify import Report
from tests.storage.surroundings import plain_user, quick_directory

CONTENTS = {1: b"one", 2: b"two" * 1_000_000, 3: b""}


def digest(number: int) -> bytes:
    return hashlib.sha256(CONTENTS[number]).digest()


def version(number: int, **changes: object) -> VersionRecord:
    record = VersionRecord(
        model_id="m",
        version_number=number,
        creation_timestamp=number,
        sha256=digest(number).hex(),
        size=len(CONTENTS[number]),
        user_data={},
    )
    return attrs.evolve(record, **changes)  # type: ignore[arg-type]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as path:  # which other users can reach
        yield path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An archive that no server runs on, with a model of three versions."""
    result = Layout(tmp_path / "archive")
    lock.take(result).close()
    sidecars.write_model(result, ModelRecord(model_id="m", user_data={}, number_ceiling=0))
    for number, content in CONTENTS.items():
        blob = result.blob(digest(number))
        blob.write_bytes(content)
        blob.chmod(0o440)
        sidecars.write_version(result, version(number))
    return result


@pytest.fixture
def in_use(layout: Layout) -> Iterator[None]:
    taken = lock.take(layout)
    yield
    taken.close()


def everything(layout: Layout) -> dict[str, bytes]:
    return {
        str(path.relative_to(layout.root)): path.read_bytes()
        for path in layout.root.rglob("*")
        if path.is_file() and path.name != "LOCK"
    }


def kinds(report: Report) -> list[str]:
    return [damage.kind for damage in report.damage]


def test_nothing_is_wrong(layout: Layout) -> None:
    before = everything(layout)
    assert verify.verify(layout, repair=True) == Report(
        read_only="",
        models=1,
        versions=3,
        blobs=3,
        bytes=sum(map(len, CONTENTS.values())),
        leftovers=0,
        quarantined=0,
        unknown=[],
        damage=[],
    )
    assert everything(layout) == before


def flip(path: Path) -> None:
    path.chmod(0o640)
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    path.write_bytes(content)


DAMAGED: dict[str, Callable[[Path], None]] = {
    "its content has changed": flip,
    "a symbolic link": lambda path: _instead(path, lambda: path.symlink_to("/etc/passwd")),
    "not a regular file": lambda path: _instead(path, lambda: os.mkfifo(path)),
}


def _instead(path: Path, make: Callable[[], object]) -> None:
    path.unlink()
    make()


@pytest.mark.parametrize("reason", DAMAGED)
@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_blob(layout: Layout, number: int, reason: str) -> None:
    sidecars.write_version(layout, version(number, version_number=7))
    blob = layout.blob(digest(number))
    DAMAGED[reason](blob)
    before = everything(layout)
    (damage,) = verify.verify(layout).damage
    assert (damage.kind, damage.path, damage.reason) == ("damaged blob", str(blob.relative_to(layout.root)), reason)
    assert damage.versions == [("m", number), ("m", 7)]
    assert not damage.repaired
    assert everything(layout) == before  # unless told to, it changes nothing

    report = verify.verify(layout, repair=True)
    assert [damage.repaired for damage in report.damage] == [True]
    assert report.quarantined == 1
    assert not os.path.lexists(blob)
    (kept,) = layout.quarantine.iterdir()
    assert kept.name.startswith(blob.name)

    (damage,) = verify.verify(layout, repair=True).damage  # it's lost all the same
    assert (damage.kind, damage.reason, damage.repaired) == ("missing blob", "it is missing", False)
    assert damage.versions == [("m", number), ("m", 7)]


def test_a_size_that_is_not_the_one_recorded(layout: Layout) -> None:
    layout.version_sidecar("m", 1).unlink()
    sidecars.write_version(layout, version(1, size=4))
    (damage,) = verify.verify(layout).damage
    assert (damage.kind, damage.reason) == ("damaged blob", "it has 3 bytes, 4 are recorded")


def test_a_bad_sidecar(layout: Layout) -> None:
    layout.version_sidecar("m", 3).write_bytes(b"")
    (damage,) = verify.verify(layout).damage
    assert damage.kind == "bad record"
    assert damage.path == "models/m/versions/0000000003.json"
    assert damage.reason.startswith("not JSON")
    report = verify.verify(layout, repair=True)
    assert kinds(report) == ["bad record"]
    assert report.quarantined == 1
    assert inspection.records_in_quarantine(layout) == 1
    after = verify.verify(layout)
    assert (after.damage, after.versions, after.leftovers) == ([], 2, 1)
    (model,) = recovery.recover(layout, silent_logger())
    assert model.record.number_ceiling == 3  # which is never given again


def test_a_bad_model_record(layout: Layout) -> None:
    layout.model_record("m").write_bytes(b"{")
    (damage,) = verify.verify(layout).damage
    assert (damage.kind, damage.path) == ("bad record", "models/m/model.json")
    assert damage.versions == [("m", 1), ("m", 2), ("m", 3)]
    assert verify.verify(layout, repair=True).quarantined == 1
    assert verify.verify(layout).damage == []
    (model,) = recovery.recover(layout, silent_logger())
    assert [each.version_number for each in model.versions] == [1, 2, 3]
    assert model.record.number_ceiling > 1_000


def test_a_missing_model_record(layout: Layout) -> None:
    layout.model_record("m").unlink()
    (damage,) = verify.verify(layout).damage
    assert damage.kind == "missing record"


def test_what_is_no_damage(layout: Layout) -> None:
    (layout.models / "unfinished" / "versions").mkdir(parents=True)
    (layout.models / "note.txt").touch()
    (layout.blobs / "ab" / "note.txt").touch()
    (layout.tmp / ("ab" * 16)).write_bytes(b"half a file")
    orphan = layout.blob(hashlib.sha256(b"orphan").digest())
    orphan.write_bytes(b"orphan")
    before = everything(layout)
    report = verify.verify(layout, repair=True)
    assert report.damage == []
    assert report.leftovers == 2
    assert report.unknown == ["blobs/sha256/ab/note.txt", "models/note.txt"]
    assert everything(layout) == before
    flip(orphan)
    assert kinds(verify.verify(layout)) == ["damaged blob"]


@pytest.mark.usefixtures("in_use")
def test_beside_a_server_it_only_reads(layout: Layout) -> None:
    flip(layout.blob(digest(1)))
    before = everything(layout)
    report = verify.verify(layout)
    assert report.read_only.startswith(f"in use by process {os.getpid()} on ")
    assert kinds(report) == ["damaged blob"]
    with pytest.raises(ArchiveInUse, match=str(os.getpid())):
        verify.verify(layout, repair=True)
    assert everything(layout) == before


def test_meanwhile_nobody_else_gets_the_lock(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(_: int) -> bytes:
        with pytest.raises(ArchiveInUse):
            lock.take(layout)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashing, "sha256", look)
    report = verify.verify(layout)
    assert {damage.reason for damage in report.damage} == {"it can't be read (Input/output error)"}


def test_what_can_not_be_read_is_left_where_it_is(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = everything(layout)
    with monkeypatch.context() as broken:
        broken.setattr(hashing, "sha256", fail)
        report = verify.verify(layout, repair=True)
    assert kinds(report) == ["unreadable blob"] * 3
    assert not any(damage.repaired for damage in report.damage)
    assert everything(layout) == before
    assert verify.verify(layout).damage == []


@pytest.mark.parametrize("name", ["a blob", "models/m/model.json", "models/m/versions", "blobs/sha256/ab"])
@pytest.mark.parametrize("repair", [True, False])
def test_what_the_user_may_not_read_is_no_damage(name: str, repair: bool, layout: Layout) -> None:
    path = layout.blob(digest(1)) if name == "a blob" else layout.root / name
    before = everything(layout)
    mode = path.stat().st_mode
    with plain_user(layout.root.parent):
        path.chmod(0)
        with pytest.raises(
            ArchiveUnusable, match=f"{path}: Permission denied: give the directory to the server's user"
        ):
            verify.verify(layout, repair=repair)
        path.chmod(mode)
    assert everything(layout) == before


class Meanwhile:
    """Does something once, just before the first blob is hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
        self._do: Callable[[], object] | None = do
        self._sha256 = hashing.sha256
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        monkeypatch.setattr(hashing, "sha256", self)

    def __call__(self, fd: int) -> bytes:
        do, self._do = self._do, None
        if do is not None:
            do()
        return self._sha256(fd)


@pytest.mark.usefixtures("in_use")
def test_a_model_that_is_deleted_meanwhile(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete() -> None:
        layout.model("m").rename(layout.tmp / "going")
        for number in CONTENTS:
            layout.blob(digest(number)).unlink()

    Meanwhile(monkeypatch, delete)
    assert verify.verify(layout).damage == []


@pytest.mark.usefixtures("in_use")
def test_a_model_that_is_stored_again_meanwhile(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace() -> None:
        layout.model("m").rename(layout.tmp / "going")
        for number in CONTENTS:
            layout.blob(digest(number)).unlink()
        sidecars.write_model(layout, ModelRecord(model_id="m", user_data={}, number_ceiling=0))
        layout.blob(digest(1)).write_bytes(CONTENTS[1])
        sidecars.write_version(layout, version(1))

    Meanwhile(monkeypatch, replace)
    assert verify.verify(layout).damage == []


@pytest.mark.usefixtures("in_use")
def test_a_blob_that_is_healed_meanwhile(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        flip(layout.blob(digest(number)))

    def heal() -> None:
        for number, content in CONTENTS.items():
            (layout.tmp / "new").write_bytes(content)
            (layout.tmp / "new").rename(layout.blob(digest(number)))

    Meanwhile(monkeypatch, heal)
    assert verify.verify(layout).damage == []


@pytest.mark.usefixtures("in_use")
def test_a_model_whose_record_comes_after_it_was_looked_for(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    read = sidecars.read
    record = layout.model_record("m").read_bytes()
    layout.model_record("m").unlink()

    def read_later(path: Path, kind: type[ModelRecord]) -> ModelRecord:
        try:
            return read(path, kind)
        finally:
            layout.model_record("m").write_bytes(record)

    monkeypatch.setattr(sidecars, "read", read_later)
    assert verify.verify(layout).damage == []


def test_no_archive_there(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnusable, match="holds no archive: name one"):
        verify.verify(Layout(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArchiveUnusable, match="holds no archive"):
        verify.verify(Layout(tmp_path / "empty"))
    (tmp_path / "empty" / "FORMAT").write_text(json.dumps({"format": "another", "version": 1}))
    with pytest.raises(ForeignArchive):
        verify.verify(Layout(tmp_path / "empty"))
    assert [path.name for path in tmp_path.rglob("*")] == ["empty", "FORMAT"]


@pytest.mark.parametrize(
    "size", [0, 1, 4095, 4096, hashing.PIECE_BYTES, hashing.PIECE_BYTES + 1, 3 * hashing.PIECE_BYTES]
)
@pytest.mark.parametrize("direct", [True, False])
def test_files_are_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, direct: bool) -> None:
    path = tmp_path / "file"
    content = os.urandom(size)
    path.write_bytes(content)
    if not direct:
        monkeypatch.setattr(hashing, "_set_direct", lambda *_: False)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert hashing.sha256(fd) == hashlib.sha256(content).digest()
    finally:
        os.close(fd)
