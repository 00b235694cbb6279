"""Row 19: 5,000 streams opened and reset at once: running handlers stay under the limit, memory is flat, then GOAWAY."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.faults.abuse import WATCH, Footprint, back_at, clients, create, fields, settled
from tests.faults.crash import Launcher, Server
from tests.support.h2client import H2Client, connected, data, headers
from tests.support.measures import memory_bytes, peak_memory_bytes

STREAMS = 5000
LIMIT = 100

# As many as run at once where all may run before they're reset. (With the 4,096 that a connection may have without options, one collection
# of Python's garbage takes all of the 100 ms that the canary has, on Python 3.10.) Some more are refused, which alone isn't too much.
MANY = 2500
SOME_MORE = 900

MIB = 1 << 20

# Of an idle server, its connections and what it starts meanwhile.
MORE_TASKS = 10


async def prepared(launcher: Launcher, directory: Path, *options: str) -> tuple[Server, Footprint, int]:
    """A server, what there is of it, and its memory after it has had much to do."""
    server = launcher.start(directory / "archive", *options)
    async with connected(server.port) as client:
        await create(client)
        for _ in range(5):
            await storm_in_pieces(server)
    return server, await settled(server), memory_bytes(server.pid)


def streams() -> range:
    return range(1, 2 * STREAMS, 2)


def opened(stream_id: int) -> bytes:
    return headers(stream_id, fields("VersionUpdate")) + data(stream_id, WATCH, end_stream=True)


def reset(stream_id: int) -> bytes:
    return frames.rst_stream(stream_id, ErrorCode.CANCEL)


async def storm_at_once(server: Server) -> H2Client:
    async with clients(server, 1) as (client,):
        await client.try_send(b"".join(opened(stream_id) + reset(stream_id) for stream_id in streams()))
        await client.until_closed()
        return client


async def storm_in_pieces(server: Server) -> H2Client:
    """Handlers are started: what opens a stream and what resets it come apart."""
    async with clients(server, 1) as (client,), trio.open_nursery() as nursery:

        async def send() -> None:
            for stream_id in streams():
                await client.try_send(opened(stream_id))
                await client.try_send(reset(stream_id))

        nursery.start_soon(send)
        await client.until_closed()
        nursery.cancel_scope.cancel()
        return client


async def storm_after_all_are_open(server: Server) -> H2Client:
    async with clients(server, 1) as (client,):
        ids = range(1, 2 * (MANY + SOME_MORE), 2)
        await client.send(*map(opened, ids))
        last = client.reply(ids[-1])
        await client.until(lambda: last.reset is not None)
        assert last.reset is ErrorCode.REFUSED_STREAM
        await client.try_send(*map(reset, ids))
        await client.until_closed()
        return client


@pytest.mark.parametrize("storm", [storm_at_once, storm_in_pieces])
async def test_opened_and_reset(launcher: Launcher, memory_path: Path, storm: object) -> None:
    server, before, memory = await prepared(launcher, memory_path, f"--max_concurrent_streams={LIMIT}")
    with launcher.canary(server):
        client = await storm(server)  # type: ignore[operator]
        assert [frame.code for frame in client.goaways] == [ErrorCode.ENHANCE_YOUR_CALM]
    assert server.most_tasks < before.tasks + LIMIT + MORE_TASKS
    assert peak_memory_bytes(server.pid) - memory < 8 * MIB
    await back_at(server, before)


async def test_all_open_then_all_reset(launcher: Launcher, memory_path: Path) -> None:
    """So many refused streams are too many, too; as many calls as are allowed may run, and end together."""
    server, before, memory = await prepared(launcher, memory_path, f"--max_concurrent_streams={MANY}")
    with launcher.canary(server):
        client = await storm_after_all_are_open(server)
        assert [frame.code for frame in client.goaways] == [ErrorCode.ENHANCE_YOUR_CALM]
    assert MANY <= server.most_tasks < before.tasks + MANY + MORE_TASKS
    assert peak_memory_bytes(server.pid) - memory < 64 * MIB
    await back_at(server, before)
