"""Hostile and broken clients, over real sockets: what they get, and that nobody else notices (rows 14 to 30)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue

from modelreg.transport import Limits, frames
from modelreg.transport.faults import ErrorCode
from tests.support import h2client
from tests.support.h2client import H2Client, block, connected, data, headers, literal, message, request_fields, settings
from tests.transport.service import Serving, path, serving


def value(content: bytes) -> bytes:
    return BytesValue(value=content).SerializeToString()


ECHO = block(request_fields(path("Echo")))
HELLO = frames.PREFACE + settings({})


@asynccontextmanager
async def canary(serve: Serving) -> AsyncIterator[None]:
    """Another client, calling all the time: no call may wait for more than 100 ms of work for others.

    Measured is the time this process works while the call waits, as the machine may be busy with other things.
    """
    times: list[float] = []

    async with trio.open_nursery() as nursery:

        async def sing() -> None:
            async with connected(serve.port) as client:
                while True:
                    start = time.process_time()
                    assert (await client.call(path("Echo"), value(b"tweet"))).status == 0
                    times.append(time.process_time() - start)
                    await trio.testing.wait_all_tasks_blocked(0.001)

        nursery.start_soon(sing)
        yield
        await until(lambda: bool(times), 10)
        nursery.cancel_scope.cancel()
    times.sort()
    assert times[len(times) // 2] < 0.1
    assert times[-1] < 0.5  # this client's own work included


Dial = Callable[[Serving], Awaitable[H2Client]]


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    """Connects clients that have said nothing yet."""
    clients: list[H2Client] = []

    async def connect(serve: Serving) -> H2Client:
        clients.append(H2Client(await trio.open_tcp_stream("127.0.0.1", serve.port)))
        return clients[-1]

    yield connect
    for client in clients:
        await client.aclose()


async def send_while_reading(client: H2Client, sent: bytes, times: int) -> None:
    """Send something again and again until it is all sent or the server has closed the connection."""
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            await client.until_closed(20)
            nursery.cancel_scope.cancel()

        nursery.start_soon(read)
        try:
            for _ in range(times):
                await client.send(sent)
        except trio.BrokenResourceError:
            pass


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.usefixtures("no_descriptor_left")
@pytest.mark.parametrize("method", ["Upload", "Watch", "File", "Hold", "Wait"])
@pytest.mark.parametrize("way", ["reset", "drop"])
async def test_clients_that_vanish(method: str, way: str, tmp_path: Path) -> None:
    """Row 14: handlers and descriptors are back to where they were."""
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(50_000_000)
        async with serving() as serve:
            serve.state.descriptor = file.fileno()
            serve.state.file_size = 50_000_000
            process = psutil.Process()
            before = None
            body = value(b"1000000") if method == "File" else value(b"x")
            for _ in range(20):
                async with connected(serve.port, credit=False) as client:
                    for _ in range(5 if way == "reset" else 1):
                        stream_id = await client.open(path(method))
                        half = method in ("Upload", "Hold")
                        await client.send(data(stream_id, message(body), end_stream=not half))
                        await until(lambda: serve.state.running > 0)
                        if way == "reset":
                            await client.send(frames.rst_stream(stream_id, ErrorCode.CANCEL))
                            await until(lambda: serve.state.running == 0)
                await until(lambda: serve.state.running == 0)
                await until(lambda: serve.server.statistics().connections == 0)
                before = before or process.num_fds()
            assert process.num_fds() <= before


@pytest.mark.parametrize(
    ("fields", "http_status", "status"),
    [
        (request_fields(path("Echo"), method=b"GET"), "405", 13),
        (request_fields(path("Echo"), without=[b"te"]), "400", 13),
        (request_fields(path("Echo"), without=[b"content-type"]), "415", 3),
        (request_fields("/one/two/three"), "200", 12),
        (request_fields(path("Echo"), [(b"grpc-timeout", b"soon")]), "200", 3),
        (request_fields(path("Echo"), [(b"x-bin", b"*")]), "200", 3),
    ],
)
async def test_bad_requests_cost_their_stream_only(fields: h2client.Fields, http_status: str, status: int) -> None:
    """Row 15."""
    async with serving() as serve, connected(serve.port) as client:
        watch = await client.open(path("Watch"))
        await client.send(data(watch, message(b""), end_stream=True))
        await client.until(lambda: bool(client.reply(watch).body))
        stream_id = client.new_id()
        await client.send(headers(stream_id, block(fields)), data(stream_id, message(b""), end_stream=True))
        reply = await client.finished(stream_id)
        assert dict(reply.fields)[":status"] == http_status
        assert reply.status == status
        serve.state.go_on.set()
        assert (await client.finished(watch)).status == 0


async def test_malformed_headers_cost_their_stream_only() -> None:
    async with serving() as serve, connected(serve.port) as client:
        stream_id = await client.open(path("Echo"), [(b"Connection", b"close")])
        assert (await client.finished(stream_id)).reset is ErrorCode.PROTOCOL_ERROR
        assert (await client.call(path("Echo"), value(b"x"))).status == 0


async def test_a_reset_storm(dial: Dial) -> None:
    """Row 19."""
    async with serving(Limits(max_concurrent_streams=100)) as serve, canary(serve):
        client = await dial(serve)
        encoded = block(request_fields(path("Wait")))
        storm = b"".join(
            headers(number, encoded) + data(number, message(b""), end_stream=True) + frames.rst_stream(number, 8)
            for number in range(1, 10_001, 2)
        )
        await client.try_send(HELLO + storm)
        await client.until_closed()
        assert client.goaways[-1].code is ErrorCode.ENHANCE_YOUR_CALM
        assert serve.state.most_running <= 100
        await until(lambda: serve.state.running == 0)


async def test_a_reset_storm_in_small_pieces(dial: Dial) -> None:
    async with serving(Limits(max_concurrent_streams=100)) as serve, canary(serve):
        client = await dial(serve)
        await client.start()
        encoded = block(request_fields(path("Wait")))
        async with trio.open_nursery() as nursery:

            async def storm() -> None:
                for number in range(1, 10_001, 2):
                    await client.try_send(headers(number, encoded), data(number, message(b""), end_stream=True))
                    await client.try_send(frames.rst_stream(number, 8))

            nursery.start_soon(storm)
            await client.until_closed()
            nursery.cancel_scope.cancel()
        assert client.goaways[-1].code is ErrorCode.ENHANCE_YOUR_CALM
        assert serve.state.most_running <= 100


FLOODS = {
    "ping": frames.ping(bytes(8)),
    "settings": settings({}),
    "empty data": data(1),
    "priority": frames.frame_header(5, frames.PRIORITY, 0, 1) + bytes(5),
    "window update": frames.window_update(1, 1),
    "unknown": frames.frame_header(0, 0x99, 0, 0),
}


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("name", FLOODS)
async def test_floods(name: str, reads: bool, dial: Dial) -> None:
    """Row 20."""
    async with serving() as serve, canary(serve):
        client = await dial(serve)
        await client.start()
        await client.open(path("Watch"))
        if reads:
            await send_while_reading(client, FLOODS[name] * 1000, 100)
        else:
            for _ in range(100):
                await client.try_send(FLOODS[name] * 1000)
        if not client.closed:
            await client.until_closed()
        if reads:
            assert [frame.code for frame in client.goaways] == [ErrorCode.ENHANCE_YOUR_CALM]
        await client.aclose()
        await until(lambda: serve.server.statistics().connections == 1)


HEADER_BOMBS = {
    "endless continuation": headers(1, b"", end_headers=False)
    + frames.frame_header(1, frames.CONTINUATION, 0, 1).ljust(10, b"\x82") * 100_000,
    "empty continuation": headers(1, b"", end_headers=False)
    + frames.frame_header(0, frames.CONTINUATION, 0, 1) * 100_000,
    "16 MiB header": headers(1, literal(b"x", bytes(16_000)), end_headers=False)
    + b"".join(frames.frame_header(16_000, frames.CONTINUATION, 0, 1) + bytes(16_000) for _ in range(1000)),
    "hpack bomb": headers(1, b"\x40" + literal(b"x" * 100, b"y" * 3000)[1:] + b"\xbe" * 12_000),
    "long varint": headers(1, b"\x7f" + b"\xff" * 16_000),
    "1 MiB varint": headers(1, b"\x7f" + b"\xff" * (1 << 20))[: 1 << 20],
}


@pytest.mark.parametrize("name", HEADER_BOMBS)
async def test_header_bombs(name: str, dial: Dial) -> None:
    """Row 21."""
    async with serving() as serve, canary(serve):
        client = await dial(serve)
        await client.start()
        await client.try_send(HEADER_BOMBS[name])
        await client.until_closed()
        assert client.goaways or name == "1 MiB varint"
        await client.aclose()
        await until(lambda: serve.server.statistics().connections == 1)


def may_send(client: H2Client, stream_id: int, window: int) -> bool:
    """Whether the window, with what the server has added to it, allows it."""
    return window + client.windows.get(stream_id, 0) >= 0


@pytest.mark.parametrize("method", ["Sum", "Upload"])
async def test_two_mebibytes_of_empty_messages(method: str) -> None:
    """Row 22."""
    async with serving() as serve, canary(serve), connected(serve.port) as client:
        stream_id = await client.open(path(method))
        body = message(b"") * 400_000
        start = time.process_time()
        for place in range(0, len(body), 65536):
            sent = client.server_settings[4] - place - 65536
            await client.until(partial(may_send, client, stream_id, sent), 30)
            await client.send(data(stream_id, body[place : place + 65536]))
        await client.send(data(stream_id, end_stream=True))
        reply = client.reply(stream_id)
        await client.until(lambda: reply.ended, 30)
        assert reply.status == 0
        assert time.process_time() - start < 15


async def test_a_client_that_stops_reading(tmp_path: Path, dial: Dial) -> None:
    """Row 23: nothing but what is in the kernel's buffers, and an end."""
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(1 << 30)
        async with serving(Limits(stall_timeout=1.5)) as serve:
            serve.state.descriptor = file.fileno()
            serve.state.file_size = 1 << 30
            client = await dial(serve)
            await client.send(HELLO + frames.window_update(0, 2**30), settings({4: 2**31 - 1}))
            request = block(request_fields(path("File")))
            memory = psutil.Process().memory_info().rss
            for stream_id in (1, 3, 5):
                await client.send(
                    headers(stream_id, request), data(stream_id, message(value(b"4000000")), end_stream=True)
                )
            await until(lambda: serve.state.running == 3)
            await until(lambda: serve.state.running == 0, 6)
            assert psutil.Process().memory_info().rss - memory < 16 << 20
            await client.aclose()


