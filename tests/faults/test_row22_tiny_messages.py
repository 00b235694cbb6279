"""Row 22: 2 MiB of five-byte messages: the cost is linear, and the canary unharmed."""

from __future__ import annotations

from pathlib import Path
from time import process_time

import pytest

from modelreg.transport.limits import Limits
from tests.clients.calls import body
from tests.faults.abuse import back_at, begin, create, encoded, send_all, settled, upload_begins
from tests.faults.crash import Launcher, Server
from tests.support.h2client import H2Client, connected, message
from tests.support.measures import cpu_seconds, memory_bytes, peak_memory_bytes
from tests.transport.service import path, serving

MIB = 1 << 20
EMPTY = message(b"")

# For eight times as many messages: linear, and what a machine that's shared makes of it. Quadratic would be 64.
EIGHTFOLD = 20


@pytest.mark.parametrize("method", ["Status", "VersionUpdate", "CreateVersion"])
async def test_of_calls_that_want_none(launcher: Launcher, memory_path: Path, method: str) -> None:
    """All of the registry's calls have a use for one at most."""
    server = launcher.start(memory_path / "archive")
    async with connected(server.port) as client:
        await create(client)
        before, memory, start = await settled(server), memory_bytes(server.pid), cpu_seconds(server.pid)
        stream_id = await begin(client, method, b"", whole=False)
        await send_all(client, stream_id, EMPTY * (2 * MIB // len(EMPTY)))
        assert (await client.finished(stream_id)).status == 3
        await back_at(server, before)
        assert cpu_seconds(server.pid) - start < 0.5
        with launcher.canary(server):
            for _ in range(5):
                stream_id = await begin(client, method, b"", whole=False)
                await send_all(client, stream_id, EMPTY * (2 * MIB // len(EMPTY)))
                assert (await client.finished(stream_id)).status == 3
        assert peak_memory_bytes(server.pid) - memory < 8 * MIB


async def upload_nothing(server: Server, client: H2Client, count: int) -> float:
    """An upload of so many messages that hold no data; what the server has worked for it."""
    start = cpu_seconds(server.pid)
    stream_id = await begin(client, "CreateVersion", upload_begins(0, archived=False), whole=False)
    await send_all(client, stream_id, encoded(body(b"")) * count)
    assert (await client.finished(stream_id)).status == 0
    return cpu_seconds(server.pid) - start


async def test_of_an_upload_without_data(launcher: Launcher, memory_path: Path) -> None:
    """The smallest messages that an upload may have: two bytes each, and five before them."""
    server = launcher.start(memory_path / "archive")
    count = 2 * MIB // len(encoded(body(b"")))
    async with connected(server.port) as client:
        await create(client)
        await upload_nothing(server, client, count // 8)
        memory = memory_bytes(server.pid)
        few = await upload_nothing(server, client, count // 8)
        with launcher.canary(server):
            many = await upload_nothing(server, client, count)
        assert many < EIGHTFOLD * few + 0.1  # what the canary asked for
        assert peak_memory_bytes(server.pid) - memory < 8 * MIB


@pytest.mark.parametrize("method", ["Sum", "Upload"])
async def test_of_calls_that_take_them_all(method: str) -> None:
    """At the transport's test service: as protobuf messages, and taken apart while they arrive."""
    async with serving(Limits()) as serve, connected(serve.port) as client:
        worked = []
        for count in (50_000, 50_000, 400_000):  # the first warms up
            stream_id = await client.open(path(method))
            start = process_time()
            await send_all(client, stream_id, EMPTY * count)
            assert (await client.finished(stream_id)).status == 0
            worked.append(process_time() - start)
        assert worked[2] < EIGHTFOLD * worked[1]
