"""Row 18: a deadline during an upload, a download, a watch: DEADLINE_EXCEEDED, and the handler is stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.faults.abuse import WATCH, back_at, download, settled, upload
from tests.faults.abuse import begin as begin_work
from tests.faults.crash import Launcher
from tests.faults.scenarios import MEDIUM, publish, store
from tests.support import h2client
from tests.support.h2client import connected
from tests.support.measures import memory_bytes, peak_memory_bytes
from tests.transport.memory import begin, serving, value
from tests.transport.service import path

MIB = 1 << 20

CALLS = {
    "stored upload": ("CreateVersion", upload(MEDIUM)[:50_000], False),
    "transient upload": ("CreateVersion", upload(MEDIUM, archived=False)[:50_000], False),
    "upload that hasn't begun": ("CreateVersion", b"", False),
    "stored download": ("RetrieveVersionData", download(1), True),
    "transient download": ("RetrieveVersionData", download(2), True),
    "watch": ("VersionUpdate", WATCH, True),
    "call of one message": ("Status", b"", False),
}


@pytest.mark.parametrize("what", CALLS)
async def test_a_deadline_amidst(launcher: Launcher, memory_path: Path, what: str) -> None:
    server = launcher.start(memory_path / "archive")
    with server.calls() as calls:
        calls.create("m")
        assert store(calls, MEDIUM) == {1}
        assert publish(calls, MEDIUM[:-1]) == {2}
    method, sent, whole = CALLS[what]
    async with connected(server.port, credit=False) as client:
        before, memory = await settled(server), memory_bytes(server.pid)
        with launcher.canary(server):
            start = trio.current_time()
            timeout = [(b"grpc-timeout", b"300m")]
            ids = [await begin_work(client, method, sent, whole=whole, extra=timeout) for _ in range(10)]
            for stream_id in ids:
                reply = client.reply(stream_id)
                await client.until(lambda reply=reply: reply.ended)  # type: ignore[misc]
                assert reply.status == 4
            assert trio.current_time() - start >= 0.3
        assert peak_memory_bytes(server.pid) - memory < 8 * MIB
        if what.endswith("download"):
            assert 0 < sum(len(client.reply(stream_id).body) for stream_id in ids) <= 65535
        await back_at(server, before)


# The same at the transport's test service, on a clock of its own: to the millisecond, and in every place where a call may wait.


@pytest.mark.parametrize(("timeout", "seconds"), [(b"5S", 5), (b"1M", 60), (b"250m", 0.25), (b"7000u", 0.007)])
async def test_deadline(autojump_clock: trio.testing.MockClock, timeout: bytes, seconds: float) -> None:
    async with serving() as serve:
        client = await serve.connect()
        start = trio.current_time()
        stream_id = await begin(client, "Wait", timeout=timeout)
        reply = client.reply(stream_id)
        await client.until(lambda: reply.ended, 100)
        assert reply.status == 4
        assert trio.current_time() - start == pytest.approx(seconds)
        assert serve.state.running == 0


@pytest.mark.parametrize("method", ["Upload", "Sum", "Hold", "Echo"])
async def test_deadline_while_the_request_is_awaited(autojump_clock: trio.testing.MockClock, method: str) -> None:
    async with serving() as serve:
        client = await serve.connect()
        stream_id = await client.open(path(method), [(b"grpc-timeout", b"3S")])
        await client.send(h2client.data(stream_id, h2client.message(value(b"x"))))
        reply = await client.finished(stream_id)
        assert reply.status == 4
        assert serve.state.running == 0


async def test_deadline_while_the_window_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        client.credit = False
        stream_id = await begin(client, "Count", b"100 30000", b"3S")
        reply = client.reply(stream_id)
        await client.until(lambda: reply.ended, 10)
        assert reply.status == 4
        assert len(reply.body) == 65535
        assert serve.state.running == 0


async def test_deadline_of_a_large_unary_reply_in_a_closed_window(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        client.credit = False
        stream_id = await client.open(path("Echo"), [(b"grpc-timeout", b"3S")])
        await client.send(h2client.data(stream_id, h2client.message(value(bytes(100_000)))[:50000]))
        await client.send(h2client.data(stream_id, h2client.message(value(bytes(100_000)))[50000:], end_stream=True))
        reply = client.reply(stream_id)
        await client.until(lambda: reply.ended)
        assert reply.status == 4


async def test_deadline_of_a_watch(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        stream_id = await begin(client, "Watch", timeout=b"2S")
        assert (await client.finished(stream_id)).status == 4
        assert serve.state.generators_closed == 1
