"""``modelreg import-archive``, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.registry.test_importing import add_model, add_version
from tests.support.server import server_program


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelreg", "import-archive", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_reports_each_entry_and_the_sum(tmp_path: Path) -> None:
    add_model(tmp_path / "old", "policy")
    add_version(tmp_path / "old", "policy", 1, b"one")
    ended = run(tmp_path / "old", "--archive_dir", tmp_path / "new")
    assert (ended.returncode, ended.stderr) == (0, "2 imported, 0 present, 0 damaged, 0 unreadable, 0 conflict\n")
    assert ended.stdout == "imported\tpolicy\t\t\nimported\tpolicy\t1\t\n"
    again = run(tmp_path / "old", "--archive-dir", tmp_path / "new")
    assert again.stderr == "0 imported, 2 present, 0 damaged, 0 unreadable, 0 conflict\n"


def test_damage_ends_with_1_and_comes_as_json(tmp_path: Path) -> None:
    add_model(tmp_path / "old", "policy")
    add_version(tmp_path / "old", "policy", 1, b"one").unlink()
    ended = run(tmp_path / "old", "--archive_dir", tmp_path / "new", "--format=json")
    assert (ended.returncode, ended.stderr) == (1, "1 imported, 0 present, 1 damaged, 0 unreadable, 0 conflict\n")
    model, version = map(json.loads, ended.stdout.splitlines())
    assert model == {"model": "policy", "version": None, "outcome": "imported", "reason": ""}
    assert (version["version"], version["outcome"]) == (1, "damaged")
    assert version["reason"] == "its data is missing"


def test_a_source_with_nothing_in_it_is_said_to_have_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    ended = run(tmp_path / "old", "--archive_dir", tmp_path / "new")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert f"no model is in {tmp_path / 'old'}" in ended.stderr


def test_a_running_server_keeps_its_directory(tmp_path: Path) -> None:
    add_model(tmp_path / "old", "policy")
    with server_program(tmp_path / "new"):
        ended = run(tmp_path / "old", "--archive_dir", tmp_path / "new")
    assert ended.returncode == 4
    assert ended.stderr.startswith("modelreg: the archive directory")


def test_a_directory_that_cannot_be_made_is_one_line_with_advice(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "file").touch()
    ended = run(tmp_path / "old", "--archive_dir", tmp_path / "file" / "new")
    assert ended.returncode == 3
    assert ended.stderr.endswith("choose another --archive_dir\n")


def test_a_source_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ended = run(tmp_path / "nowhere", "--archive_dir", tmp_path / "new")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
