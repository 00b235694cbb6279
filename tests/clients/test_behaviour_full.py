"""A full disk, a quota: RESOURCE_EXHAUSTED, the option named, nothing left behind, and what is small still fits."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.calls import Calls, Code, OpenRequest, body, connected, fails, header
from tests.support.server import ServerProgram, StartServer

KIB = 1 << 10
MIB = 1 << 20

# With the 256 directories of an empty archive, which take no blocks on a tmpfs.
DISK_BYTES = 8 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system that's soon full."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs isn't permitted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def contents(server: ServerProgram) -> list[Path]:
    """Content that's on the disk, finished or not."""
    places = (server.archive_dir / name for name in ("tmp", "blobs"))
    return [path for place in places for path in place.rglob("*") if path.is_file()]


def assert_a_small_version_fits(calls: Calls, number: int = 1) -> None:
    assert calls.store("m", b"small").version_number == number
    assert calls.data("m") == b"small"


def assert_details_name_the_option(details: str) -> None:
    assert "archive directory" in details
    assert "--archive_dir" in details


def fill(disk: Path, *, left: int) -> None:
    """Leave no more than that many bytes free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / f"filler {left}").write_bytes(bytes(free - left))


def test_stored_version_larger_than_the_disk_is_refused_before_its_body(
    small_disk: Path, start_server: StartServer
) -> None:
    server = start_server(archive_dir=small_disk / "archive")
    with connected(server.address) as calls:
        calls.create("m")
        with OpenRequest(header("m", data_size=DISK_BYTES)) as request, fails(Code.RESOURCE_EXHAUSTED) as caught:
            calls.CreateVersion(request)
        assert_details_name_the_option(caught.value.details())
        assert contents(server) == []
        assert_a_small_version_fits(calls)


@pytest.mark.parametrize("size", [2**50, 2**63, 2**64 - 1])
def test_stored_version_larger_than_any_disk_is_refused_before_its_body(calls: Calls, model: str, size: int) -> None:
    with OpenRequest(header(model, data_size=size)) as request, fails(Code.RESOURCE_EXHAUSTED) as caught:
        calls.CreateVersion(request)
    assert_details_name_the_option(caught.value.details())


def test_disk_that_gets_full_while_versions_arrive(small_disk: Path, start_server: StartServer) -> None:
    server = start_server(archive_dir=small_disk / "archive")
    tmp = server.archive_dir / "tmp"
    size = 5 * MIB  # of which one fits
    with connected(server.address) as calls, OpenRequest() as first, OpenRequest() as second:
        calls.create("m")
        running = []
        for count, request in enumerate((first, second), 1):
            request.send(header("m", data_size=size))
            running.append(calls.CreateVersion.future(request))
            calls.wait_until(lambda count=count: len(list(tmp.iterdir())) == count)  # type: ignore[misc]
        # The first's bytes are on the disk before the second's come.
        first.send(*[body(b"1" * MIB)] * 5)
        first.wait_sent()
        calls.wait_until(lambda: sum(path.stat().st_blocks * 512 for path in tmp.iterdir()) >= 4 * MIB)
        second.send(*[body(b"2" * MIB)] * 5)
        with fails(Code.RESOURCE_EXHAUSTED) as caught:
            second.close()
            running[1].result()
        assert_details_name_the_option(caught.value.details())
        first.close()
        assert running[0].result().version_info.version_number == 1
        assert len(contents(server)) == 1
        assert_a_small_version_fits(calls, 2)
        assert calls.data("m", 1) == b"1" * size


def test_disk_that_is_full_when_a_small_version_or_a_model_is_written(
    small_disk: Path, start_server: StartServer
) -> None:
    server = start_server(archive_dir=small_disk / "archive")
    with connected(server.address) as calls:
        calls.create("m")
        fill(small_disk, left=32 * KIB)
        with fails(Code.RESOURCE_EXHAUSTED) as caught:
            calls.store("m", b"a" * 100 * KIB)
        assert_details_name_the_option(caught.value.details())
        assert contents(server) == []
        assert_a_small_version_fits(calls)
        fill(small_disk, left=0)
        with fails(Code.RESOURCE_EXHAUSTED):
            calls.create("another")
        assert calls.model_ids() == ["m"]
        # Transient versions need the disk only now and then, for their numbers.
        with fails(Code.RESOURCE_EXHAUSTED):
            calls.publish("m", b"transient")
        for filler in small_disk.glob("filler*"):
            filler.unlink()
        calls.create("another")
        assert calls.publish("m", b"transient").version_number == 2
    server.restart()
    with connected(server.address) as calls:
        assert calls.model_ids() == ["another", "m"]
        assert calls.numbers("m") == [1]


def test_a_limit_on_files(start_server: StartServer) -> None:
    server = start_server()
    with connected(server.address) as calls:
        calls.create("m")
        # No file of the server may get longer from now on.
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (32 * KIB, resource.RLIM_INFINITY))
        # Gathered in memory; written as it comes; written past the page cache.
        for size in (64 * KIB, 2 * MIB, 9 * MIB):
            with fails(Code.RESOURCE_EXHAUSTED) as caught:
                calls.store("m", *[b"a" * (size // 4)] * 4)
            assert "ulimit -f" in caught.value.details()
            assert contents(server) == []
        # A small transient version takes no file; a large one takes one in memory.
        with fails(Code.RESOURCE_EXHAUSTED) as caught:
            calls.publish("m", *[b"a" * MIB] * 2)
        assert "ulimit -f" in caught.value.details()
        assert_a_small_version_fits(calls)
