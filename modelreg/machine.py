"""How much memory this process may use, and how it's shared out.

The process may use what the machine has, or less where a control group says so. Every default that is memory is a share
of that, so that all of them together fit::

    the program itself   some 70 MB       cache             1/4
    uploads              1/8              replies           1/16, as much again for the shares of connections
    messages             1/32             stream windows    1/32, and `stream_window` for each upload
    header fields        1/64             receive buffers   1/32
    user data of uploads 1/64
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import attrs

KIB = 1 << 10
MIB = 1 << 20


@attrs.frozen(kw_only=True)
class Shares:
    """What the parts of a server may take while nobody has said otherwise, in bytes."""

    cache: int
    """Transient versions."""

    uploads: int
    """The buffers of uploads."""

    largest_reply: int
    """A list, or anything else that is made of pieces."""

    replies: int
    """All replies together, before further ones wait."""

    headers: int
    """The header fields of calls."""

    messages: int
    """Request messages while they arrive."""

    calls: int
    """How many calls may run. Each takes some 11 KB, even one that has sent only its headers."""

    user_data: int
    """The user data of uploads to the archive, while they are under way."""

    received: int
    """Receive buffers that data which waits may keep."""

    windows: int
    """What clients may send beyond `stream_window`, on all streams together."""

    stream_window: int
    """What a client may send on a stream before anything of it is taken."""

    @classmethod
    def of(cls, memory: int) -> Shares:
        """Share out so many bytes."""
        return cls(
            cache=memory // 4,
            uploads=max(16 * MIB, min(256 * MIB, memory // 8)),
            largest_reply=max(4 * MIB, min(64 * MIB, memory // 32)),
            replies=max(4 * MIB, min(128 * MIB, memory // 16)),
            headers=max(MIB, min(32 * MIB, memory // 64)),
            messages=max(4 * MIB, min(64 * MIB, memory // 32)),
            calls=max(1024, min(65_536, memory // (64 << 10))),
            user_data=max(2 * MIB, min(64 * MIB, memory // 64)),
            received=min(64 * MIB, memory // 32),
            windows=min(64 * MIB, memory // 32),
            stream_window=max(64 * KIB, min(MIB, memory // 4096)),
        )


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
