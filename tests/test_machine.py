from __future__ import annotations

from pathlib import Path

import pytest

from modelreg import machine
from modelreg.machine import Shares, memory_bytes
from modelreg.settings import Settings

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


# The program itself, measured: what it takes when it has served each kind of call.
PROGRAM = 70 << 20

UPLOADS = 40


@pytest.mark.parametrize("memory", [256 << 20, 512 << 20, 1 << 30, 2 << 30, 4 << 30, 16 << 30, 1 << 40])
def test_all_shares_together_fit(memory: int) -> None:
    shares = Shares.of(memory)
    parts = (
        shares.cache
        + shares.uploads
        + shares.headers
        + shares.messages
        + shares.user_data
        + shares.received
        + shares.windows
        + UPLOADS * shares.stream_window
    )
    # A pool of replies, the shares of connections in it, and one reply that is being made.
    assert PROGRAM + parts + 2 * shares.replies + shares.largest_reply <= memory
    assert shares.largest_reply <= shares.replies


def test_the_defaults_are_shares_of_what_the_control_group_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelreg.settings.memory_bytes", lambda: 512 << 20)
    shares = Shares.of(512 << 20)
    settings = Settings()
    assert (
        (settings.cache_max_bytes, settings.upload_buffer_bytes)
        == (shares.cache, shares.uploads)
        == (128 << 20, 64 << 20)
    )
    assert settings.max_reply_bytes == shares.largest_reply == 16 << 20
