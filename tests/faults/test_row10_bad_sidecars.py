"""Row 10: a record is empty, garbage, huge, deeply nested, from a newer format: it goes to quarantine, and the rest is served.

One that can't be read, or is a symbolic link, is none of these: the boot ends, and changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelreg.storage.layout import Layout
from tests.faults.crash import FAIL, Ended, Launcher
from tests.faults.scenarios import MEDIUM, SMALL, age, blobs, publish, store
from tests.storage.surroundings import contents_below


def document(path: Path, **changes: Any) -> str:
    return json.dumps({**json.loads(path.read_text()), **changes})


def _replace_by(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(5 << 30)  # a sparse file: nobody may read it whole


BAD: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: os.truncate(path, 0),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeros": lambda path: _write(path, bytes(path.stat().st_size)),
    "garbage": lambda path: _write(path, os.urandom(1000)),
    "huge": _huge,
    "deeply nested": lambda path: _write(path, b"[" * 1_000_000),
    "a number of a million digits": lambda path: _write(path, b'{"format": ' + b"1" * 1_000_000 + b"}"),
    "a list": lambda path: _write(path, b"[]"),
    "a newer format": lambda path: _write(path, document(path, format=2).encode()),
    "a field of another type": lambda path: _write(path, document(path, model_id=["m"]).encode()),
    "of another model": lambda path: _write(path, document(path, model_id="other").encode()),
    "half a surrogate pair": lambda path: _write(path, document(path, user_data={"x": "\ud800"}).encode()),
    "a directory": _replace_by(Path.mkdir),
    "a pipe": _replace_by(os.mkfifo),
}


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def prepare(launcher: Launcher, archive: Path) -> None:
    server = launcher.start(archive)
    with server.calls() as calls:
        for model_id in ("m", "beside"):
            calls.create(model_id, about=model_id)
            assert store(calls, SMALL, model_id) == {1}
            assert publish(calls, SMALL, model_id) == {2}
            assert store(calls, MEDIUM if model_id == "m" else SMALL, model_id) == {3}
    server.stop()


@pytest.mark.parametrize("bad", BAD)
def test_of_a_version(launcher: Launcher, memory_path: Path, bad: str) -> None:
    archive = memory_path / "archive"
    prepare(launcher, archive)
    layout = Layout(archive)
    BAD[bad](layout.version_sidecar("m", 3))
    age(archive)
    server = launcher.start(archive)
    with server.calls() as calls:
        assert calls.model_ids() == ["beside", "m"]
        assert calls.numbers("beside") == [1, 3]
        assert calls.numbers("m") == [1]
        assert calls.data("m", 1) == SMALL
        (line,) = [line for line in server.log if line["event"] == "a bad record goes to quarantine"]
        assert line["file"].endswith("versions/0000000003.json")
        assert line["reason"]
        (kept,) = layout.quarantine.iterdir()
        assert "0000000003.json" in kept.name
        # Nobody but that record knew of this content, so it has to be there for a person who can read it.
        assert len(blobs(archive)) == 2
        # Somebody may have waited for a version after 3.
        assert store(calls, SMALL) == {4}


@pytest.mark.parametrize("bad", BAD)
def test_of_a_model(launcher: Launcher, memory_path: Path, bad: str) -> None:
    archive = memory_path / "archive"
    prepare(launcher, archive)
    layout = Layout(archive)
    BAD[bad](layout.model_record("m"))
    server = launcher.start(archive)
    with server.calls() as calls:
        assert calls.model_ids() == ["beside", "m"]
        assert calls.numbers("beside") == [1, 3]
        assert calls.numbers("m") == [1, 3]
        assert calls.data("m", 3) == MEDIUM
        (kept,) = layout.quarantine.iterdir()
        assert "model.json" in kept.name
        (number,) = store(calls, SMALL)
        assert number > 1_000  # nobody knows how many transient ones there were
    server.kill()
    with launcher.start(archive).calls() as calls:
        assert calls.numbers("m") == [1, 3, number]


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_what_can_not_be_opened_ends_the_boot(launcher: Launcher, memory_path: Path, error: int) -> None:
    """Each call in turn by which a boot opens something."""
    archive = memory_path / "archive"
    prepare(launcher, archive)
    control = launcher.control
    before = contents_below(archive)
    opened = 0
    for number in itertools.count(1):
        control.arm(archive, FAIL, at=number, error=error, only="open")
        server = launcher.launch(archive)
        with contextlib.suppress(Ended):
            server.wait_for_log("serving")
        server.kill()
        control.disarm()
        assert contents_below(archive) == before
        if not control.seen:
            break
        opened += 1
        assert server.code == 3
        assert f"can't be used: {archive}" in server.said
        assert os.strerror(error) in server.said
    assert opened > 15
    with launcher.start(archive).calls() as calls:
        assert calls.numbers("m") == [1, 3]


def test_what_is_not_known_is_left_alone(launcher: Launcher, memory_path: Path) -> None:
    archive = memory_path / "archive"
    prepare(launcher, archive)
    layout = Layout(archive)
    unknown = [
        layout.models / "note.txt",
        layout.versions("m") / "note.txt",
        layout.versions("m") / "0000000009.json.bak",
        layout.versions("m") / "9.json",
        layout.blobs / "note.txt",
        layout.blobs / "ab" / "note.txt",
        layout.blobs / "ab" / ("cd" * 32),
        layout.quarantine / "note.txt",
    ]
    for path in unknown:
        path.write_text("a note")
    directories = [layout.blobs / "ab" / "lost+found", layout.blobs / "lost+found"]
    for path in directories:
        path.mkdir()
    age(archive)
    for path in directories:
        os.utime(path, (0, 0))
    server = launcher.start(archive)
    assert {line["file"] for line in server.log if line["event"] == "left alone an unknown file"} == {
        str(path.relative_to(archive)) for path in (*unknown[:-1], *directories[:1])
    }
    assert all(path.read_text() == "a note" for path in unknown)
    assert all(path.is_dir() for path in directories)
