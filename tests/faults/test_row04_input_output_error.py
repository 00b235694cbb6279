"""Row 4: an I/O error at every call. At a file's fsync: no acknowledgement, the file is abandoned. At a directory's: the server stops."""

from __future__ import annotations

import errno
from pathlib import Path

import grpc
import pytest

from tests.clients.calls import connected, fails
from tests.faults.crash import FAIL, Launcher
from tests.faults.failing import STOPPED, fail_at_every_call
from tests.faults.scenarios import MEDIUM, OTHER, SMALL, Scenario, blobs, quick_are, store
from tests.faults.tracing import tracing
from tests.support.server import PATIENCE, ServerProgram


@pytest.mark.parametrize("scenario", quick_are({"small", "update", "delete"}))
def test_at_every_call(launcher: Launcher, memory_path: Path, scenario: Scenario) -> None:
    seen = fail_at_every_call(launcher, memory_path, scenario, errno.EIO)
    assert ("fsync directory", "UNAVAILABLE") in seen
    assert {status for name, status in seen if name in {"write", "fchmod"}} <= {"INTERNAL"}


def test_an_fsync_is_never_tried_again(launcher: Launcher, memory_path: Path) -> None:
    """After a failed one the kernel may call the next a success, with the bytes gone: the file has to be another."""
    archive = memory_path / "archive"
    with launcher.start(archive).calls() as calls:
        calls.create("m")
        store(calls, MEDIUM)
        (before,) = (path.stat().st_ino for path in blobs(archive))
        # The sealed file, then the one that's there already.
        launcher.control.arm(archive, FAIL, at=2, error=errno.EIO, only="fsync")
        assert store(calls, MEDIUM) == {2}
        assert launcher.control.seen == "fsync"
        launcher.control.disarm()
        (after,) = (path.stat().st_ino for path in blobs(archive))
        assert after != before
        assert calls.data("m", 1) == calls.data("m", 2) == MEDIUM


def test_a_directory_that_cannot_be_synced_stops_the_server(launcher: Launcher, memory_path: Path) -> None:
    archive = memory_path / "archive"
    server = launcher.start(archive)
    with server.calls() as calls, server.calls() as others:
        calls.create("m")
        store(calls, SMALL)
        with others.watch("m") as watch:
            assert watch.next().version_number == 1
            launcher.control.arm(archive, FAIL, at=1, error=errno.EIO, only="fsync directory")
            with fails(grpc.StatusCode.UNAVAILABLE):
                store(calls, OTHER)
            with fails(grpc.StatusCode.UNAVAILABLE):
                watch.next()
        assert server.wait() == STOPPED
    assert server.said.startswith("modelreg: stopped, as what is on disk")
    launcher.control.disarm()
    with launcher.start(archive).calls() as calls:
        assert calls.data("m", 1) == SMALL
        assert store(calls, OTHER) <= {2, 3}


def test_the_error_comes_from_the_kernel(tmp_path: Path) -> None:
    """The same with strace, which makes the system call itself fail, on the program as it's installed."""
    program = ServerProgram(tmp_path / "archive").start()
    try:
        with connected(program.address) as calls:
            calls.create("m")
            with tracing(program.process.pid, "-e", "inject=fsync:error=EIO:when=1"):
                with fails(grpc.StatusCode.INTERNAL):  # that of the content
                    store(calls, SMALL)
            assert store(calls, SMALL) == {1}
            with tracing(program.process.pid, "-e", "inject=fsync:error=EIO:when=2"):
                with fails(grpc.StatusCode.UNAVAILABLE):  # that of the directory it goes to
                    store(calls, OTHER)
                assert program.process.wait(PATIENCE) == STOPPED
    finally:
        program.kill()