async def test_replies_that_nobody_reads_hold_up_their_own_calls() -> None:
    """Messages in memory: no more than a few of them, however many calls there are."""
    async with serving() as serve, connected(serve.port, {4: 2**31 - 1}, credit=False) as client:
        await client.send(frames.window_update(0, 2**30))
        encoded = block(request_fields(path("Count")))
        for stream_id in range(1, 401, 2):
            await client.send(
                headers(stream_id, encoded), data(stream_id, message(value(b"100 1000000")), end_stream=True)
            )
        await until(lambda: serve.state.running == 200)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert serve.state.pulled < 300


async def test_small_replies_that_nobody_reads_stop_the_requests(dial: Dial) -> None:
    async with serving(Limits(stall_timeout=1.5)) as serve, canary(serve):
        client = await dial(serve)
        await client.send(HELLO + frames.window_update(0, 2**30), settings({4: 2**31 - 1}))
        memory = psutil.Process().memory_info().rss
        body = message(value(bytes(15_000)))
        with trio.fail_after(20):
            with pytest.raises(trio.BrokenResourceError):  # the server stops reading, and after a while it hangs up
                for stream_id in range(1, 40_001, 2):
                    await client.send(headers(stream_id, ECHO), data(stream_id, body, end_stream=True))
        assert psutil.Process().memory_info().rss - memory < 32 << 20
        assert serve.server.statistics().streams_total < 5000


