"""Renames that replace nothing, and that exchange."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest

from modelreg import renameat2


def test_a_rename_that_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    renameat2.rename_new(tmp_path / "old", tmp_path / "new")
    (tmp_path / "old").write_text("older")
    with pytest.raises(FileExistsError) as caught:
        renameat2.rename_new(tmp_path / "old", tmp_path / "new")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "old"), str(tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "old"


def test_an_exchange_of_a_file_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    renameat2.exchange(tmp_path / "file", tmp_path / "directory")
    assert (tmp_path / "file").is_dir()
    assert (tmp_path / "directory").is_file()


def test_a_c_library_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(OSError) as caught:
        renameat2.exchange(tmp_path / "a", tmp_path / "b")
    assert caught.value.errno == errno.ENOSYS
    assert caught.value.errno in renameat2.UNKNOWN_FLAG_ERRNOS
