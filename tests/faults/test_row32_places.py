"""Row 32: connections that take all the places there are, idle or with calls that never end: new ones get in, and health checks always do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from tests.faults.abuse import back_at, begin, clients, create, settled, status
from tests.faults.crash import Launcher
from tests.support.h2client import H2Client, block, connected, data, headers, message, request_fields
from tests.support.measures import descriptors

PLACES = 40
SPARE = 5  # an eighth
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


@asynccontextmanager
async def from_address(address: str, port: int) -> AsyncIterator[H2Client]:
    """A client of another address of this machine: another peer."""
    client = H2Client(await trio.open_tcp_stream("127.0.0.1", port, local_address=address))
    try:
        await client.start()
        yield client
    finally:
        await client.aclose()


async def test_idle_connections_keep_nobody_out(launcher: Launcher, memory_path: Path) -> None:
    """Three times as many as there may be, half of which made a call: each that comes is served, and so is one that is older and busy."""
    server = launcher.start(memory_path / "archive", f"--max_connections={PLACES}")
    before = await settled(server)
    with launcher.canary(server):
        async with connected(server.port) as busy, AsyncExitStack() as stack:
            await create(busy)
            watching = await begin(busy, "CreateVersion", b"", whole=False)
            for number in range(3 * PLACES):
                client = await stack.enter_async_context(connected(server.port))
                if number % 2:
                    assert await status(client, "models") == 1
                assert descriptors(server.pid) <= before.descriptors + PLACES + 2 * SPARE + 2
            assert not busy.reply(watching).ended
            assert await status(busy, "models") == 1
    await back_at(server, before)


async def test_calls_that_never_end_keep_out_no_other_peer_and_no_health_check(
    launcher: Launcher, memory_path: Path
) -> None:
    server = launcher.start(memory_path / "archive", f"--max_connections={PLACES}")
    before = await settled(server)
    async with clients(server, PLACES) as crowd, AsyncExitStack() as stack:
        await create(crowd[0])
        for client in crowd:
            assert (await client.call(CHECK, b"")).status == 0
            await begin(client, "CreateVersion", b"", whole=False)
            assert (await client.call(CHECK, b"")).status == 0
        for _ in range(3 * SPARE):  # they stay, so the oldest of them go
            visitor = await stack.enter_async_context(connected(server.port))
            assert (await visitor.call(CHECK, b"")).status == 0
        async with from_address("127.0.0.2", server.port) as other:
            assert await status(other, "models") == 1
            await begin(other, "CreateVersion", b"", whole=False)
            assert await status(other, "models") == 1
            await crowd[-1].until_closed()
    await back_at(server, before)


async def test_calls_that_need_no_token_keep_nobody_out(launcher: Launcher, memory_path: Path) -> None:
    """Health watches never end, and health checks needn't either: a call that may need one gets the place of one of these."""
    server = launcher.start(memory_path / "archive", f"--max_connections={PLACES}")
    before = await settled(server)
    async with connected(server.port) as busy:
        await create(busy)
        watching = await begin(busy, "CreateVersion", b"", whole=False)
        async with clients(server, PLACES - 1) as crowd:
            for client in crowd[::2]:
                await client.send(headers(client.new_id(), block(request_fields(WATCH))))
                await client.send(data(1, message(b""), end_stream=True))
                await client.until(lambda client=client: bool(client.reply(1).body))  # type: ignore[misc]
            for client in crowd[1::2]:
                await begin(client, "Version", b"", whole=False)
            async with connected(server.port) as other:
                await create(other)
                await crowd[0].until_closed()
        assert not busy.reply(watching).ended
    await back_at(server, before)
