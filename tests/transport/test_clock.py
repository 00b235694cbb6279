"""Everything that time decides, on a clock that costs none: deadlines, drain, peers that are silent, stuck or dead."""

from __future__ import annotations

import errno

import pytest
import trio
import trio.testing

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from modelreg.transport.limits import Limits
from tests.support import h2client
from tests.support.h2client import H2Client
from tests.transport.memory import MemoryListener, begin, serving, value
from tests.transport.service import State, make_server, path


async def test_a_memory_stream_serves_as_well(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as serve:
        client = await serve.connect()
        assert (await client.call(path("Echo"), value(b"x"))).status == 0
        reply = await client.call(path("Count"), value(b"100 2000"))
        assert (len(reply.messages), reply.status) == (100, 0)


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


async def test_a_header_block_that_trickles(autojump_clock: trio.testing.MockClock) -> None:
    """Each of its frames is complete at once, and still it doesn't come to its end."""
    async with serving(Limits(handshake_timeout=10)) as serve:
        client = await serve.connect()
        encoded = h2client.block(h2client.request_fields(path("Watch")))
        start = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                await client.send(h2client.headers(1, encoded[:1], end_headers=False))
                for place in range(1, 30):
                    await trio.sleep(0.9)
                    await client.try_send(
                        frames.frame_header(1, frames.CONTINUATION, 0, 1) + encoded[place : place + 1]
                    )

            nursery.start_soon(trickle)
            await client.until_closed(1000)
            assert 9 < trio.current_time() - start < 13
            nursery.cancel_scope.cancel()


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
    async with serving(Limits(stall_timeout=100)) as serve:
        client = await serve.connect()
        client.credit = False
        stream_id = await begin(client, "Count", b"100 30000")
        reply = client.reply(stream_id)
        await client.until(lambda: reply.ended, 1000)
        assert reply.status == 4
        assert serve.state.running == 0
        assert (await client.call(path("Fail"), value(b"x"))).status == 5


async def keep_sending(client: H2Client, stream_id: int, frame: bytes, every: float, count: int) -> float:
    """Send a frame again and again, until the call has ended or it was sent so often; how long that took."""
    reply = client.reply(stream_id)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for _ in range(count):
                await trio.sleep(every)
                await client.send(frame)
            nursery.cancel_scope.cancel()

        nursery.start_soon(send)
        await client.until(lambda: reply.ended, 1e6)
        nursery.cancel_scope.cancel()
    return trio.current_time() - start


async def test_a_client_that_opens_the_window_a_byte_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Limits(stall_timeout=300)) as serve:
        client = await serve.connect()
        client.credit = False
        stream_id = await begin(client, "Count", b"100 30000")
        assert (
            await keep_sending(client, stream_id, frames.window_update(0, 1) + frames.window_update(1, 1), 30, 1000)
            < 400
        )
        assert client.reply(stream_id).status == 4
        assert "stall_timeout" in dict(client.reply(stream_id).trailers or [])["grpc-message"]
        assert serve.state.running == 0


async def test_a_slow_download_lives(autojump_clock: trio.testing.MockClock) -> None:
    """20 bytes a second."""
    async with serving(Limits(stall_timeout=300)) as serve:
        client = await serve.connect()
        client.credit = False
        stream_id = await begin(client, "Count", b"100 30000")
        window = frames.window_update(0, 2000) + frames.window_update(1, 2000)
        assert await keep_sending(client, stream_id, window, 100, 100) == 10_000
        assert serve.state.running == 1


async def test_an_upload_that_stops(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Limits(stall_timeout=300)) as serve:
        client = await serve.connect()
        for method in ("Sum", "Upload", "Chat", "Echo"):
            for sent in (b"", h2client.message(value(bytes(100_000)))[:50_000]):
                start = trio.current_time()
                stream_id = await client.open(path(method))
                if sent:
                    await client.send(
                        *(h2client.data(stream_id, sent[at : at + 16_000]) for at in range(0, len(sent), 16_000))
                    )
                reply = await client.finished(stream_id, 1e6)
                assert reply.status == 4
                assert "stall_timeout" in dict(reply.trailers or reply.fields)["grpc-message"]
                assert 295 < trio.current_time() - start < 310
        assert serve.state.running == 0


async def test_an_upload_with_long_pauses_lives(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Limits(stall_timeout=300)) as serve:
        client = await serve.connect()
        stream_id = await client.open(path("Upload"))
        frame = h2client.data(stream_id, h2client.message(bytes(5000)))
        assert await keep_sending(client, stream_id, frame, 290, 20) == 20 * 290
        await client.send(h2client.data(stream_id, end_stream=True))
        assert (await client.finished(stream_id)).status == 0


async def test_an_upload_that_the_server_holds_up_lives(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Limits(stall_timeout=300)) as serve:
        client = await serve.connect()
        stream_id = await client.open(path("Hold"))
        await client.send(h2client.data(stream_id, h2client.message(b"x")))
        with trio.move_on_after(1000):
            await client.until_closed(1e6)
        serve.state.go_on.set()
        await client.send(h2client.data(stream_id, end_stream=True))
        assert (await client.finished(stream_id)).status == 0


class Failing(MemoryListener):
    """Fails to accept a few times, as where no descriptor is left."""

    failures = 3

    async def accept(self) -> trio.abc.Stream:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return await super().accept()


async def test_accepting_goes_on_after_it_failed(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Failing()
    async with trio.open_nursery() as nursery:
        await nursery.start(make_server(State()).serve, [listener])
        client = H2Client(await listener.connect())
        await client.start()
        assert (await client.call(path("Echo"), value(b"x"))).status == 0
        nursery.cancel_scope.cancel()
    assert [record.message for record in caplog.records] == ["accept failed, trying again until it works"]


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


class SlowToClose(trio.abc.Stream):
    """The clock comes to its connection between the end of its tasks and its own, as it may come to any."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        await trio.aclose_forcefully(self._stream)


@pytest.mark.parametrize("reads", [True, False])
async def test_a_call_that_began_in_a_broken_connection_is_none(
    reads: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """It isn't started when the clock comes: not while the connection ends, nor when it has ended, which took the server with it."""
    async with serving() as serve:
        other = await serve.connect()
        watched = other.reply(await begin(other, "Watch"))
        ours, theirs = trio.testing.memory_stream_pair()
        await serve.listener.offer(SlowToClose(theirs))
        broken = h2client.H2Client(ours)
        await broken.start()
        opened = h2client.headers(1, h2client.block(h2client.request_fields(path("Watch"))))
        await broken.send(opened, h2client.data(0, b"x"))
        if reads:
            await broken.until_closed(1000)
            assert [frame.code for frame in broken.goaways] == [ErrorCode.PROTOCOL_ERROR]
        else:
            await ours.aclose()
        await trio.sleep(20)
        assert serve.server.statistics().streams_total == 1
        assert not watched.ended
        assert (await other.call(path("Echo"), value(b"x"))).status == 0