async def test_silent_connections_up_to_the_cap() -> None:
    """Row 24."""
    async with serving(Limits(max_connections=50, handshake_timeout=1)) as serve:
        silent = [socket.create_connection(("127.0.0.1", serve.port)) for _ in range(60)]
        await until(lambda: serve.server.statistics().connections == 50)
        async with connected(serve.port) as client:
            assert (await client.call(path("Echo"), value(b"x"))).status == 0
        for connection in silent:
            connection.close()


async def test_data_over_the_window() -> None:
    """Row 26."""
    async with serving() as serve, connected(serve.port) as client:
        stream_id = await client.open(path("Hold"))
        await until(lambda: serve.state.running == 1)
        for _ in range(65):
            await client.send(data(stream_id, bytes(16384)))
        assert (await client.finished(stream_id)).reset is ErrorCode.FLOW_CONTROL_ERROR
        await until(lambda: serve.state.running == 0)
        assert (await client.call(path("Echo"), value(b"x"))).status == 0


async def test_a_stalled_upload_starves_nobody() -> None:
    async with serving() as serve, connected(serve.port) as client:
        stalled = [await client.open(path("Hold")) for _ in range(8)]
        for stream_id in stalled:
            for _ in range(64):
                await client.send(data(stream_id, bytes(16384)))
        stream_id = await client.open(path("Upload"))
        for _ in range(64):
            await client.send(data(stream_id, message(bytes(16000))))
        await client.send(data(stream_id, end_stream=True))
        assert (await client.finished(stream_id)).status == 0


