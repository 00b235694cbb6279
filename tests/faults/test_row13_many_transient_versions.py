"""Row 13: 10,000 transient versions through a cache of 100, readers running: memory is bounded, and readers get full bytes."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest

from tests.faults.crash import Launcher
from tests.faults.scenarios import publish

MIB = 1 << 20

# In the kernel's files in memory, and as objects.
SIZES = {"large": 160_000, "small": 20_000}


def content(number: int, size: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * (size // 32)


# What bounds them; 100 versions fit in either.
KEPT = 100
BOUNDS = ["items", "bytes"]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("versions", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_is_bounded(launcher: Launcher, memory_path: Path, versions: int, size: str, bound: str) -> None:
    allowed = KEPT * len(content(1, SIZES[size]))
    items, memory_limit = (KEPT, 1 << 30) if bound == "items" else (1_000_000, allowed)
    server = launcher.start(memory_path / "archive", f"--cache_max_items={items}", f"--cache_max_bytes={memory_limit}")
    stop = threading.Event()
    read = []
    most = 0
    failures = []

    def read_newest_and_oldest() -> None:
        with server.calls() as calls:
            while not stop.is_set():
                for position in (-1, -50, -100):
                    try:
                        info = calls.info("m", position)[0]
                        data = calls.data("m", info.version_number)
                    except grpc.RpcError as error:  # evicted in between, or not there yet
                        failures.append(error.code())
                    else:
                        assert (
                            hashlib.sha256(data).digest()
                            == hashlib.sha256(content(info.version_number, SIZES[size])).digest()
                        )
                        read.append(info.version_number)

    with ThreadPoolExecutor(2) as threads, server.calls() as calls:
        calls.create("m")
        readers = [threads.submit(read_newest_and_oldest) for _ in range(2)]
        process = psutil.Process(server.pid)
        try:
            for number in range(1, versions // 2):
                publish(calls, content(number, SIZES[size]))
            memory, files = process.memory_info().rss, process.num_fds()
            for number in range(versions // 2, versions + 1):
                publish(calls, content(number, SIZES[size]))
                most = max(most, int(calls.status("transient_bytes")["transient_bytes"]))
            grown = process.memory_info().rss - memory
        finally:
            stop.set()
        for reader in readers:
            reader.result()
        assert read
        assert set(failures) <= {grpc.StatusCode.NOT_FOUND}
        assert grown < 8 * MIB
        assert process.num_fds() <= files + 8
        numbers = calls.numbers("m")  # what has been read lives longer
        assert numbers[-1] == versions
        if bound == "bytes":  # those that went while they were read took memory for as long
            assert KEPT - 5 <= len(numbers) <= KEPT
            assert most <= allowed
        else:
            assert len(numbers) == KEPT
            assert calls.status("transient_bytes") == {"transient_bytes": str(allowed)}
