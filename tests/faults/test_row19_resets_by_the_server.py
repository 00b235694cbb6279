"""Row 19: streams that the server has to reset, as the client breaks a rule on each of them (CVE-2025-8671, "MadeYouReset").

They count like those that the client resets itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.faults.abuse import (
    LARGEST_WINDOW,
    WATCH,
    back_at,
    clients,
    create,
    fields,
    path,
    settled,
    upload_begins,
)
from tests.faults.crash import Launcher
from tests.support.h2client import (
    SETTINGS_INITIAL_WINDOW_SIZE,
    H2Client,
    block,
    connected,
    data,
    headers,
    request_fields,
    settings,
)
from tests.support.measures import memory_bytes, peak_memory_bytes

MIB = 1 << 20

STREAMS = 5000

# What the meters let pass, and some more.
FEW = 2500

WATCHING = fields("VersionUpdate")
LONGER = fields("VersionUpdate", [(b"content-length", b"1000")])
MALFORMED = fields("VersionUpdate", [(b"Upper", b"case")])
GET = block(request_fields(path("VersionUpdate"), method=b"GET"))


def watch(stream_id: int) -> bytes:
    return headers(stream_id, WATCHING) + data(stream_id, WATCH, end_stream=True)


# What is sent on each stream.
PROVOCATIONS: dict[str, Callable[[int], bytes]] = {
    "content-length": lambda number: headers(number, LONGER) + data(number, WATCH, end_stream=True),
    "malformed": lambda number: headers(number, MALFORMED),
    "window update by nothing": lambda number: watch(number) + frames.window_update(number, 0),
    "window that overflows": lambda number: watch(number) + frames.window_update(number, LARGEST_WINDOW),
    "GET": lambda number: headers(number, GET, end_stream=True),
    "headers after the end": lambda number: watch(number) + headers(number, WATCHING),
    "data after the end": lambda number: watch(number) + data(number, b"x"),
}


# What is sent again and again on a stream that the server has reset.
ON_A_RESET_STREAM = {
    "headers": headers(1, WATCHING),
    "trailers": headers(1, b"", end_stream=True),
    "the end": data(1, b"", end_stream=True),
    "the end, padded": data(1, b"", end_stream=True, padding=100),
}


async def attack(port: int, *pieces: bytes) -> H2Client:
    async with connected(port) as client, trio.open_nursery() as nursery:

        async def send() -> None:
            for piece in pieces:
                await client.try_send(piece)

        nursery.start_soon(send)
        with trio.move_on_after(20):
            await client.until_closed()
        nursery.cancel_scope.cancel()
        return client


@pytest.mark.parametrize("name", PROVOCATIONS)
async def test_a_stream_each(launcher: Launcher, memory_path: Path, name: str) -> None:
    server = launcher.start(memory_path / "archive")
    async with connected(server.port) as client:
        await create(client)
    before, memory = await settled(server), memory_bytes(server.pid)
    provoke = PROVOCATIONS[name]
    sent = [provoke(number) for number in range(1, 2 * STREAMS, 2)]
    with launcher.canary(server):
        client = await attack(server.port, *(b"".join(sent[at : at + 100]) for at in range(0, STREAMS, 100)))
    answers = sum(reply.ended or reply.reset is not None for reply in client.replies.values())
    assert [frame.code for frame in client.goaways] == [ErrorCode.ENHANCE_YOUR_CALM]
    assert answers < FEW
    assert peak_memory_bytes(server.pid) - memory < 16 * MIB
    await back_at(server, before)


@pytest.mark.parametrize("name", ON_A_RESET_STREAM)
async def test_on_a_stream_that_was_reset(launcher: Launcher, memory_path: Path, name: str) -> None:
    server = launcher.start(memory_path / "archive")
    async with connected(server.port):
        pass
    before = await settled(server)
    with launcher.canary(server):
        client = await attack(
            server.port, headers(1, WATCHING) + frames.window_update(1, 0), *[ON_A_RESET_STREAM[name] * 100] * 100
        )
    assert [frame.code for frame in client.goaways] == [ErrorCode.ENHANCE_YOUR_CALM]
    await back_at(server, before)


async def test_uploads(launcher: Launcher, memory_path: Path) -> None:
    """Hundreds of them at once: of those that were reset no file is left a second later."""
    server = launcher.start(memory_path / "archive")
    async with connected(server.port) as client:
        await create(client)
    before = await settled(server)
    uploading = fields("CreateVersion")
    begun = upload_begins(10 * MIB)
    with launcher.canary(server):
        async with clients(server, 1) as (client,), trio.open_nursery() as nursery:

            async def send() -> None:
                for first in range(1, 2 * STREAMS, 400):
                    numbers = range(first, first + 400, 2)
                    await client.try_send(*(headers(number, uploading) + data(number, begun) for number in numbers))
                    await client.try_send(*(frames.window_update(number, 0) for number in numbers))

            nursery.start_soon(send)
            await client.until_closed()
            nursery.cancel_scope.cancel()
    assert [frame.code for frame in client.goaways] == [ErrorCode.ENHANCE_YOUR_CALM]
    await back_at(server, before)


async def test_settings_beside_many_streams(launcher: Launcher, memory_path: Path) -> None:
    """Each may change the windows of all streams. What they change comes to the streams once."""
    server = launcher.start(memory_path / "archive")
    changes = [settings({SETTINGS_INITIAL_WINDOW_SIZE: 70_000 + number}) for number in range(190)]
    async with clients(server, 2) as (other, client):
        await create(other)
        await client.send(*map(watch, range(1, 8000, 2)))
        client.next_id = 8001
        assert (await client.call(path("Status"), b"")).status == 0
        with launcher.canary(server):
            await client.send(*changes)
            assert (await client.call(path("Status"), b"")).status == 0
            assert not client.goaways
