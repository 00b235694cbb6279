"""A call fails instead of crashing: each call in turn, with an error that a disk can give."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import Any

import grpc

from modelreg.storage.layout import Layout
from tests.clients.calls import assert_for_people
from tests.faults.crash import FAIL, Launcher, copy_archive
from tests.faults.scenarios import (
    Scenario,
    before_and_after,
    check_recovered,
    healed,
    observe,
    prepare,
    store,
)

# ArchiveUncertain.exit_code: EX_IOERR of sysexits.h.
STOPPED = 74

STATUSES = {
    errno.ENOSPC: "RESOURCE_EXHAUSTED",
    errno.EDQUOT: "RESOURCE_EXHAUSTED",
    errno.EMFILE: "RESOURCE_EXHAUSTED",
    errno.EIO: "INTERNAL",
}


def fail_at_every_call(
    launcher: Launcher, directory: Path, scenario: Scenario, error: int, only: str = ""
) -> list[tuple[str, str]]:
    """Let each call (of those named *only*) fail with *error* in turn; what failed, and the status the caller got.

    A failed fsync of a directory stops the server. After anything else it goes on: what wasn't acknowledged isn't there and has left
    nothing, and a small version still fits.
    """
    control = launcher.control
    template = directory / "template"
    prepare(launcher, template, scenario)
    before, after = before_and_after(launcher, template, scenario)
    undone = [before, healed(before)] if scenario.heals else [before]
    seen: list[tuple[str, str]] = []
    for number in itertools.count(1):
        archive = copy_archive(template, directory / "archive")
        server = launcher.start(archive)
        given: set[int] = set()
        with server.calls() as calls:
            control.arm(archive, FAIL, at=number, error=error, only=only)
            try:
                given = scenario.act(calls) or set()
                status = "OK"
            except grpc.RpcError as failure:
                failed: Any = failure
                status = failed.code().name
                assert_for_people(failed.details())
                if status == "INTERNAL":
                    assert failed.details() != "internal error", server.log
            control.disarm()
            if control.seen == "fsync directory":
                assert status == "UNAVAILABLE"
                assert server.wait() == STOPPED
                allowed = [*undone, after]
            else:
                assert status in ("OK", STATUSES[error])
                assert observe(calls) in ([after] if status == "OK" else undone)
                if status != "OK":  # what can't be removed stays until the next boot
                    assert not list(Layout(archive).tmp.iterdir()), control.names
                store(calls, b"a small one still fits", "beside")
                allowed = [observe(calls)]
        server.kill()
        check_recovered(launcher, archive, allowed, given)
        if not control.seen:
            return seen
        seen.append((control.seen, status))
    raise AssertionError
