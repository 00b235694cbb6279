"""A launcher of servers for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.crash import Launcher, open_launcher


@pytest.fixture(scope="module")
def _launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with open_launcher(tmp_path_factory.mktemp("launcher")) as launcher:
        yield launcher


@pytest.fixture
def launcher(_launcher: Launcher) -> Iterator[Launcher]:
    """Starts servers; those that still run when the test ends are killed."""
    yield _launcher
    _launcher.end_servers()
