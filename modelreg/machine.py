"""How much memory this process may use: what the machine has, or less where a control group says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the lowest limit of the control groups this process is in, in bytes.

    *root* is where ``proc`` and ``sys`` are found; tests make their own.
    """
    return min(_physical_bytes(), *_cgroup_limits(root))


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Every memory limit between this process's control group and the topmost, of version 1 and 2 (cgroups(7))."""
    yield _UNLIMITED
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # no control groups here
    for membership in memberships:
        _, _, rest = membership.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mount, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        # Inside a container the path may be the host's, of which only the mount's own top is visible: it comes last.
        for ancestor in (group, *group.parents):
            try:
                limit = (mount / ancestor / file).read_text().strip()
            except OSError:
                continue
            if limit.isdecimal():  # version 2 writes "max" for none, version 1 a number beyond any memory
                yield int(limit)


_UNLIMITED = 2**63 - 1
