from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelreg.storage import durable
from modelreg.storage.durable import DirectorySyncError
from tests.storage.surroundings import fail_directory_syncs, fail_file_syncs, no_free_descriptor, small_file_system

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return durable.write_sealed(tmp_path / "tmp", b"content", durable.CONTENT_MODE)


@pytest.fixture
def final(tmp_path: Path) -> Path:
    (tmp_path / "final").mkdir()
    return tmp_path / "final" / "name"


# Writing


def test_a_sealed_file_has_its_content_and_mode(sealed: Path) -> None:
    assert sealed.read_bytes() == b"content"
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o440


def test_writing_goes_on_after_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:3], offset))
    with (tmp_path / "file").open("wb") as file:
        durable.write_all(file.fileno(), memoryview(b"ten bytes!"), 2)
    assert (tmp_path / "file").read_bytes() == b"\0\0ten bytes!"


LIMITED = """
import errno, os, pathlib, resource, sys
from modelreg.storage import durable
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
directory = pathlib.Path(sys.argv[1])
try:
    durable.write_sealed(directory, bytes(1001), 0o440)
except OSError as error:
    assert error.errno == errno.EFBIG, error
else:
    raise AssertionError("it fitted")
assert not list(directory.iterdir())
assert durable.write_sealed(directory, bytes(1000), 0o440).stat().st_size == 1000
"""


def test_what_the_kernel_writes_only_half_of_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], check=True)


def test_without_space_nothing_is_left_and_what_is_small_still_fits(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", 1 << 20) as small:
        with pytest.raises(OSError) as caught:
            durable.write_sealed(small, bytes(2 << 20), 0o440)
        assert caught.value.errno == errno.ENOSPC
        assert not list(small.iterdir())
        durable.write_sealed(small, bytes(1000), 0o440)


def test_a_file_that_can_not_be_synced_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_file_syncs(monkeypatch)
    with pytest.raises(OSError):
        durable.write_sealed(tmp_path, b"content", 0o440)
    assert not list(tmp_path.iterdir())


def test_sealing_closes_a_file_that_can_not_be_synced() -> None:
    read_end, write_end = os.pipe()  # the kernel syncs no pipe
    os.close(read_end)
    with pytest.raises(OSError) as caught:
        durable.seal(write_end, 0o440)
    assert caught.value.errno == errno.EINVAL


def test_a_file_that_can_not_be_closed_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network's file system has to say of a write may come as late as that."""
    close = os.close

    def failing(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        with pytest.raises(OSError):
            durable.write_sealed(tmp_path, b"content", 0o440)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "link", "link to nothing"])
def test_a_temporary_file_is_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    taken = tmp_path / "taken"
    other = tmp_path / "other"
    if kind != "link to nothing":
        other.write_bytes(b"content")
    if kind == "file":
        other.rename(taken)
    else:
        taken.symlink_to(other)
    monkeypatch.setattr(durable, "temporary_path", lambda _: taken)
    with pytest.raises(FileExistsError):
        durable.create_temporary(tmp_path)
    assert kind == "link to nothing" or taken.read_bytes() == b"content"


def test_temporary_files_have_names_of_their_own(tmp_path: Path) -> None:
    (one, first), (other, second) = durable.create_temporary(tmp_path), durable.create_temporary(tmp_path)
    os.close(one)
    os.close(other)
    assert {first, second} == set(tmp_path.iterdir())


# Giving names


def test_publishing_moves_a_file_to_its_name(sealed: Path, final: Path) -> None:
    durable.publish(sealed, final)
    assert final.read_bytes() == b"content"
    assert not sealed.exists()
    assert final.stat().st_nlink == 1


def test_publishing_overwrites_nothing(sealed: Path, final: Path) -> None:
    final.write_bytes(b"there before")
    with pytest.raises(FileExistsError):
        durable.publish(sealed, final)
    assert final.read_bytes() == b"there before"
    assert sealed.read_bytes() == b"content"


def test_publishing_follows_no_link(sealed: Path, final: Path, tmp_path: Path) -> None:
    final.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        durable.publish(sealed, final)
    assert not (tmp_path / "elsewhere").exists()


def test_publishing_into_a_directory_that_is_not_there(sealed: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable.publish(sealed, tmp_path / "nowhere" / "name")
    assert sealed.exists()


def test_replacing_puts_a_file_in_the_place_of_another(sealed: Path, final: Path) -> None:
    final.write_bytes(b"there before")
    durable.replace(sealed, final)
    assert final.read_bytes() == b"content"
    assert not sealed.exists()


@pytest.mark.parametrize("directory", [False, True], ids=["a file", "a directory"])
def test_moving_away(directory: bool, final: Path, tmp_path: Path) -> None:
    path = tmp_path / "here"
    if directory:
        path.mkdir()
        (path / "file").touch()
    else:
        path.touch()
    durable.move_away(path, final)
    assert not path.exists()
    assert (final / "file").exists() if directory else final.exists()


def test_making_a_directory_twice(tmp_path: Path) -> None:
    durable.make_directory(tmp_path / "directory")
    durable.make_directory(tmp_path / "directory")
    assert (tmp_path / "directory").is_dir()


def test_removing_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    durable.unlink_if_there(tmp_path / "file")
    durable.unlink_if_there(tmp_path / "file")


# A directory that can't be synced, and one that can't even be opened for it


def test_a_directory_that_the_kernel_does_not_sync() -> None:
    with pytest.raises(DirectorySyncError, match="'self' could not be synced: Invalid argument"):
        durable.sync_directory(Path("/proc/self"))


@pytest.fixture(params=["publish", "replace", "move_away", "make_directory", "sync_directory"])
def change(request: pytest.FixtureRequest, sealed: Path, final: Path) -> Callable[[], None]:
    changes: dict[str, Callable[[], None]] = {
        "publish": lambda: durable.publish(sealed, final),
        "replace": lambda: durable.replace(sealed, final),
        "move_away": lambda: durable.move_away(sealed, final),
        "make_directory": lambda: durable.make_directory(final),
        "sync_directory": lambda: durable.sync_directory(final.parent),
    }
    return changes[request.param]


def test_a_change_whose_directory_can_not_be_synced(
    change: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_directory_syncs(monkeypatch)
    with pytest.raises(DirectorySyncError):
        change()


def test_the_second_directory_of_a_move_counts_as_well(
    sealed: Path, final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_directory_syncs(monkeypatch, after=1)
    with pytest.raises(DirectorySyncError):
        durable.move_away(sealed, final)


def test_without_a_free_descriptor_nothing_changes_and_nothing_is_uncertain(
    change: Callable[[], None], sealed: Path, final: Path
) -> None:
    with no_free_descriptor(), pytest.raises(OSError) as caught:
        change()
    assert caught.value.errno == errno.EMFILE
    assert sealed.exists()
    assert not final.exists()
