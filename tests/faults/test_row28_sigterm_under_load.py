"""Row 28: SIGTERM under load: health says NOT_SERVING, GOAWAY, running calls finish within the limit, watches end UNAVAILABLE, exit code 0;
a second signal ends it at once."""

from __future__ import annotations

import hashlib
import itertools
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing

from modelreg.api import health_pb2
from modelreg.server import DRAIN_SECONDS
from modelreg.transport.faults import ErrorCode
from tests.clients.calls import Code, OpenRequest, body, connected, fails, header, health, open_channel
from tests.faults.abuse import WATCH, upload
from tests.faults.abuse import begin as begin_work
from tests.faults.crash import Launcher, Server
from tests.faults.scenarios import MEDIUM, publish, store
from tests.support import h2client
from tests.transport.memory import begin, serving
from tests.transport.service import path

WRITERS = 3
READERS = 2


def only_unavailable(error: Any) -> None:
    """What a call may end with when the server stops."""
    if error.code() is not Code.UNAVAILABLE:
        raise error


def write(server: Server, writer: int) -> list[bytes]:
    """Store versions until the server stops; the digests of those that it has acknowledged."""
    acknowledged: list[bytes] = []
    with server.calls() as calls:
        for turn in itertools.count():
            content = b"%d %d" % (writer, turn) * 30_000
            try:
                store(calls, content)
            except grpc.RpcError as error:
                only_unavailable(error)
                return acknowledged
            acknowledged.append(hashlib.sha256(content).digest())
    raise AssertionError


def read(server: Server) -> None:
    """Read a version until the server stops: the whole of it, or UNAVAILABLE."""
    with server.calls() as calls:
        while True:
            try:
                assert calls.data("m", 1) == MEDIUM
            except grpc.RpcError as error:
                only_unavailable(error)
                return


def test_under_load(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    with server.calls() as calls, ThreadPoolExecutor(WRITERS + READERS) as threads:
        calls.create("m")
        assert store(calls, MEDIUM) == {1}
        publish(calls, MEDIUM[:-1])
        writers = [threads.submit(write, server, writer) for writer in range(WRITERS)]
        readers = [threads.submit(read, server) for _ in range(READERS)]
        with (
            open_channel(server.address) as channel,
            OpenRequest(header("m", data_size=2 * len(MEDIUM)), body(MEDIUM)) as request,
        ):
            states = health(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
            running = calls.CreateVersion.future(request)
            watches = [calls.watch("m") for _ in range(10)]
            for watch in watches:
                watch.next()
            calls.wait_until(lambda: calls.numbers("m")[-1] > 10)
            server.signal(signal.SIGTERM)
            assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
            for watch in watches:
                with fails(Code.UNAVAILABLE):
                    while True:
                        watch.next()
            # What has begun may still go on, and be finished.
            request.send(body(MEDIUM))
            request.close()
            finished = running.result().version_info
        assert server.wait() == 0
        digests = [digest for writer in writers for digest in writer.result()]
        for reader in readers:
            reader.result()
    assert len(digests) >= 5
    assert not [line for line in server.log if line["level"] not in ("info", "warning")]
    server = launcher.start(memory_path / "archive")
    with server.calls() as calls:
        assert calls.data("m", finished.version_number) == MEDIUM * 2
        there = {hashlib.sha256(calls.data("m", number)).digest() for number in calls.numbers("m")}
        assert there >= set(digests)


async def test_goaway(launcher: Launcher, memory_path: Path) -> None:
    """Idle connections are told to go, and so are busy ones, which are closed when their calls are done."""
    server = launcher.start(memory_path / "archive")
    with server.calls() as calls:
        calls.create("m")
    async with h2client.connected(server.port) as idle, h2client.connected(server.port) as client:
        watching = await begin_work(client, "VersionUpdate", WATCH)
        sent = upload(bytes(100))
        uploading = await begin_work(client, "CreateVersion", sent[:-50], whole=False)
        await client.call("/cogmentAPI.ModelRegistrySP/Status", b"")
        server.signal(signal.SIGTERM)
        await idle.until_closed()
        assert [frame.code for frame in idle.goaways] == [ErrorCode.NO_ERROR] * 2
        assert (await client.finished(watching)).status == 14
        await client.until(lambda: len(client.goaways) == 2)
        late = await begin_work(client, "Status", b"\0\0\0\0\0")
        assert (await client.finished(late)).reset is ErrorCode.REFUSED_STREAM
        await client.send(h2client.data(uploading, sent[-50:], end_stream=True))
        assert (await client.finished(uploading)).status == 0
        await client.until_closed()
    assert server.wait() == 0


def test_a_second_signal_ends_it_at_once(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    with server.calls() as calls, OpenRequest(header("m", data_size=1)) as request:
        calls.create("m")
        running = calls.CreateVersion.future(request)
        request.wait_sent()
        calls.status()
        server.signal(signal.SIGTERM)
        server.wait_for_log("stopping")
        assert not running.done()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        server.wait_for_log("stopping at once")
        with pytest.raises(grpc.RpcError):
            running.result()


@pytest.mark.slow
def test_what_does_not_end_is_ended(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    with connected(server.address) as calls, OpenRequest(header("m", data_size=1)) as request:
        calls.create("m")
        running = calls.CreateVersion.future(request)
        request.wait_sent()
        calls.status()
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert DRAIN_SECONDS <= time.monotonic() - began < DRAIN_SECONDS + 5
        assert running.exception().code() is Code.UNAVAILABLE


# At the transport's test service, on a clock of its own.


async def test_drain_ends_what_is_still_running(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        ids = [await begin(client, "Wait"), await begin(client, "Watch"), await client.open(path("Upload"))]
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        serve.server.drain(30)
        for stream_id in ids:
            reply = await client.finished(stream_id, 100)
            assert (reply.status, reply.text) == (14, "the server is stopping")
        assert trio.current_time() - start == pytest.approx(30, abs=1)
        await client.until_closed(5)
        with trio.fail_after(5):
            await serve.stopped.wait()
        assert serve.state.running == 0
