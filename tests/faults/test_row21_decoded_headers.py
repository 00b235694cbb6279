"""Row 21: headers that are few bytes on the wire and many once they are decoded. No token is needed to send them."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.faults.abuse import clients, settled
from tests.faults.crash import Launcher
from tests.support.h2client import H2Client, block, data, headers, literal, message, request_fields
from tests.support.measures import memory_bytes, peak_memory_bytes

MIB = 1 << 20

HEALTH = "/grpc.health.v1.Health/"

# The newest entry of the dynamic table, in one byte (RFC 7541, sections 2.3.3 and 6.1).
NEWEST = b"\xbe"

# An entry that just fits the table, as binary metadata: thousands of values, all of them empty.
COMMAS = b"\x40" + literal(b"a-bin", b"," * 3900)[1:]


def indexed(name: bytes, value: bytes) -> bytes:
    """A field as a literal that goes into the dynamic table."""
    return b"\x40" + literal(name, value)[1:]


def call(stream_id: int, encoded: bytes) -> bytes:
    return headers(stream_id, encoded) + data(stream_id, message(b""), end_stream=True)


async def calls(client: H2Client, first: bytes, others: bytes, count: int) -> None:
    """Send a call that fills the table, and others that refer to it. No two are the same."""
    ids = [client.new_id() for _ in range(count)]
    different = (others + literal(b"n", b"%d" % stream_id) for stream_id in ids[1:])
    await client.send(call(ids[0], first), *map(call, ids[1:], different))


async def answered(client: H2Client, status: int) -> None:
    last = client.reply(client.next_id - 2)
    await client.until(lambda: last.ended, 60)
    assert last.status == status


async def test_metadata_of_many_values(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    check = block(request_fields(HEALTH + "Check"))
    async with clients(server, 1) as (client,):
        with launcher.canary(server):
            await calls(client, check + COMMAS, check + NEWEST * 4, 500)
            await answered(client, 0)


async def test_metadata_of_calls_that_stay(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    watch = block(request_fields(HEALTH + "Watch"))
    async with clients(server, 1) as (client,):
        await settled(server)
        memory = memory_bytes(server.pid)
        await calls(client, watch + COMMAS, watch + NEWEST * 4, 300)
        last = client.reply(client.next_id - 2)
        await client.until(lambda: bool(last.messages), 60)
        assert peak_memory_bytes(server.pid) - memory < 16 * MIB


async def test_a_long_path_that_does_not_exist(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    fields = block([(b":method", b"POST"), (b":scheme", b"http")])
    rest = block([(b"te", b"trailers"), (b"content-type", b"application/grpc")])
    path = indexed(b":path", b"/a/" + b"b" * 3900)
    async with clients(server, 5) as connections:
        with launcher.canary(server):
            async with trio.open_nursery() as nursery:
                for client in connections:
                    nursery.start_soon(calls, client, fields + path + rest, fields + NEWEST + rest, 600)
            for client in connections:
                await answered(client, 12)
