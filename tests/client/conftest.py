"""What the client's tests share: each runs on both event loops, against a server that is a program of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from tests.support.server import ServerProgram, server_program

T = TypeVar("T")

# Far beyond what any test takes.
SECONDS = 60

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def run(backend: str) -> Run:
    """Runs a coroutine function on one of the event loops, and fails when it hangs."""

    def run(main: Callable[[], Awaitable[T]]) -> T:
        async def limited() -> T:
            with anyio.fail_after(SECONDS):
                return await main()

        return anyio.run(limited, backend=backend)

    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProgram]:
    """A server that a module's tests share; each uses model names of its own."""
    with server_program(tmp_path_factory.mktemp("archive")) as program:
        yield program


@pytest.fixture(scope="module")
def url(server: ServerProgram) -> str:
    return f"grpc://{server.address}"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model name that no other test uses."""
    return f"model of {request.node.name}"


@pytest.fixture
def archive_dir(tmp_path: Path) -> Path:
    return tmp_path / "archive"
