from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from modelreg.errors import ArchiveInUse, ArchiveUnusable, ForeignArchive
from modelreg.log import silent_logger
from modelreg.storage import durable, lock, recovery, sidecars
from modelreg.storage.layout import Layout
from tests.storage.surroundings import (
    boot,
    fail_directory_syncs,
    files_below,
    locked,
    model_record,
    no_free_descriptor,
    plain_user,
    quick_directory,
    record_syncs,
    small_file_system,
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


def test_a_new_directory_is_made_with_those_above_it(tmp_path: Path) -> None:
    root = tmp_path / "some" / "where" / "new"
    assert boot(root) == {}
    assert json.loads((root / "FORMAT").read_text()) == {"format": "modelreg", "version": 1}
    assert {path.name for path in root.iterdir()} == {"FORMAT", "LOCK", "blobs", "models", "tmp", "quarantine"}
    assert len(list((root / "blobs" / "sha256").iterdir())) == 256
    assert files_below(root) == set()


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
from modelreg.storage import lock
from modelreg.storage.layout import Layout
stop = int(sys.argv[2])
calls = {"os.mkdir", "open", "os.rename", "os.truncate"}
count = 0
def hook(event, arguments):
    global count
    path = str(arguments[0]) if arguments else ""
    if event in calls and (sys.argv[1] in path or "/proc/self/fd/" in path):
        count += 1
        if count > stop:
            os._exit(9)
sys.addaudithook(hook)
lock.take(Layout(pathlib.Path(sys.argv[1])))
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
            lock.take(Layout(root))
    with locked(root):
        pass


def test_it_is_held_without_its_lock_file(root: Path) -> None:
    with locked(root):
        (root / "LOCK").unlink()
        with pytest.raises(ArchiveInUse, match="in use by another process"):
            lock.take(Layout(root))


@pytest.mark.parametrize("take", [lock.take, lock.take_existing])
def test_an_older_server_holds_the_lock_file_only(take: Callable[[Layout], lock.Lock], root: Path) -> None:
    with (root / "LOCK").open("w") as file:
        file.write("process 1 on old\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ArchiveInUse, match="in use by process 1 on old"):
            take(Layout(root))


def test_what_is_held_is_the_directory_not_its_path(root: Path, tmp_path: Path) -> None:
    with locked(root) as layout:
        root.rename(tmp_path / "moved")
        assert boot(root) == {}, "another server may have the path"
        sidecars.write_model(layout, model_record("m"))
        assert layout.shown(layout.model("m")) == str(root / "models" / "m")
    assert boot(root) == {}
    assert list(boot(tmp_path / "moved")) == ["m"]


def test_without_proc_the_path_has_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_stat = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return real_stat(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    with locked(root) as layout:
        assert layout.root == root


def test_a_holder_that_has_not_said_who_it_is(root: Path) -> None:
    with locked(root):
        os.truncate(root / "LOCK", 0)
        with pytest.raises(ArchiveInUse, match="in use by another process"):
            lock.take(Layout(root))


def test_an_archive_of_cogments(tmp_path: Path) -> None:
    model = tmp_path / "modèle ✓"
    model.mkdir()
    (model / "modèle ✓.yaml").write_text("model_id: modèle ✓\nuser_data: {}\n")
    (model / "modèle ✓-v000001.data").write_bytes(b"data")
    before = files_below(tmp_path)
    with pytest.raises(ForeignArchive, match="Cogment Model Registry"):
        lock.take(Layout(tmp_path))
    assert files_below(tmp_path) == before
    assert not (tmp_path / "LOCK").exists()


async def test_a_program_may_give_its_own_directory(tmp_path: Path) -> None:
    """The official SDK's tests do."""
    for name in ("thesis.tex", "models.bak", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text("db: mysql\n")
    (tmp_path / "private").mkdir()
    before = files_below(tmp_path)
    with plain_user(tmp_path):
        (tmp_path / "private").chmod(0)
        for _ in range(2):
            with structlog.testing.capture_logs() as log, locked(tmp_path) as layout:
                recovery.recover(layout, structlog.get_logger())
            warnings = [(line["files"], line["first"]) for line in log if line["log_level"] == "warning"]
            assert warnings == [(5, ".hidden")]
            assert files_below(tmp_path) == before


def own_lock(root: Path) -> None:
    (root / "LOCK").write_text("process of manufacture")


def empty_lock(root: Path) -> None:
    """LevelDB has one."""
    (root / "LOCK").touch()
    (root / "CURRENT").touch()


def file_in(*parts: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        path = root.joinpath(*parts)
        path.parent.mkdir(parents=True)
        path.touch()

    return make


def link_to(target: Path, name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).symlink_to(target)


def file_as(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).touch()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("LOCK", own_lock),
        ("LOCK", empty_lock),
        ("LOCK", lambda root: os.mkfifo(root / "LOCK")),
        ("blobs", file_in("blobs", "a.bin")),
        ("blobs", file_in("blobs", "sha256", "a.bin")),
        ("models", file_in("models", "policy.pt")),
        ("models", file_in("models", "policy", "weights.pt")),
        ("models", file_in("models", "policy", "versions", "1.pt")),
        ("models", link_to(Path("/tmp"), "models")),
        ("models", file_as("models")),
        ("tmp", file_in("tmp", "unsaved.doc")),
        ("tmp", link_to(Path("/tmp"), "tmp")),
        ("quarantine", file_in("quarantine", "virus.exe")),
    ],
)
def test_what_has_a_name_of_ours_and_is_not_ours(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    before = {str(path): path.lstat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    with pytest.raises(ForeignArchive, match=f"holds another program's '{name}': choose another --archive_dir"):
        lock.take(Layout(tmp_path))
    assert {str(path): path.lstat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before


def test_a_directory_that_has_lost_its_format_file_is_ours(root: Path) -> None:
    with locked(root) as layout:
        sidecars.write_model(layout, model_record("m"))
        (layout.tmp / ("0" * 32)).touch()
        layout.quarantine_place("m+model.json").touch()
    (root / "FORMAT").unlink()
    assert list(boot(root)) == ["m"]
    assert (root / "FORMAT").exists()


def test_a_pipe_in_the_place_of_the_format_file(root: Path) -> None:
    (root / "FORMAT").unlink()
    os.mkfifo(root / "FORMAT")
    with pytest.raises(ForeignArchive, match="FORMAT file that can't be read"):
        lock.take(Layout(root))


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
        lock.take(Layout(root))
    assert (root / "FORMAT").read_bytes() == text


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveUnusable, match="can't be used: "):
        lock.take(Layout(tmp_path / "file"))


@pytest.mark.parametrize("part", ["models", "tmp", "quarantine", "blobs"])
def test_a_file_in_the_place_of_a_part(part: str, root: Path) -> None:
    (root / part).rename(root.parent / "elsewhere")
    (root / part).touch()
    with pytest.raises(ArchiveUnusable):
        boot(root)


@pytest.mark.parametrize("part", ["models", "tmp", "quarantine", "blobs", "blobs/sha256", "blobs/sha256/ab"])
def test_a_symbolic_link_in_the_place_of_a_part(part: str, root: Path, tmp_path: Path) -> None:
    (root / part).rename(tmp_path / "elsewhere")
    (root / part).symlink_to(tmp_path / "elsewhere")
    somebodys = tmp_path / "elsewhere" / ("0" * 32)
    somebodys.touch()
    with pytest.raises(
        ArchiveUnusable, match=f"{root / part}: it's a symbolic link: put what it leads to in its place"
    ):
        boot(root)
    assert somebodys.exists()


def test_a_symbolic_link_to_the_whole_directory_will_do(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert boot(tmp_path / "link") == {}
    with locked(root), pytest.raises(ArchiveInUse):
        lock.take(Layout(tmp_path / "link"))


@pytest.mark.parametrize("part", ["models", "blobs", "tmp", "blobs/sha256"])
def test_a_part_on_another_file_system(part: str, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    (root / part).parent.mkdir(parents=True)
    with small_file_system(root / part, 4 << 20):
        with pytest.raises(ArchiveUnusable, match="it's on another file system than the rest of it: put all of"):
            boot(root)
    assert files_below(root) == set()


@pytest.mark.parametrize(
    ("name", "part"), [("link", "blobs/sha256"), ("rename", "models")], ids=["of blobs", "of models"]
)
def test_a_part_that_can_not_be_reached_by_a_rename(
    name: str, part: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bind mount of the same file system."""

    def fail(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(ArchiveUnusable, match=f"{root / part}: it's on another file system than the rest of it: "):
        lock.take(Layout(root))
    assert files_below(root) == set()


def test_a_full_disk_is_served(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models can be read and deleted there."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "create_temporary", fail)
    assert boot(root) == {}


def test_a_lock_that_leads_elsewhere(root: Path, tmp_path: Path) -> None:
    (root / "LOCK").unlink()
    (root / "LOCK").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveUnusable):
        lock.take(Layout(root))
    assert not (tmp_path / "elsewhere").exists()


def test_directories_that_can_not_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    with monkeypatch.context() as broken:
        fail_directory_syncs(broken)
        with pytest.raises(ArchiveUnusable, match="could not be synced"):
            lock.take(Layout(root))
    assert boot(root) == {}, "and the lock is free"


def test_without_a_free_descriptor(root: Path) -> None:
    with no_free_descriptor(), pytest.raises(ArchiveUnusable):
        lock.take(Layout(root))
    with locked(root) as layout, no_free_descriptor(), pytest.raises(ArchiveUnusable):
        recovery.recover(layout, silent_logger())
