from __future__ import annotations

from pathlib import Path

import pytest

from modelreg import machine
from modelreg.machine import memory_bytes

PHYSICAL = 64 << 30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_physical_bytes", lambda: PHYSICAL)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_this_machine() -> None:
    assert 1 << 24 < memory_bytes() < 1 << 50


def test_without_control_groups(root: Path) -> None:
    assert memory_bytes(root) == PHYSICAL


def test_the_lowest_limit_of_all_ancestors(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/system.slice/registry.service\n")
    groups = root / "sys/fs/cgroup"
    write(groups / "system.slice/registry.service/memory.max", "max\n")
    write(groups / "system.slice/memory.max", f"{2 << 30}\n")
    write(groups / "memory.max", f"{3 << 30}\n")
    assert memory_bytes(root) == 2 << 30


def test_a_container_that_sees_only_its_own_top(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/docker/0123\n")
    write(root / "sys/fs/cgroup/memory.max", f"{1 << 30}\n")
    assert memory_bytes(root) == 1 << 30


def test_version_1(root: Path) -> None:
    write(root / "proc/self/cgroup", "12:cpu,cpuacct:/\n7:memory:/batch\n")
    write(root / "sys/fs/cgroup/memory/batch/memory.limit_in_bytes", f"{5 << 30}\n")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_bytes(root) == 5 << 30
