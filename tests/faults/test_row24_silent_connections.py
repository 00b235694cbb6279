"""Row 24: 200 connections that send nothing, or one byte a second: closed within 20 s; and there's a cap on connections."""

from __future__ import annotations

import contextlib
from pathlib import Path

import trio
import trio.testing

from modelreg.transport import frames
from tests.faults.abuse import HELLO, back_at, create, settled, status, until
from tests.faults.crash import Launcher
from tests.support import h2client
from tests.support.h2client import H2Client, connected, settings
from tests.support.measures import Stopwatch, descriptors
from tests.transport.memory import serving

CONNECTIONS = 200

# What is sent of it a byte a second.
TRICKLES = {
    "nothing": b"",
    "preface": frames.PREFACE + settings({}),
    "settings": settings({1: 4096}),
    "headers": h2client.headers(1, bytes(1000)),
}


async def trickle(stream: trio.SocketStream, sent: bytes) -> None:
    """Until the server closes the connection."""
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                for byte in sent:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(1)

        nursery.start_soon(send)
        with contextlib.suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass
        nursery.cancel_scope.cancel()


async def test_many_silent_ones(launcher: Launcher, memory_path: Path) -> None:
    """With the limits that it has without options."""
    server = launcher.start(memory_path / "archive")
    before = await settled(server)
    watch = Stopwatch(server.pid)
    with launcher.canary(server), trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(CONNECTIONS):
                stream = await trio.open_tcp_stream("127.0.0.1", server.port)
                name, sent = list(TRICKLES.items())[number % len(TRICKLES)]
                if name == "settings":
                    await stream.send_all(frames.PREFACE)
                elif name == "headers":
                    await stream.send_all(HELLO)
                nursery.start_soon(trickle, stream, sent)
            await until(lambda: descriptors(server.pid) > before.descriptors + CONNECTIONS)
    assert watch.seconds < 20
    await back_at(server, before)


async def test_the_cap(launcher: Launcher, memory_path: Path) -> None:
    """Connections over it take the places of silent ones; those that make calls are served, old and new."""
    server = launcher.start(memory_path / "archive", "--max_connections=50")
    before = await settled(server)
    async with connected(server.port) as client, trio.open_nursery() as nursery:
        await create(client)
        for _ in range(CONNECTIONS):
            nursery.start_soon(trickle, await trio.open_tcp_stream("127.0.0.1", server.port), b"")
        await until(lambda: descriptors(server.pid) == before.descriptors + 50)
        assert await status(client, "models") == 1
        async with connected(server.port) as late:
            assert await status(late, "models") == 1
        assert descriptors(server.pid) <= before.descriptors + 50
    await back_at(server, before)


# At the transport's test service, on a clock of its own.


async def test_a_client_that_says_nothing_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = H2Client(await serve.listener.connect())
        start = trio.current_time()
        await client.until_closed(100)
        assert trio.current_time() - start < 20


async def test_a_client_that_trickles_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """One byte a second, within the preface and after it."""
    async with serving() as serve:
        for prefix in (b"", frames.PREFACE + h2client.settings({})):
            client = H2Client(await serve.listener.connect())
            start = trio.current_time()
            if prefix:
                await client.send(prefix)

            async def trickle(client: H2Client = client, prefix: bytes = prefix) -> None:
                for byte in frames.PREFACE + h2client.settings({}) if not prefix else h2client.headers(1, bytes(1000)):
                    await client.try_send(bytes([byte]))
                    await trio.sleep(1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trickle)
                await client.until_closed(100)
                nursery.cancel_scope.cancel()
            assert trio.current_time() - start < 20
