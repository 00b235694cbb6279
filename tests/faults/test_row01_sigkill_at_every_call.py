"""Row 1: SIGKILL at every call that a store, a change, a delete, a boot or a clean end makes on the archive directory.

The calls are found by going on until none is left. ``crash.c`` counts them; here strace confirms that it misses none that changes anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from modelreg.storage.layout import Layout
from tests.faults.crash import KILL, Launcher, copy_archive
from tests.faults.mess import fill, make_a_mess
from tests.faults.scenarios import (
    MODELS,
    SMALL,
    STORES,
    Crash,
    Scenario,
    blobs,
    crash_at_every_call,
    crash_boot_at_every_call,
    prepare,
    publish,
    show,
)

# What has to be among the calls that a server was killed at, or the loop hasn't looked where it should.
STEPS = {"create", "write", "fsync", "fchmod", "link", "fsync directory", "unlink", "send"}

# The long form doesn't pass over calls that change nothing.
every_call = pytest.mark.parametrize(
    "crash", [Crash(), pytest.param(Crash(calls=""), marks=pytest.mark.slow)], ids=["changing", "all"]
)


@every_call
@pytest.mark.parametrize("scenario", STORES[:-1], ids=lambda scenario: scenario.name)
def test_a_store(launcher: Launcher, memory_path: Path, scenario: Scenario, crash: Crash) -> None:
    seen = crash_at_every_call(launcher, memory_path, scenario, crash)
    show(seen)
    assert set(seen) >= STEPS


@every_call
@pytest.mark.parametrize("scenario", [STORES[-1], *MODELS], ids=lambda scenario: scenario.name)
def test_a_change(launcher: Launcher, memory_path: Path, scenario: Scenario, crash: Crash) -> None:
    seen = crash_at_every_call(launcher, memory_path, scenario, crash)
    show(seen)
    assert set(seen) >= {"rename", "fsync directory", "send"}


# Of the 256 directories for blobs a few will do in the short form.
FEW = (*range(1, 25), *range(25, 260, 47), *range(260, 1000))


@pytest.mark.parametrize("numbers", [FEW, pytest.param(range(1, 1000), marks=pytest.mark.slow)], ids=["few", "all"])
def test_a_first_boot(launcher: Launcher, memory_path: Path, numbers: Iterable[int]) -> None:
    template = memory_path / "template"
    template.mkdir()
    seen, state = crash_boot_at_every_call(launcher, template, memory_path, numbers, Crash())
    show(seen)
    assert set(seen) >= {"mkdir", "create", "write", "fsync", "rename", "fsync directory"}
    assert state == {}


@every_call
def test_a_boot_with_everything_to_put_right(launcher: Launcher, memory_path: Path, crash: Crash) -> None:
    template = memory_path / "template"
    prepare(launcher, template, Scenario(name="", prepare=fill, act=lambda _: None, damage=make_a_mess))
    seen, state = crash_boot_at_every_call(launcher, template, memory_path, itertools.count(1), crash)
    show(seen)
    assert set(seen) >= {"unlink", "rename", "fsync directory", "create", "write", "fsync"}
    assert set(state) == {"m", "bad record", "bad sidecar", "only transient"}
    assert len(state["bad sidecar"][1]) == 1


def test_a_clean_end(launcher: Launcher, memory_path: Path) -> None:
    """What it writes then is exact; where it's cut short, numbers have a gap, and none comes twice."""
    control = launcher.control
    template = memory_path / "template"
    prepare(launcher, template, Scenario(name="", prepare=lambda calls: calls.create("m"), act=lambda _: None))
    for number in range(1, 1000):
        archive = copy_archive(template, memory_path / "archive")
        server = launcher.start(archive)
        with server.calls() as calls:
            assert publish(calls, SMALL) == {1}
            control.arm(archive, KILL, at=number)
        server.stop()
        control.disarm()
        server = launcher.start(archive)
        with server.calls() as calls:
            (next_number,) = publish(calls, SMALL)
        server.kill()
        assert not list(Layout(archive).tmp.iterdir())
        assert not blobs(archive)
        assert next_number > 1
        if not control.seen:
            assert next_number == 2
            return
    raise AssertionError
