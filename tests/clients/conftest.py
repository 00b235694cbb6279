"""Servers to call, and channels to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.calls import Calls, open_channel
from tests.support.server import ServerProgram, StartServer, server_program, server_programs


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProgram]:
    """A server for all tests of a module that need nothing but models of their own."""
    with server_program(tmp_path_factory.mktemp("archive") / "models", "--grpc_reflection") as program:
        yield program


@pytest.fixture
def channel(shared_server: ServerProgram) -> Iterator[Any]:
    with open_channel(shared_server.address) as channel:
        yield channel


@pytest.fixture
def calls(channel: Any) -> Calls:
    """The calls of the module's server, on a connection of the test's own."""
    return Calls(channel)


_numbers = itertools.count(1)


@pytest.fixture
def model(calls: Calls) -> str:
    """The id of a model without versions on the module's server, and of no other test's."""
    model_id = f"model {next(_numbers)}"
    calls.create(model_id)
    return model_id


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers of the test's own, on its own directory."""
    with server_programs(tmp_path / "archive") as start:
        yield start
