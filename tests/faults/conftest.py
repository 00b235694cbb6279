"""A launcher of servers for each module."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.crash import Launcher, open_launcher


@pytest.fixture(scope="module")
def _launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with open_launcher(tmp_path_factory.mktemp("launcher")) as launcher:
        yield launcher


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there's one: what a killed process has written is there all the same, and nobody waits for a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def launcher(_launcher: Launcher) -> Iterator[Launcher]:
    """Starts servers; those that still run when the test ends are killed."""
    yield _launcher
    _launcher.end_servers()
