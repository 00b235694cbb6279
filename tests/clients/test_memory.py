"""A version far larger than the memory that the server takes for it: the kernel says how much that was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import ServerProgram, StartServer

MIB = 1 << 20

LARGE_BYTES = int(os.environ.get("MODELREG_TEST_LARGE_BYTES", str(2048 * MIB)))

ALLOWED_BYTES = 150 * MIB

# Run as a program: a client's memory isn't the server's, and its interpreter lock shouldn't hold up pytest's.
CLIENT = """
import hashlib, sys

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import body, connected, header

address, what, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
PIECE = 1 << 20
seed = hashlib.shake_128(b"modelreg").digest(PIECE)


def pieces():
    for start in range(0, size, PIECE):
        # No two are alike.
        yield (start.to_bytes(8, "big") + seed[8:])[: size - start]


def messages():
    yield header("m", data_size=size, archived=True)
    yield from map(body, pieces())


with connected(address) as calls:
    if what == "store":
        calls.create("m")
        calls.CreateVersion(messages(), timeout=900)
    else:
        expected, received = hashlib.sha256(), hashlib.sha256()
        for piece in pieces():
            expected.update(piece)
        request = api.RetrieveVersionDataRequest(model_id="m", version_number=-1)
        for reply in calls.RetrieveVersionData(request, timeout=900):
            received.update(reply.data_chunk)
        assert received.digest() == expected.digest()
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("room")]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[None]:
    if shutil.disk_usage(tmp_path).free < LARGE_BYTES + 512 * MIB:
        pytest.skip(f"no room for {LARGE_BYTES} bytes in {tmp_path}")
    yield
    # pytest keeps the directories of its last runs.
    shutil.rmtree(tmp_path / "archive")


def run_client(server: ServerProgram, what: str) -> None:
    command = [sys.executable, "-c", CLIENT, server.address, what, str(LARGE_BYTES)]
    subprocess.run(command, check=True, timeout=1800, cwd=Path(__file__).parents[2])


def test_memory_while_a_large_version_is_stored_and_read_back(start_server: StartServer) -> None:
    server = start_server()
    run_client(server, "store")
    run_client(server, "read")
    assert server.peak_memory_bytes() < ALLOWED_BYTES


def test_memory_while_a_large_version_is_read_and_verified_after_a_restart(start_server: StartServer) -> None:
    server = start_server()
    run_client(server, "store")
    server.restart()
    run_client(server, "read")
    assert server.peak_memory_bytes() < ALLOWED_BYTES
