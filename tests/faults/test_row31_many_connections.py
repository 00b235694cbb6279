"""Row 31: many connections that work at once, and thousands of watchers that are woken at once: a call beside them waits for
its share, not for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from google.protobuf.message import Message

from modelreg.api import common_pb2, health_pb2
from modelreg.api import model_registry_pb2 as api
from tests.faults.abuse import WATCH, call, clients, create, encoded, fields, path, publish, status
from tests.faults.crash import Launcher
from tests.support.h2client import H2Client, block, connected, data, headers, request_fields
from tests.support.server import PATIENCE

CONNECTIONS = 10
CALLS = 300
BURSTS = 3
WATCHERS = 4000

PIPELINED: dict[str, tuple[str, Message]] = {
    "health": ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()),
    "version": (path("Version"), common_pb2.VersionRequest()),
    "status": (path("Status"), common_pb2.StatusRequest(names=["*"])),
    "download": (path("RetrieveVersionData"), api.RetrieveVersionDataRequest(model_id="m", version_number=-1)),
}


async def burst(client: H2Client, method: str, request: Message) -> None:
    """Many calls, sent in one piece."""
    opening, body = block(request_fields(method)), encoded(request)
    numbers = [client.new_id() for _ in range(CALLS)]
    await client.send(*(headers(one, opening) + data(one, body, end_stream=True) for one in numbers))
    await client.until(lambda: all(client.reply(one).status == 0 for one in numbers))


@pytest.mark.parametrize("name", PIPELINED)
async def test_pipelined_calls(launcher: Launcher, memory_path: Path, name: str) -> None:
    server = launcher.start(memory_path / "archive")
    async with clients(server, CONNECTIONS) as connections:
        await create(connections[0])
        await publish(connections[0])
        with launcher.canary(server):
            for _ in range(BURSTS):
                async with trio.open_nursery() as nursery:
                    for client in connections:
                        nursery.start_soon(burst, client, *PIPELINED[name])


async def test_watchers_whose_model_is_deleted(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    async with connected(server.port) as client, connected(server.port) as other:
        await create(other)
        opening = fields("VersionUpdate")
        numbers = [client.new_id() for _ in range(WATCHERS)]
        await client.send(*(headers(one, opening) + data(one, WATCH, end_stream=True) for one in numbers))
        with trio.fail_after(PATIENCE):
            while await status(other, "watchers") < WATCHERS:
                pass
        with launcher.canary(server):
            await publish(other)
            await client.until(lambda: all(client.reply(one).body for one in numbers))
            await call(other, "DeleteModel", api.DeleteModelRequest(model_id="m"))
            await client.until(lambda: all(client.reply(one).ended for one in numbers))
