"""What holds for every test: it runs in an environment of its own, and leaves no process behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the person who runs the tests configure no server in them."""
    for name in [name for name in os.environ if name.startswith("COGMENT_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    before = _children()
    yield
    left = _children() - before
    assert not left, f"still running, or not waited for: {sorted(left)}"


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    """For tests that ask for it: every file the test opened is closed, every thread it started has ended."""
    threads = set(threading.enumerate())
    before = _descriptors()
    yield
    left = {fd: target for fd, target in _descriptors().items() if before.get(fd) != target}
    assert not left, f"still open: {left}"
    assert set(threading.enumerate()) <= threads


def _children() -> set[str]:
    """This process's children: /proc/self/task/*/children, where the kernel has it (CONFIG_PROC_CHILDREN)."""
    found: set[str] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(task.read_text().split())
        except OSError:
            continue  # a thread that has ended since
    return found


def _descriptors() -> dict[str, str]:
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[link.name] = os.readlink(link)
        except OSError:
            continue  # the one that listed the directory
    return found
