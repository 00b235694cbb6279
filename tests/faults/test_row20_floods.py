"""Row 20: floods of PING, SETTINGS, empty DATA, PRIORITY, WINDOW_UPDATE, whether the client reads or not: GOAWAY
ENHANCE_YOUR_CALM; the canary is unharmed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue

from modelreg.transport import frames
from modelreg.transport.buffers import BufferPool
from modelreg.transport.connection import CONGESTED
from modelreg.transport.faults import ErrorCode
from tests.faults.abuse import WATCH, back_at, begin, create, settled
from tests.faults.crash import Launcher
from tests.support.h2client import H2Client, block, connected, data, headers, message, request_fields, settings
from tests.support.measures import memory_bytes, peak_memory_bytes
from tests.transport.service import path as service_path
from tests.transport.service import serving

MIB = 1 << 20

FLOODS = {
    "ping": frames.ping(bytes(8)),
    "answers to no ping": frames.frame_header(8, frames.PING, frames.ACK, 0) + bytes(8),
    "settings": settings({}),
    "changing settings": settings({4: 70_000}),
    "empty data": data(1),
    "padding": data(1, padding=255),
    "priority": frames.frame_header(5, frames.PRIORITY, 0, 1) + bytes(5),
    "window update": frames.window_update(1, 1),
    "window update of the connection": frames.window_update(0, 1),
    "reset of a stream that has ended": frames.rst_stream(1, 8),
    "unknown": frames.frame_header(0, 0x99, 0, 0),
}


async def flood(client: H2Client, frame: bytes, *, reads: bool) -> None:
    """Send a frame 100,000 times, or until the connection is closed."""
    async with trio.open_nursery() as nursery:
        if reads:

            async def read() -> None:
                await client.until_closed()
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
        for _ in range(100):
            await client.try_send(frame * 1000)
        if not reads:
            await client.until_closed()


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "not reading"])
@pytest.mark.parametrize("name", FLOODS)
async def test_floods(launcher: Launcher, memory_path: Path, name: str, reads: bool) -> None:
    server = launcher.start(memory_path / "archive")
    async with connected(server.port) as client:
        await create(client)
    before, memory = await settled(server), memory_bytes(server.pid)
    with launcher.canary(server):
        for _ in range(3):
            async with connected(server.port) as client:
                # Data may come for a call that waits for more of it; everything else for a watch.
                if name in ("empty data", "padding"):
                    await begin(client, "CreateVersion", b"", whole=False)
                else:
                    await begin(client, "VersionUpdate", WATCH)
                await flood(client, FLOODS[name], reads=reads)
                assert [frame.code for frame in client.goaways] == [ErrorCode.ENHANCE_YOUR_CALM]
    await back_at(server, before)
    assert peak_memory_bytes(server.pid) - memory < 8 * MIB


async def test_what_a_client_leaves_unread_is_bounded() -> None:
    """Statuses depend on no window. From a client that doesn't read them nothing more is read, until it does."""
    calls = 6000
    text = b"x" * 2000
    request = message(BytesValue(value=text).SerializeToString())
    fields = block(request_fields(service_path("Fail")))
    async with serving() as serve, connected(serve.port) as client, trio.open_nursery() as nursery:
        assert isinstance(client.stream, trio.SocketStream)
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        numbers = [client.new_id() for _ in range(calls)]
        sent = trio.Event()

        async def send() -> None:
            for first in range(0, calls, 100):
                some = numbers[first : first + 100]
                await client.send(*(headers(it, fields) + data(it, request, end_stream=True) for it in some))
            sent.set()

        nursery.start_soon(send)
        (connection,) = serve.server._connections
        outbound = connection.core.outbound
        while outbound.urgent_bytes <= CONGESTED:
            await trio.testing.wait_all_tasks_blocked()
        # What was received at once is answered; nothing after that is received.
        received = connection.wire.bytes_in
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert outbound.urgent_bytes < 2 * CONGESTED
        assert connection.wire.bytes_in - received < BufferPool().size
        assert not sent.is_set()
        await client.until(lambda: all(client.reply(it).ended for it in numbers))
        assert {client.reply(it).status for it in numbers} == {5}
        assert sent.is_set()
