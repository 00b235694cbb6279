"""Row 1 once more with strace: it confirms that ``crash.c`` counts every system call that changes the directory, and in its long form it
kills the program, as it's installed, at every one of them itself."""

from __future__ import annotations

import itertools
import re
import shutil
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
    """How many system calls on the directory, seen by strace with the paths of descriptors, have changed something."""
    lines = [line for line in trace.read_text().splitlines() if str(archive) in line]
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
@pytest.mark.parametrize("scenario", [*STORES, *MODELS], ids=lambda scenario: scenario.name)
def test_killed_by_strace(launcher: Launcher, tmp_path: Path, scenario: Scenario) -> None:
    """The n-th call of any one of its threads, as strace counts: with one caller, one thread after the other does the work."""
    if shutil.which("strace") is None:
        pytest.skip("strace isn't installed")
    template = tmp_path / "template"
    prepare(launcher, template, scenario)
    before, after = before_and_after(launcher, template, scenario)
    for number in itertools.count(1):
        archive = copy_archive(template, tmp_path / "archive")
        program = ServerProgram(archive).start()
        kill = f"inject={CHANGING}:signal=SIGKILL:when={number}"
        with connected(program.address) as calls:
            calls.status()
            with tracing(program.process.pid, "-e", f"trace={CHANGING}", "-e", kill, "-o", tmp_path / "trace"):
                acknowledged, given = attempt(calls, scenario.act)
        done = program.process.poll() is None and acknowledged
        program.kill()
        healed = scenario.heals and not acknowledged
        if not healed:
            check_recovered(launcher, archive, [after] if acknowledged else [before, after], given)
        if done:
            assert number > 6
            return
