"""Everything that time decides, on a clock that costs none: deadlines, drain, peers that are silent, stuck or dead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue

from modelreg.transport import Limits, Server, frames
from modelreg.transport.faults import ErrorCode
from tests.support import h2client
from tests.support.h2client import H2Client
from tests.transport.service import State, make_server, path


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Connections within the process."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](100)
        self.closed = False

    async def connect(self) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        await self._send.send(theirs)
        return ours

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self.closed = True


@attrs.define
class Serving:
    server: Server
    state: State
    listener: MemoryListener
    stopped: trio.Event
    nursery: trio.Nursery

    async def connect(self, values: dict[int, int] | None = None) -> H2Client:
        client = H2Client(await self.listener.connect())
        await client.start(values)
        return client


@asynccontextmanager
async def serving(limits: Limits | None = None) -> AsyncIterator[Serving]:
    state = State()
    listener = MemoryListener()
    stopped = trio.Event()
    server = make_server(state, limits)

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        await server.serve([listener], task_status=task_status)
        stopped.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield Serving(server, state, listener, stopped, nursery)
        nursery.cancel_scope.cancel()


def value(content: bytes) -> bytes:
    return BytesValue(value=content).SerializeToString()


async def begin(client: H2Client, method: str, body: bytes = b"", timeout: bytes | None = None) -> int:
    """A call whose request is complete."""
    stream_id = await client.open(path(method), [] if timeout is None else [(b"grpc-timeout", timeout)])
    await client.send(h2client.data(stream_id, h2client.message(value(body)), end_stream=True))
    return stream_id


async def test_a_memory_stream_serves_as_well(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        assert (await client.call(path("Echo"), value(b"x"))).status == 0
        reply = await client.call(path("Count"), value(b"100 2000"))
        assert (len(reply.messages), reply.status) == (100, 0)


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


async def test_a_client_that_says_nothing_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """Row 24."""
    async with serving() as serve:
        client = H2Client(await serve.listener.connect())
        start = trio.current_time()
        await client.until_closed(100)
        assert trio.current_time() - start < 20


async def test_a_client_that_trickles_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """Row 24: one byte a second, within the preface and after it."""
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


async def test_a_slow_upload_is_no_trickle(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        stream_id = await client.open(path("Upload"))
        frame = h2client.data(stream_id, h2client.message(bytes(100)), end_stream=True)
        async with trio.open_nursery() as nursery:

            async def slowly() -> None:
                for byte in frame:
                    await client.send(bytes([byte]))
                    await trio.sleep(0.9)

            nursery.start_soon(slowly)
            reply = client.reply(stream_id)
            await client.until(lambda: reply.ended, 1000)
        assert reply.status == 0


async def test_a_quiet_watch_lives(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        reply = client.reply(await begin(client, "Watch"))
        with trio.move_on_after(20_000):
            await client.until_closed(1e9)
        assert not client.closed
        serve.state.go_on.set()
        await client.until(lambda: reply.ended)
        assert reply.status == 0
        assert len(reply.messages) == 2


async def test_a_dead_peer_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        client.answer_pings = False
        await begin(client, "Watch")
        start = trio.current_time()
        await client.until_closed(1000)
        assert 40 < trio.current_time() - start < 60
        assert serve.state.generators_closed == 1


async def test_a_connection_without_calls_is_asked_to_go(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Limits(idle_timeout=600)) as serve:
        client = await serve.connect()
        await client.until_closed(1000)
        assert [frame.code for frame in client.goaways] == [ErrorCode.NO_ERROR] * 2


async def test_a_client_that_never_opens_the_window_again(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Limits(stream_stall_timeout=100)) as serve:
        client = await serve.connect()
        client.credit = False
        stream_id = await begin(client, "Count", b"100 30000")
        reply = client.reply(stream_id)
        await client.until(lambda: reply.reset is not None, 1000)
        assert reply.reset is ErrorCode.CANCEL
        assert serve.state.running == 0
        assert (await client.call(path("Fail"), value(b"x"))).status == 5


async def test_drain_with_nobody() -> None:
    async with serving() as serve:
        serve.server.drain(10)
        with trio.fail_after(5):
            await serve.stopped.wait()
        assert serve.listener.closed


async def test_drain_lets_calls_finish(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        idle = await serve.connect()
        running = await begin(client, "Wait", b"x")
        await trio.testing.wait_all_tasks_blocked()
        serve.server.drain(30)
        await idle.until_closed(5)
        assert [frame.code for frame in idle.goaways] == [ErrorCode.NO_ERROR] * 2
        await client.until(lambda: len(client.goaways) == 2)
        assert [int.from_bytes(frame.payload[:4], "big") for frame in client.goaways] == [2**31 - 1, running]
        late = await begin(client, "Echo")
        assert (await client.finished(late)).reset is ErrorCode.REFUSED_STREAM
        assert not serve.stopped.is_set()
        serve.state.go_on.set()
        assert (await client.finished(running)).status == 0
        await client.until_closed(5)
        with trio.fail_after(5):
            await serve.stopped.wait()


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


async def test_drain_can_be_shortened(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        await begin(client, "Wait")
        await trio.testing.wait_all_tasks_blocked()
        serve.server.drain(3000)
        await client.until(lambda: bool(client.goaways))
        serve.server.drain(1)
        await client.until_closed(10)
        with trio.fail_after(10):
            await serve.stopped.wait()


async def test_drain_does_not_wait_for_a_silent_client(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        client.answer_pings = False
        serve.server.drain(30)
        start = trio.current_time()
        await serve.stopped.wait()
        assert trio.current_time() - start < 10
        await client.aclose()


async def test_cancelling_serve_ends_everything(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        await begin(client, "Wait")
        await begin(client, "Watch")
        await trio.testing.wait_all_tasks_blocked()
        assert serve.state.running == 2
        serve.nursery.cancel_scope.cancel()
    assert serve.state.running == 0
    assert serve.listener.closed
    await client.until_closed()


async def test_accept_failures_pause_and_recover(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 6."""
    async with serving() as serve:
        client = await serve.connect()
        accept = serve.listener.accept
        failures = 20

        async def failing() -> trio.abc.Stream:
            nonlocal failures
            stream = await accept()
            if failures:
                failures -= 1
                await serve.listener._send.send(stream)
                raise OSError(24, "too many open files")
            return stream

        serve.listener.accept = failing  # type: ignore[method-assign]
        await (await serve.connect()).aclose()
        second = await serve.connect()
        assert (await second.call(path("Echo"), value(b"x"))).status == 0
        assert (await client.call(path("Echo"), value(b"x"))).status == 0
        assert failures == 0
    assert len(caplog.records) == 1
