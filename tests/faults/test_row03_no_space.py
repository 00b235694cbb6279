"""Row 3: no space, at every call that can say so; and for real, on a small tmpfs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from modelreg.storage.layout import Layout
from tests.clients.calls import Calls, OpenRequest, body, fails, header
from tests.faults.crash import Launcher
from tests.faults.failing import fail_at_every_call
from tests.faults.mounts import small_memory
from tests.faults.scenarios import Scenario, blobs, delete, publish, quick_are, store

MIB = 1 << 20


@pytest.mark.parametrize(
    "error", [errno.ENOSPC, pytest.param(errno.EDQUOT, marks=pytest.mark.slow)], ids=errno.errorcode.get
)
@pytest.mark.parametrize("scenario", quick_are({"small", "transient"}))
def test_at_every_call(launcher: Launcher, memory_path: Path, scenario: Scenario, error: int) -> None:
    seen = fail_at_every_call(launcher, memory_path, scenario, error, only="changing")
    assert {status for name, status in seen if name in {"create", "write"}} <= {"RESOURCE_EXHAUSTED"}


@pytest.fixture
def full(launcher: Launcher, tmp_path: Path) -> Iterator[Path]:
    with small_memory(tmp_path, 16 * MIB) as directory:
        yield directory
        launcher.end_servers()


def fill(directory: Path) -> Path:
    """Take all the space there is."""
    filler = directory / "filler"
    with filler.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_version_that_is_larger_than_what_is_left(launcher: Launcher, full: Path) -> None:
    with launcher.start(full / "archive").calls() as calls:
        calls.create("m")
        with (
            fails(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught,
            OpenRequest(header("m", data_size=20 * MIB)) as request,
        ):
            calls.CreateVersion(request)  # refused before any of it is sent
        assert "--archive_dir" in caught.value.details()
        assert store(calls, b"small") == {1}


def test_space_that_goes_while_a_version_arrives(launcher: Launcher, full: Path) -> None:
    archive = full / "archive"
    with launcher.start(archive).calls() as calls:
        calls.create("m")
        with OpenRequest(header("m", data_size=9 * MIB), body(bytes(3 * MIB))) as request:
            call = calls.CreateVersion.future(request)
            # Some of it is on the disk, or there would be nothing to give back.
            calls.wait_until(lambda: any(file.stat().st_size for file in Layout(archive).tmp.iterdir()))
            filler = fill(full)
            request.send(body(bytes(3 * MIB)), body(bytes(3 * MIB)))
            request.close()
            with fails(grpc.StatusCode.RESOURCE_EXHAUSTED):
                call.result()
        assert not list(Layout(archive).tmp.iterdir())
        assert store(calls, b"small") == {1}  # in what the failed one has given back
        filler.unlink()
        assert store(calls, bytes(9 * MIB)) == {2}


def test_a_full_disk_can_be_served_and_freed(launcher: Launcher, full: Path) -> None:
    archive = full / "archive"
    server = launcher.start(archive)
    with server.calls() as calls:
        for model_id in ("m", "large"):
            calls.create(model_id)
        store(calls, os.urandom(6 * MIB), "large")
        store(calls, b"small")
        fill(full)
        exhausted(calls)
        server.kill()
    server = launcher.start(archive)
    with server.calls() as calls:
        exhausted(calls)
        assert calls.data("m", 1) == b"small"
        delete(calls, "large")
        assert len(blobs(archive)) == 1
        assert calls.model_ids() == ["m"]
        assert store(calls, b"fits again") == {2}
    server.kill()


def exhausted(calls: Calls) -> None:
    with fails(grpc.StatusCode.RESOURCE_EXHAUSTED):
        store(calls, bytes(5000))
    with fails(grpc.StatusCode.RESOURCE_EXHAUSTED):
        store(calls, bytes(MIB))
    with fails(grpc.StatusCode.RESOURCE_EXHAUSTED):  # its number can't be reserved
        publish(calls, b"transient")
