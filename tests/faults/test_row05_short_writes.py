"""Row 5: writes that take less than they're given, and are interrupted in between: the bytes are intact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.crash import COUNT, Launcher
from tests.faults.scenarios import LARGE, MEDIUM, SMALL, store


@pytest.mark.parametrize(
    ("data", "size"),
    [(SMALL, 7), (MEDIUM, 1000), (LARGE, 1000), (LARGE, 65536 + 512)],
    ids=["small", "medium", "large", "direct"],
)
def test_short_writes(launcher: Launcher, memory_path: Path, data: bytes, size: int) -> None:
    archive = memory_path / "archive"
    server = launcher.start(archive)
    with server.calls() as calls:
        calls.create("m")
        launcher.control.arm(archive, COUNT, short_writes=size, only="write")
        store(calls, data)
        assert launcher.control.calls >= len(data) / size
    launcher.control.disarm()
    server.kill()
    with launcher.start(archive).calls() as calls:  # nothing of it is trusted now
        assert calls.data("m", 1) == data
