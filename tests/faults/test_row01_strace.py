"""Row 1 once more with strace: it confirms that ``crash.c`` counts every system call that changes the directory, and in its long form it
kills the program, as it's installed, at every one of them itself."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.clients.calls import connected
from tests.faults.crash import COUNT, Launcher, copy_archive
from tests.faults.scenarios import (
    MEDIUM,
    MODELS,
    OTHER,
    STORES,
    Scenario,
    attempt,
    before_and_after,
    check_recovered,
    delete,
    healed,
    prepare,
    publish,
    store,
)
from tests.faults.tracing import tracing
from tests.support.server import ServerProgram

# All that can change what a file system holds: open(2) for O_CREAT and O_TRUNC, of which the rest is told by its flags.
CHANGING = (
    "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,syncfs,sync,fallocate,"
    "fchmod,fchmodat,chmod,fchown,fchownat,chown,link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,rmdir,"
    "mkdir,mkdirat,mknod,mknodat,truncate,ftruncate,copy_file_range,sendfile,splice,io_submit,io_uring_enter,utimensat,msync"
)


def traced(trace: Path, archive: Path) -> int:
    """How many system calls on the directory, seen by strace with the paths of descriptors, have changed something.

    The server's paths lead through a descriptor of the directory.
    """
    lines = [line for line in trace.read_text().splitlines() if str(archive) in line or "/proc/self/fd/" in line]
    return sum("O_CREAT" in line or not re.search(r"\bopen(at)?\(", line) for line in lines if "resumed>" not in line)


@pytest.mark.parametrize("data", [OTHER, MEDIUM], ids=["small", "medium"])
def test_no_call_is_missed(launcher: Launcher, memory_path: Path, data: bytes) -> None:
    archive = memory_path / "archive"
    trace = memory_path / "trace"
    server = launcher.start(archive)
    with server.calls() as calls:
        calls.create("m")
        calls.create("going")
        store(calls, OTHER + OTHER, "going")
        with tracing(server.pid, "-y", "-s", "1", "-e", f"trace={CHANGING}", "-o", trace):
            launcher.control.arm(archive, COUNT, only="changing")
            store(calls, data)
            publish(calls, data)
            calls.create("m", changed="yes")
            delete(calls, "going")
            launcher.control.disarm()
    counted = [name for name in launcher.control.names if name not in ("send", "directory")]
    assert len(counted) > 30
    assert traced(trace, archive) == len(counted)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [STORES[0], *MODELS], ids=lambda scenario: scenario.name)
def test_killed_by_strace(launcher: Launcher, tmp_path: Path, scenario: Scenario) -> None:
    """strace counts each kind of system call by itself: the first openat, the second, and so on, then the first write."""
    template = tmp_path / "template"
    trace = tmp_path / "trace"
    prepare(launcher, template, scenario)
    before, after = before_and_after(launcher, template, scenario)
    undone = [before, healed(before)] if scenario.heals else [before]

    def act(*options: str) -> bool:
        """Act once; whether the program has survived it."""
        archive = copy_archive(template, tmp_path / "archive")
        program = ServerProgram(archive).start()
        with connected(program.address) as calls:
            calls.status()
            with tracing(program.process.pid, "-e", f"trace={CHANGING}", *options, "-o", trace):
                acknowledged, given = attempt(calls, scenario.act)
        survived = program.process.poll() is None
        program.kill()
        check_recovered(launcher, archive, [after] if acknowledged else [*undone, after], given)
        assert acknowledged or not survived
        return survived

    assert act()
    names = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert names >= {"openat", "fsync"}
    killed = 0
    for name in sorted(names):
        for number in itertools.count(1):
            if act("-e", f"inject={name}:signal=SIGKILL:when={number}"):
                break
            killed += 1
    assert killed > 5
