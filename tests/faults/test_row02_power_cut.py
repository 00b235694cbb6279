"""Row 2: the power fails at every call of a store, a change, a delete and a boot; and right after each acknowledgement.

The archive is on an ext4 of its own, which the preloaded ``crash.c`` shuts down by ioctl: nothing that isn't on the disk by then gets there.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator

import attrs
import pytest

from tests.faults.crash import CUT_POWER, Launcher, Server
from tests.faults.mess import fill, make_a_mess
from tests.faults.mounts import Disk, open_disk
from tests.faults.scenarios import (
    Crash,
    Scenario,
    crash_at_every_call,
    crash_boot_at_every_call,
    prepare,
    quick_are,
    show,
)


@attrs.frozen(kw_only=True)
class PowerCut(Crash):
    action = CUT_POWER
    disk: Disk

    def begin(self) -> None:
        self.disk.sync()

    def after_act(self, server: Server) -> None:
        self.disk.cut_power()
        server.kill()

    def end(self) -> None:
        self.disk.restart()


@pytest.fixture(scope="module")
def _ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with open_disk(tmp_path_factory.mktemp("ext4"), 96 << 20) as mounted:
        yield mounted


@pytest.fixture
def ext4(_ext4: Disk) -> Iterator[Disk]:
    """The disk, empty."""
    yield _ext4
    for directory in _ext4.directory.iterdir():
        shutil.rmtree(directory)


@pytest.mark.parametrize("scenario", quick_are({"small", "transient", "delete"}))
def test_while_it_writes(launcher: Launcher, ext4: Disk, scenario: Scenario) -> None:
    seen = crash_at_every_call(launcher, ext4.directory, scenario, PowerCut(disk=ext4))
    show(seen)
    assert set(seen) >= {"fsync directory", "send"}


def test_while_it_boots(launcher: Launcher, ext4: Disk) -> None:
    template = ext4.directory / "template"
    prepare(launcher, template, Scenario(name="", prepare=fill, act=lambda _: None, damage=make_a_mess))
    numbers = itertools.count(1)
    seen, state = crash_boot_at_every_call(launcher, template, ext4.directory, numbers, PowerCut(disk=ext4))
    show(seen)
    assert "fsync directory" in seen
    assert set(state) == {"m", "bad record", "bad sidecar", "only transient"}
