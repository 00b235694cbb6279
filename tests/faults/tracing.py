"""strace (https://strace.io), attached to a server that runs."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DETACHING_SECONDS = 3.0


@contextmanager
def tracing(pid: int, *options: str | Path) -> Iterator[None]:
    """Trace a process with all its threads within the block; skips the test where that can't be."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace isn't installed")
    with subprocess.Popen(
        [strace, "-f", "-p", str(pid), *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            if "attached" not in line:
                pytest.skip(f"strace can't attach here: {line.strip()}")
            yield
        finally:
            process.send_signal(signal.SIGINT)  # it detaches
            try:
                process.communicate(timeout=DETACHING_SECONDS)
            except subprocess.TimeoutExpired:  # it can miss the end of what has been killed
                process.kill()
