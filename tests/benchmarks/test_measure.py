from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

from benchmarks import floors, measure
from benchmarks.measure import Summary


def test_summary_is_the_median_and_the_extremes() -> None:
    assert Summary.of([3.0, 1.0, 10.0]) == Summary(3.0, 1.0, 10.0)
    assert Summary.of([1.0, 2.0]) == Summary(1.5, 1.0, 2.0)
    assert Summary.of([math.nan, 2.0]) == Summary(2.0, 2.0, 2.0)
    assert Summary.of([]) is None
    assert Summary.of([math.nan]) is None


def test_quantiles_are_values_that_were_measured() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [measure.quantile(ordered, percent) for percent in (0, 1, 50, 99, 99.9, 100)] == [1, 1, 50, 99, 100, 100]
    assert measure.quantile([7.0], 50) == 7.0
    assert measure.quantiles([2.0, 1.0])["p50"] == 1.0
    assert measure.quantiles([]) == {}
    assert "p99" not in measure.quantiles(ordered[:99])
    assert measure.quantiles(ordered)["p99"] == 99
    assert "p99.9" not in measure.quantiles(ordered)


def test_cpu_seconds_grow_with_work() -> None:
    before = measure.cpu_seconds(os.getpid())
    sum(range(100_000))
    after = measure.cpu_seconds(os.getpid())
    assert before < after < before + 1  # finer than the 10 ms of /proc/PID/stat


def test_cpu_seconds_count_descendants_while_they_run_and_after() -> None:
    before = measure.cpu_seconds(os.getpid())
    program = "import time\nwhile time.process_time() < 0.1: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert measure.cpu_seconds(os.getpid()) > before + 0.1
    assert child.returncode is not None
    assert measure.cpu_seconds(os.getpid()) > before + 0.08


def test_peak_memory_starts_anew() -> None:
    pid = os.getpid()
    block = b"\1" * 80_000_000
    high = measure.peak_memory(pid)
    assert high > len(block)
    del block
    measure.reset_peak(pid)
    assert measure.peak_memory(pid) < high - 40_000_000


def test_memory_files_count_as_memory() -> None:
    pid = os.getpid()
    descriptor = os.memfd_create("version")
    try:
        before = measure.peak_memory(pid)
        os.posix_fallocate(descriptor, 0, 50_000_000)
        assert measure.peak_memory(pid) >= before + 50_000_000
    finally:
        os.close(descriptor)


def test_where_a_process_listens() -> None:
    assert measure.listening(os.getpid()) is None
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert measure.listening(os.getpid()) == port
        assert measure.process_at(port) == os.getpid()
    assert measure.process_at(port) is None


def test_who_listens_where_descendants_share_the_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[sock.fileno()])
        try:
            assert measure.process_at(sock.getsockname()[1]) == os.getpid()
        finally:
            child.kill()
            child.wait()


def test_file_system(tmp_path: Path) -> None:
    assert measure.file_system(Path("/proc")) == "proc"
    assert measure.file_system(tmp_path) != "unknown"


def test_floors_move_every_byte(tmp_path: Path) -> None:
    for floor in (floors.SHA256, floors.WRITE, floors.LOOPBACK, floors.SENDFILE):
        assert floor.run(3_000_001, 2, tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
