"""Row 8: 100 uploads to one model at once: numbers 1 to 100, each once; and whoever follows it sees them in order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.crash import Launcher
from tests.faults.scenarios import MEDIUM, publish, store

UPLOADS = 100


@pytest.mark.parametrize("kind", ["stored", "transient", "both"])
def test_at_once(launcher: Launcher, memory_path: Path, kind: str) -> None:
    server = launcher.start(memory_path / "archive", "--cache_max_items=1000")
    with server.calls() as calls, server.calls() as watching, ThreadPoolExecutor(UPLOADS) as threads:
        calls.create("m")
        with watching.watch("m") as watch:
            calls.wait_for_status(watchers=1)

            def upload(turn: int) -> int:
                stored = kind == "stored" or (kind == "both" and turn % 2)
                data = f"content {turn}".encode() if turn % 10 else MEDIUM + bytes([turn])
                return (store if stored else publish)(calls, data).pop()

            given = list(threads.map(upload, range(UPLOADS)))
            assert sorted(given) == list(range(1, UPLOADS + 1))
            assert watch.next_numbers(UPLOADS) == list(range(1, UPLOADS + 1))
        for turn in (0, 1, 10, 99):
            expected = f"content {turn}".encode() if turn % 10 else MEDIUM + bytes([turn])
            assert calls.data("m", given[turn]) == expected
