"""Row 12: crashes, then new versions: no number is ever given twice, and a watcher that was at N always sees what comes after it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.crash import Launcher
from tests.faults.scenarios import publish, store


@pytest.mark.parametrize("seed", range(3))
def test_crash_after_crash(launcher: Launcher, memory_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    archive = memory_path / "archive"
    given: list[int] = []
    for _ in range(12):
        server = launcher.start(archive, "--cache_max_items=3")  # most of them are evicted
        with server.calls() as calls:
            calls.create("m")
            for _ in range(choose.randrange(8)):
                (number,) = (store if choose.random() < 0.3 else publish)(calls, b"content %d" % choose.randrange(4))
                given.append(number)
        if choose.random() < 0.7:
            server.kill()
        else:
            assert server.stop() == 0
    assert given == sorted(set(given))
    assert given[-1] > len(given)  # there have been crashes


def test_nothing_is_left_out_by_clean_restarts(launcher: Launcher, memory_path: Path) -> None:
    given: list[int] = []
    for turn in range(6):
        server = launcher.start(memory_path / "archive")
        with server.calls() as calls:
            calls.create("m")
            given += publish(calls, b"transient")
            if turn % 2:
                given += store(calls, b"stored")
        assert server.stop() == 0
    assert given == list(range(1, len(given) + 1))


def test_a_watcher_waits_for_a_greater_number(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    with server.calls() as calls, server.calls() as watching:
        calls.create("m")
        store(calls, b"stored")
        with watching.watch("m") as watch:
            assert watch.next().version_number == 1
            publish(calls, b"transient")
            (seen,) = publish(calls, b"newest")
            assert watch.next_numbers(2) == [2, seen]
        server.kill()
    server = launcher.start(memory_path / "archive")
    with server.calls() as calls:
        (number,) = publish(calls, b"after the crash")
        assert number > seen