async def test_a_thousand_watchers_beside_one_that_never_reads(dial: Dial) -> None:
    """Row 29."""
    async with serving() as serve, connected(serve.port) as client:
        sleeper = await dial(serve)
        await sleeper.send(
            HELLO + headers(1, block(request_fields(path("Watch")))),
            data(1, message(value(bytes(60_000))), end_stream=True),
        )
        encoded = block(request_fields(path("Watch")))
        ids = [client.new_id() for _ in range(1000)]
        for stream_id in ids:
            await client.send(headers(stream_id, encoded), data(stream_id, message(value(b"x")), end_stream=True))
        await client.until(lambda: all(client.reply(stream_id).body for stream_id in ids))
        assert serve.state.running == 1001
        serve.state.go_on.set()
        await client.until(lambda: all(client.reply(stream_id).ended for stream_id in ids), 5)
        await sleeper.aclose()


async def test_a_connection_that_was_failed_takes_its_calls_with_it() -> None:
    async with serving() as serve, connected(serve.port) as client:
        for _ in range(3):
            await client.open(path("Upload"))
        await until(lambda: serve.state.running == 3)
        await client.send(frames.window_update(0, 0))
        await client.until_closed()
        assert [frame.code for frame in client.goaways] == [ErrorCode.PROTOCOL_ERROR]
        await until(lambda: serve.state.running == 0)


async def test_random_bytes(dial: Dial) -> None:
    """Row 30."""
    async with serving() as serve, canary(serve):
        for prefix in (b"", frames.PREFACE, HELLO, HELLO + headers(1, ECHO)):
            for _ in range(20):
                client = await dial(serve)
                await client.try_send(prefix + os.urandom(3000))
                if not prefix:
                    await client.until_closed()
                await client.aclose()
        await until(lambda: serve.server.statistics().connections == 1)
