"""Statistics of rounds, and what the kernel knows of a process: CPU time, memory, where it listens."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

_TICK = os.sysconf("SC_CLK_TCK")
_QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
_FROM = {99: 100, 99.9: 1000}  # samples


@attrs.frozen
class Summary:
    """The rounds of one figure: their median, and the least and the greatest as their spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary | None:
        values = [value for value in values if not math.isnan(value)]
        return cls(statistics.median(values), min(values), max(values)) if values else None


def quantile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in ascending order: always one that was measured."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def quantiles(samples: Iterable[float]) -> dict[str, float]:
    """Those that the samples are enough for: the 99th percentile of less than a hundred is but the greatest."""
    ordered = sorted(samples)
    percents = [percent for percent in _QUANTILES if percent not in _FROM or len(ordered) >= _FROM[percent]]
    return {f"p{percent:g}": quantile(ordered, percent) for percent in percents} if ordered else {}


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    pids = [pid]
    for one in pids:
        try:
            tasks = list(Path(f"/proc/{one}/task").glob("*/children"))
        except OSError:
            continue  # ended meanwhile
        for path in tasks:
            pids += map(int, _read(path).split())
    return pids


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, its threads, and its descendants, ended ones included: these in steps of 10 ms."""
    total = 0.0
    for one in tree(pid):
        try:
            total += time.clock_gettime(~one << 3 | 2)  # clock_getcpuclockid(3): its own, in nanoseconds
        except OSError:
            pass  # ended meanwhile
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return total + sum(map(int, fields[13:15])) / _TICK  # proc(5): cutime and cstime, which hold what ended


def reset_peak(pid: int) -> None:
    """Lets the kernel's record of peak resident memory start anew from what is resident now. proc(5), clear_refs."""
    for one in tree(pid):
        Path(f"/proc/{one}/clear_refs").write_text("5")


def peak_memory(pid: int) -> int:
    """Peak resident bytes since `reset_peak`, with what lies in memory files now: those are memory, and belong to no
    process's resident set until they are mapped.
    """
    total = 0
    files: dict[tuple[int, int], int] = {}
    for one in tree(pid):
        for line in _read(Path(f"/proc/{one}/status")).splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
        for path in _descriptors(one):
            try:
                if os.readlink(path).startswith("/memfd:"):
                    status = os.stat(path)
                    files[status.st_dev, status.st_ino] = status.st_blocks * 512
            except OSError:
                pass  # closed meanwhile
    return total + sum(files.values())


def listening(pid: int) -> int | None:
    """The TCP port that a process or one of its descendants listens on, if it does already."""
    inodes = {link for one in tree(pid) for link in _open_in(one)}
    return next((port for port, inode in _listeners() if inode in inodes), None)


def process_at(port: int) -> int | None:
    """The process on this machine that listens on a port, where we may know; if several share it, the ancestor of the others."""
    inodes = {inode for number, inode in _listeners() if number == port}
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*")) if inodes else ()
    holders = {pid for pid in pids if not inodes.isdisjoint(_open_in(pid))}
    return max(holders, key=lambda pid: len(holders.intersection(tree(pid))), default=None)


def _listeners() -> list[tuple[int, str]]:
    """The TCP ports that are listened on, and each one's socket as /proc/PID/fd has it."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in _read(Path("/proc/net") / name).splitlines()]
    return [
        (int(fields[1].rpartition(":")[2], 16), f"socket:[{fields[9]}]")
        for fields in lines
        if fields[3] == "0A"  # TCP_LISTEN
    ]


def _open_in(pid: int) -> set[str]:
    """What the descriptors of a process, not of its descendants, lead to."""
    links = set()
    for path in _descriptors(pid):
        try:
            links.add(os.readlink(path))
        except OSError:
            pass  # closed meanwhile
    return links


def _descriptors(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # the process ended


def fact(path: Path, name: str) -> str:
    """What follows the first `name:` in a file like /proc/cpuinfo."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def file_system(directory: Path) -> str:
    """The type of the file system that a directory is on."""
    command = ["df", "--output=fstype", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()[-1]
