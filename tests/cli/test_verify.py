"""``modelreg verify`` and ``modelreg gc``, on a stopped archive and beside a running server."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from modelreg.cli import main
from modelreg.storage.layout import Layout
from tests.clients.calls import connected
from tests.support.server import ServerProgram, server_program


def damage(layout: Layout, content: bytes) -> None:
    path = layout.blob(hashlib.sha256(content).digest())
    path.chmod(0o640)
    path.write_bytes(b"damaged"[: len(content)])


@pytest.fixture
def program(tmp_path: Path) -> ServerProgram:
    """A registry with two models, which has ended."""
    with server_program(tmp_path / "archive") as result, connected(result.address) as calls:
        for model_id in ("a", "b"):
            calls.create(model_id)
            calls.store(model_id, b"shared")
        calls.store("b", b"alone")
    return result


class Ran:
    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        self.code = main([str(argument) for argument in arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


def test_all_is_well(program: ServerProgram, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "verify", "--archive_dir", program.archive_dir)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("read_only\tno\nmodels\t2\nversions\t3\nblobs\t2\nbytes\t11\n")
    assert "unknown\t0\n" in ran.out
    assert not re.search(r"\t$", ran.out, re.MULTILINE)
    assert ran.out.endswith("damaged\t0\n")


def test_the_directory_may_come_by_its_variable(
    program: ServerProgram, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ARCHIVE_DIR", str(program.archive_dir))
    assert Ran(capsys, "verify", "--format=json").json["blobs"] == 2
    assert Ran(capsys, "gc", "--format=json").json["found"] == []
    assert Ran(capsys, "verify", "--archive_dir=").code == 2


def test_without_either_it_is_where_serve_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COGMENT_MODEL_REGISTRY_ARCHIVE_DIR", raising=False)
    assert "'.cogment/model_registry'" in Ran(capsys, "verify").err


@pytest.mark.parametrize("command", ["verify", "gc", "import-archive"])
def test_a_variable_that_is_the_servers_business_may_be_wrong(
    program: ServerProgram,
    tmp_path: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "source").mkdir()
    monkeypatch.setenv("COGMENT_LOG_LEVEL", "7")
    source = [tmp_path / "source"] if command == "import-archive" else []
    assert Ran(capsys, command, *source, "--archive_dir", program.archive_dir).code == 0


def test_damage_is_named(program: ServerProgram, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(program.archive_dir)
    damage(layout, b"shared")
    layout.version_sidecar("b", 2).write_bytes(b"")
    ran = Ran(capsys, "verify", "--archive-dir", program.archive_dir)
    name = hashlib.sha256(b"shared").hexdigest()
    assert ran.code == 1
    assert "--repair" in ran.err
    *_, count, blob, record = (line.split("\t") for line in ran.out.splitlines())
    assert count == ["damaged", "2"]
    assert blob[:2] == ["damaged blob", f"blobs/sha256/{name[:2]}/{name}"]
    assert "its content has changed" in blob[2]
    assert blob[3:] == ["model=a version=1, model=b version=1", "no"]
    assert record[:2] == ["bad record", "models/b/versions/0000000002.json"]


def test_a_repair_and_what_heals(program: ServerProgram, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(program.archive_dir)
    damage(layout, b"shared")
    layout.version_sidecar("b", 2).write_bytes(b"")
    ran = Ran(capsys, "verify", "--repair", "--archive_dir", program.archive_dir)
    assert ran.code == 1
    assert ran.out.count("\tyes\n") == 2
    assert len(list(layout.quarantine.iterdir())) == 2
    ran = Ran(capsys, "verify", "--format=json", "--archive_dir", program.archive_dir)
    assert ran.code == 1
    (found,) = ran.json["damage"]
    assert found["kind"] == "missing blob"
    assert found["versions"] == [{"model": "a", "version": 1}, {"model": "b", "version": 1}]
    program.start()
    sha256 = hashlib.sha256(b"shared").hexdigest()
    for model in ("a", "b"):
        program.wait_for_log(
            "the data of a version is damaged or missing: store the same content again to heal it",
            model=model,
            version=1,
            sha256=sha256,
        )
    server = f"--endpoint=grpc://{program.address}"
    ran = Ran(capsys, "versions", "a", server, "--format=json")
    assert [(version["version"], version["damaged"]) for version in json.loads(ran.out)] == [(1, True)]
    ran = Ran(capsys, "versions", "b", server)
    assert [line.split("\t")[-1] for line in ran.out.splitlines()] == ["yes"]
    assert "lost until the same content is stored again" in ran.err
    ran = Ran(capsys, "status", server)
    assert ran.out.endswith(f"a\t1\t{sha256}\nb\t1\t{sha256}\n")
    assert Ran(capsys, "status", server, "--format=json").json["damaged_versions"] == [
        {"model": model, "version": 1, "sha256": sha256} for model in ("a", "b")
    ]
    with connected(program.address) as calls:
        assert calls.store("a", b"shared").version_number == 2
        ran = Ran(capsys, "versions", "b", server)
        assert (ran.out.count("\n"), ran.err) == (1, "")
        assert sha256 in ran.out.split("\t")
        assert Ran(capsys, "status", server, "--format=json").json["damaged_versions"] == []
        assert calls.data("b", 1) == b"shared"
        assert calls.store("b", b"next").version_number == 3
        ran = Ran(capsys, "verify", "--archive_dir", program.archive_dir)
        assert ran.code == 0
        assert ran.out.startswith(f"read_only\tin use by process {program.process.pid} on ")
    program.stop()


def test_beside_a_server(program: ServerProgram, capsys: pytest.CaptureFixture[str]) -> None:
    program.start()
    for arguments in (("verify", "--repair"), ("gc",), ("gc", "--yes")):
        ran = Ran(capsys, *arguments, "--archive_dir", program.archive_dir)
        assert ran.code == 4
        assert ran.out == ""
        assert ran.err.count("\n") == 1
        assert str(program.process.pid) in ran.err
    program.stop()


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_no_archive_there(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, command, "--archive_dir", tmp_path / "nothing")
    assert (ran.code, ran.out) == (3, "")
    assert "nothing" in ran.err
    assert "name one that a server has served with --archive_dir" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_directory_that_can_only_be_read(
    program: ServerProgram, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refuse(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return open_file(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", refuse)
    ran = Ran(capsys, "verify", "--archive_dir", program.archive_dir)
    assert ran.code == 0
    assert ran.out.startswith("read_only\tit can't be locked (Permission denied)")
    assert Ran(capsys, "verify", "--repair", "--archive_dir", program.archive_dir).code == 3
    assert Ran(capsys, "gc", "--archive_dir", program.archive_dir).code == 3


def test_gc(program: ServerProgram, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(program.archive_dir)
    orphan = layout.blob(hashlib.sha256(b"orphan").digest())
    orphan.write_bytes(b"orphan")
    (layout.tmp / ("ab" * 16)).write_bytes(b"half")
    ran = Ran(capsys, "verify", "--archive_dir", program.archive_dir)
    assert "leftovers\t2\n" in ran.out
    assert "modelreg gc" in ran.err
    ran = Ran(capsys, "gc", "--archive_dir", program.archive_dir)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "deleted\tno",
        "files\t2",
        "bytes\t10",
        "records_in_quarantine\t0",
        f"6\tblob\t{orphan.relative_to(program.archive_dir)}",
        f"4\tunfinished\ttmp/{'ab' * 16}",
    ]
    assert "--yes" in ran.err
    assert orphan.exists()
    ran = Ran(capsys, "gc", "--yes", "--format=json", "--archive_dir", program.archive_dir)
    assert ran.code == 0
    assert (ran.json["deleted"], ran.json["bytes"], len(ran.json["found"])) == (True, 10, 2)
    assert not orphan.exists()
    assert Ran(capsys, "gc", "--archive_dir", program.archive_dir).out.startswith("deleted\tno\nfiles\t0\n")
    assert Ran(capsys, "verify", "--archive_dir", program.archive_dir).code == 0
