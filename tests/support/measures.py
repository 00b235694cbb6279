"""What a process takes, as the kernel has it: for servers that are processes of their own (proc(5))."""

from __future__ import annotations

import os
import time
from pathlib import Path


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_bytes(pid: int) -> int:
    """What is in memory of it now."""
    return _status_bytes(pid, "VmRSS:")


def peak_memory_bytes(pid: int) -> int:
    """The most that has been so far."""
    return _status_bytes(pid, "VmHWM:")


def _status_bytes(pid: int, name: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """What it has worked, to the nanosecond; the id of its clock is made as clock_getcpuclockid(3) does."""
    return time.clock_gettime((~pid << 3) | 2)


def _waited_seconds(pid: int) -> float:
    """How long its first thread has waited for a core; 0 where the kernel doesn't say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


class Stopwatch:
    """The time since it was made, less what this process and another have waited for a core that others had: on a machine that is
    full, nobody can promise milliseconds.
    """

    def __init__(self, pid: int) -> None:
        self._pids = (os.getpid(), pid)
        self._began = self._fair_time()

    def _fair_time(self) -> float:
        return time.monotonic() - sum(map(_waited_seconds, self._pids))

    @property
    def seconds(self) -> float:
        return self._fair_time() - self._began
