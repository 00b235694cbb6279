"""Row 23: a download to a client that stops reading, with a window of 2^31 - 1: memory is bounded, and it's ended after an idle limit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from modelreg.transport import frames
from modelreg.transport.limits import Limits
from tests.faults.abuse import HELLO, LARGEST_WINDOW, back_at, download, fields, settled, until
from tests.faults.crash import Launcher, Server
from tests.faults.scenarios import LARGE, publish, store
from tests.support.h2client import block, connected, data, headers, message, request_fields, settings
from tests.support.measures import memory_bytes, peak_memory_bytes
from tests.transport.memory import value
from tests.transport.service import path, serving

MIB = 1 << 20

# Its limit without options, in seconds, and what the clock that watches over it may need.
STALL_SECONDS = 60 + 10


@asynccontextmanager
async def deaf(port: int, *first: bytes) -> AsyncIterator[trio.SocketStream]:
    """A client that takes all that windows can allow, and reads none of it."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        await stream.send_all(HELLO + settings({4: LARGEST_WINDOW}) + frames.window_update(0, LARGEST_WINDOW - 65535))
        await stream.send_all(b"".join(first))
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


def downloads(*numbers: int) -> bytes:
    return b"".join(
        headers(stream_id, fields("RetrieveVersionData")) + data(stream_id, download(number), end_stream=True)
        for stream_id, number in zip(range(1, 1000, 2), numbers, strict=False)
    )


def with_versions(server: Server) -> None:
    """A stored version, a transient one in a file, and one that's small enough to be kept as an object."""
    with server.calls() as calls:
        calls.create("m")
        assert store(calls, LARGE) == {1}
        assert publish(calls, LARGE[:-1]) == {2}
        assert publish(calls, bytes(60_000)) == {3}
        for number in (1, 2, 3):
            assert calls.data("m", number)


@pytest.mark.parametrize("numbers", [(1, 2) * 20, (3,) * 400, (3,) * 3000], ids=["large", "small", "many small"])
async def test_memory_is_bounded(launcher: Launcher, memory_path: Path, numbers: tuple[int, ...]) -> None:
    server = launcher.start(memory_path / "archive")
    with_versions(server)
    before, memory = await settled(server), memory_bytes(server.pid)
    with launcher.canary(server):
        async with deaf(server.port, downloads(*numbers)):
            await until(lambda: server.tasks >= before.tasks + 40)
            await settled(server)
            # 3,000 calls take 10 KiB each as such; the replies of them all would be 180 MB.
            assert peak_memory_bytes(server.pid) - memory < 64 * MIB
    await back_at(server, before)


@pytest.mark.slow
async def test_it_ends(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    with_versions(server)
    before = await settled(server)
    async with deaf(server.port, downloads(1, 2, 3)):
        await until(lambda: server.tasks > before.tasks + 2)
        await until(lambda: server.tasks == before.tasks, STALL_SECONDS)
        await back_at(server, before)


# At the transport's test service, whose limit is a test's own.


async def test_it_ends_after_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(1 << 30)
        async with serving(Limits(socket_stall_timeout=1.5)) as serve:
            serve.state.descriptor = file.fileno()
            serve.state.file_size = 1 << 30
            request = block(request_fields(path("File")))
            memory = psutil.Process().memory_info().rss
            files = [
                headers(stream_id, request) + data(stream_id, message(value(b"4000000")), end_stream=True)
                for stream_id in (1, 3, 5)
            ]
            async with deaf(serve.port, *files):
                await until(lambda: serve.state.running == 3)
                start = trio.current_time()
                await until(lambda: serve.state.running == 0)
                assert trio.current_time() - start > 1
                assert psutil.Process().memory_info().rss - memory < 16 * MIB


async def test_replies_that_nobody_reads_hold_up_their_own_calls() -> None:
    """Messages in memory: no more than a few of them, however many calls there are."""
    async with serving() as serve, connected(serve.port, {4: LARGEST_WINDOW}, credit=False) as client:
        await client.send(frames.window_update(0, 2**30))
        encoded = block(request_fields(path("Count")))
        for stream_id in range(1, 401, 2):
            await client.send(
                headers(stream_id, encoded), data(stream_id, message(value(b"100 1000000")), end_stream=True)
            )
        await until(lambda: serve.server.statistics().streams == 200)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert serve.state.pulled < 300


async def test_small_replies_that_nobody_reads_stop_the_requests() -> None:
    echo = block(request_fields(path("Echo")))
    async with serving(Limits(socket_stall_timeout=1.5)) as serve, deaf(serve.port) as stream:
        memory = psutil.Process().memory_info().rss
        body = message(value(bytes(15_000)))
        with trio.fail_after(20):
            with pytest.raises(trio.BrokenResourceError):  # the server stops reading, and after a while it hangs up
                for stream_id in range(1, 40_001, 2):
                    await stream.send_all(headers(stream_id, echo) + data(stream_id, body, end_stream=True))
        assert psutil.Process().memory_info().rss - memory < 32 * MIB
        assert serve.server.statistics().streams_total < 5000
