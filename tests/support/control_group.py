"""A control group with a limit of memory, version 1 or 2 (cgroups(7)), where the tests may make one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MOUNT = Path("/sys/fs/cgroup")

# Seconds that the kernel may take to see that a group has no processes any more.
PATIENCE = 10


def _places() -> Iterator[tuple[Path, str]]:
    """Where a group may be made, and the name of its limit."""
    if (MOUNT / "memory").is_dir():
        yield MOUNT / "memory", "memory.limit_in_bytes"
    with contextlib.suppress(OSError):
        if "memory" in (MOUNT / "cgroup.subtree_control").read_text().split():
            yield MOUNT, "memory.max"


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A group that may have so many bytes, until the context ends. Skips the test where none can be made."""
    for place, file in _places():
        group = place / f"modelreg-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            try:
                (group / file).write_text(f"{limit}\n")
            except OSError:
                continue
            yield group
            return
        finally:
            _remove(group)
    pytest.skip(f"no control group with a limit of memory can be made in {MOUNT}")


def _remove(group: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return
