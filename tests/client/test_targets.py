"""Where a download is written: names, permissions and links of the files that it replaces."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from modelreg import renameat2
from modelreg.client.targets import FileTarget

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


def write(path: Path, data: bytes = b"new", *, overwrite: bool = True) -> None:
    with FileTarget(path, len(data), overwrite=overwrite) as target:
        target.store([data])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "name", ["模" * 80, "é" * 127, "x" * 255, "\udcff" * 255], ids=["CJK", "Latin", "ASCII", "bytes"]
)
def test_a_name_as_long_as_names_may_be(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_a_temporary_name_has_whole_characters(tmp_path: Path) -> None:
    """Some file systems refuse a name that isn't UTF-8."""
    with FileTarget(tmp_path / ("x" + "模" * 80), 0):
        (temporary,) = os.listdir(os.fsencode(tmp_path))
    assert temporary.decode().startswith(".x模")


def test_a_name_that_is_too_long_is_told_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("模" * 86)
    with pytest.raises(OSError, match="too long") as caught, FileTarget(path, 3):
        pytest.fail("it began")
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, str(path))


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o444, 0o755])
def test_a_file_keeps_its_permissions(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    path.chmod(bits)
    with FileTarget(path, 3) as target:
        (temporary,) = set(os.listdir(tmp_path)) - {"model"}
        assert mode(tmp_path / temporary) == bits  # from the start: others must not see what comes either
        target.store([b"new"])
    assert (path.read_bytes(), mode(path)) == (b"new", bits)


def test_a_new_file_has_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "model")
    finally:
        os.umask(before)
    assert mode(tmp_path / "model") == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_keeps_its_owner_where_that_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    os.chown(path, 1234, 5678)
    path.chmod(0o640)
    write(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, mode(path)) == (1234, 5678, 0o640)

    def refused(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    write(path)
    assert mode(path) == 0o600  # the group's permissions aren't for another group


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_followed(tmp_path: Path, there: bool) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "model-7", tmp_path / "latest"
    if there:
        real.write_bytes(b"old")
    link.symlink_to(Path("folder/model-7"))
    write(link)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert os.listdir(tmp_path / "folder") == ["model-7"]


def test_a_symbolic_link_is_not_replaced_unless_told_to(tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to("nowhere")
    with pytest.raises(FileExistsError) as caught:
        write(link, overwrite=False)
    assert caught.value.filename == str(link)
    assert os.listdir(tmp_path) == ["latest"]


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("renames", [True, False], ids=["a rename that replaces nothing", "nothing of the kind"])
def test_a_file_system_without_hard_links(
    error: int, renames: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> Callable[[str, str], None]:
        def fail(*_: str) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    monkeypatch.setattr(os, "link", refuse(error))
    if not renames:
        monkeypatch.setattr(renameat2, "rename_new", refuse(errno.EINVAL))
    write(tmp_path / "file", b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        write(tmp_path / "file", b"second", overwrite=False)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert mode(tmp_path / "file") == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="Not a regular file") as caught:
            write(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space") as caught:
        write(tmp_path / "model")
    assert caught.value.filename == str(tmp_path / "model")
    assert os.listdir(tmp_path) == []
