"""Row 7: 32 uploads of the same content at once: one blob, 32 versions, 32 different numbers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelreg.storage.layout import Layout
from tests.faults.crash import Launcher
from tests.faults.scenarios import LARGE, MEDIUM, SMALL, blobs, damage_blob, store

UPLOADS = 32


@pytest.mark.parametrize("data", [SMALL, MEDIUM, LARGE], ids=["small", "medium", "large"])
@pytest.mark.parametrize("before", ["nothing", "sound", "damaged"])
def test_at_once(launcher: Launcher, memory_path: Path, data: bytes, before: str) -> None:
    archive = memory_path / "archive"
    server = launcher.start(archive)
    with server.calls() as calls:
        calls.create("m")
        if before != "nothing":
            store(calls, data)
    expected = set(range(1, UPLOADS + 1 + (before != "nothing")))
    if before == "damaged":
        server.stop()
        damage_blob(data)(archive)
        server = launcher.start(archive)
    with server.calls() as calls, ThreadPoolExecutor(UPLOADS) as threads:
        given = list(threads.map(lambda _: store(calls, data).pop(), range(UPLOADS)))
        assert len(set(given)) == UPLOADS
        assert set(calls.numbers("m")) == expected >= set(given)
    (blob,) = blobs(archive)
    assert blob.read_bytes() == data
    assert not list(Layout(archive).tmp.iterdir())
    server.kill()
    with launcher.start(archive).calls() as calls:
        assert calls.numbers("m") == sorted(expected)
        assert calls.data("m", 1) == calls.data("m", -1) == data
