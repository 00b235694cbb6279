"""Row 9: a blob has a bit flipped, is cut short or removed: DATA_LOSS on reading, ``verify`` names it, storing the same content heals it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from modelreg.api import model_registry_pb2 as api
from modelreg.cli import main
from modelreg.storage.layout import Layout
from tests.clients.calls import Calls, fails
from tests.faults.crash import Launcher
from tests.faults.scenarios import LARGE, MEDIUM, OTHER, SMALL, store

ALL = [SMALL, MEDIUM, LARGE]


def flip(path: Path, place: int) -> None:
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def cut(path: Path) -> None:
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def grow(path: Path) -> None:
    path.chmod(0o640)
    with path.open("ab") as file:
        file.write(b"x")


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "first bit": lambda path: flip(path, 0),
    "last bit": lambda path: flip(path, path.stat().st_size - 1),
    "cut": cut,
    "empty": empty,
    "grown": grow,
    "removed": Path.unlink,
    "a link": link,
}


def read(calls: Calls, number: int) -> tuple[bytes, Any]:
    """What was received of a version, and the status."""
    received = b""
    try:
        for chunk in calls.RetrieveVersionData(api.RetrieveVersionDataRequest(model_id="m", version_number=number)):
            received += chunk.data_chunk
    except grpc.RpcError as error:
        failed: Any = error
        return received, failed.code()
    return received, grpc.StatusCode.OK


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("data", ALL, ids=["small", "medium", "large"])
@pytest.mark.parametrize("when", [pytest.param("running", marks=pytest.mark.slow), "stopped"])
def test_damage(
    launcher: Launcher, memory_path: Path, data: bytes, damage: str, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = memory_path / "archive"
    server = launcher.start(archive)
    path = Layout(archive).blob(hashlib.sha256(data).digest())
    with server.calls() as calls:
        calls.create("m")
        store(calls, data)
        store(calls, OTHER)
        assert read(calls, 1) == (data, grpc.StatusCode.OK)
    if when == "stopped":
        server.stop()
    DAMAGES[damage](path)
    if when == "stopped":
        server = launcher.start(archive)
    with server.calls() as calls:
        received, status = read(calls, 1)
        assert status is grpc.StatusCode.DATA_LOSS
        assert len(received) < len(data)
        assert data.startswith(received) or damage == "first bit"
        with fails(grpc.StatusCode.DATA_LOSS) as caught:
            calls.data("m", 1)
        assert 'version "1" of model "m"' in caught.value.details()
        assert read(calls, 2) == (OTHER, grpc.StatusCode.OK)
        assert calls.numbers("m") == [1, 2]
        assert calls.status("damaged") == {"damaged": "1"}
        server.wait_for_log("a blob is damaged")

        assert main(["verify", f"--archive_dir={archive}", "--format=json"]) == 1
        (found,) = json.loads(capsys.readouterr().out)["damage"]
        assert found["path"] == str(path.relative_to(archive))
        assert found["versions"] == [{"model": "m", "version": 1}]

        store(calls, data)
        assert read(calls, 1) == read(calls, 3) == (data, grpc.StatusCode.OK)
        assert calls.status("damaged") == {"damaged": "0"}
    assert main(["verify", f"--archive_dir={archive}", "--format=json"]) == 0
    server.kill()
    with launcher.start(archive).calls() as calls:
        assert read(calls, 1) == (data, grpc.StatusCode.OK)


def overwrite(path: Path) -> None:
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.seek(LARGE_ALREADY_SENT)
        file.write(bytes(len(LARGE) - LARGE_ALREADY_SENT))


def cut_to_a_half(path: Path) -> None:
    path.chmod(0o640)
    os.truncate(path, LARGE_ALREADY_SENT)


def touch(path: Path) -> None:
    path.chmod(0o640)
    os.utime(path)


def link_elsewhere(path: Path) -> None:
    """A backup of links."""
    os.link(path, path.with_name("backup"))


# More than the windows hold.
LARGE_ALREADY_SENT = 4_000_000


@pytest.mark.parametrize("known", [True, False], ids=["known to be sound", "from an earlier run"])
@pytest.mark.parametrize("change", [overwrite, cut_to_a_half, touch, link_elsewhere])
def test_a_change_while_it_is_sent(
    launcher: Launcher, memory_path: Path, change: Callable[[Path], None], known: bool
) -> None:
    archive = memory_path / "archive"
    server = launcher.start(archive, "--sent_version_chunk_size=100000")
    with server.calls() as calls:
        calls.create("m")
        store(calls, LARGE)
    if not known:
        server.stop()
        server = launcher.start(archive, "--sent_version_chunk_size=100000")
    path = Layout(archive).blob(hashlib.sha256(LARGE).digest())
    with server.calls() as calls, server.calls() as others:
        download = calls.download("m")
        received = hashlib.sha256(next(download).data_chunk)
        change(path)
        status = grpc.StatusCode.OK
        try:
            for chunk in download:
                received.update(chunk.data_chunk)
        except grpc.RpcError as error:
            failed: Any = error
            status = failed.code()
            assert 'version "1" of model "m" is damaged' in failed.details()
        if change in (touch, link_elsewhere):
            assert status is grpc.StatusCode.OK
            assert received.digest() == hashlib.sha256(LARGE).digest()
            assert others.status("damaged") == {"damaged": "0"}
        else:
            assert status is grpc.StatusCode.DATA_LOSS
            assert server.wait_for_log("a blob is damaged")
            assert others.status("damaged") == {"damaged": "1"}
        store(others, LARGE)
        assert read(others, 1) == (LARGE, grpc.StatusCode.OK)


def test_the_scrub_finds_it(launcher: Launcher, memory_path: Path) -> None:
    archive = memory_path / "archive"
    server = launcher.start(archive)
    with server.calls() as calls:
        calls.create("m")
        store(calls, SMALL)
        store(calls, LARGE)
    server.stop()
    flip(Layout(archive).blob(hashlib.sha256(LARGE).digest()), 5_000_000)
    server = launcher.start(archive, "--scrub_bytes_per_second=1000000000")
    line = server.wait_for_log("a blob is damaged")
    assert line["sha256"] == hashlib.sha256(LARGE).hexdigest()
    assert server.wait_for_log("scrubbed")["damaged"] == 1
    with server.calls() as calls:
        assert calls.status("damaged") == {"damaged": "1"}
        assert calls.data("m", 1) == SMALL
    assert server.stop() == 0
