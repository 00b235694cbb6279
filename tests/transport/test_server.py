"""Calls over real sockets: what a well-behaved client gets."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from modelreg.transport.limits import Limits
from tests.support import h2client
from tests.support.h2client import connected
from tests.transport.service import path, serving


def value(content: bytes) -> bytes:
    return BytesValue(value=content).SerializeToString()


def content(message: bytes) -> bytes:
    return BytesValue.FromString(message).value


async def test_unary() -> None:
    async with serving() as serve, connected(serve.port) as client:
        reply = await client.call(path("Echo"), value(b"hello"), [(b"x-a", b"1"), (b"x-a-bin", b"AAE")])
        assert dict(reply.fields)[":status"] == "200"
        assert dict(reply.fields)["content-type"] == "application/grpc"
        assert [content(message) for message in reply.messages] == [b"hello"]
        assert reply.status == 0
        assert reply.reset is None
        request = serve.state.requests[0]
        assert request.custom_metadata == (("x-a", "1"), ("x-a-bin", b"\0\1"))
        assert request.service_name == "test.Service"
        assert request.method_name == "Echo"
        assert request.peer.startswith("127.0.0.1:")


async def test_small_reply_is_one_write() -> None:
    async with serving() as serve, connected(serve.port) as client:
        await client.call(path("Echo"), value(b"warm"))
        stream_id = client.new_id()
        await client.send(
            h2client.headers(stream_id, h2client.block(h2client.request_fields(path("Echo")))),
            h2client.data(stream_id, h2client.message(value(b"x")), end_stream=True),
        )
        assert await client.receive()
        assert client.reply(stream_id).ended


async def test_same_call_again_is_parsed_once() -> None:
    async with serving() as serve, connected(serve.port) as client:
        for _ in range(3):
            assert (await client.call(path("Echo"), value(b"x"))).status == 0
        assert serve.state.requests[1] is serve.state.requests[2]


@pytest.mark.parametrize("size", [0, 1, 16 * 1024 - 8, 16 * 1024, 70_000, 3_000_000])
async def test_sizes(size: int) -> None:
    async with serving() as serve, connected(serve.port) as client:
        stream_id = await client.open(path("Echo"))
        body = h2client.message(value(bytes(size)))
        for start in range(0, len(body), 16384):
            await client.until(lambda: True)
            await client.send(h2client.data(stream_id, body[start : start + 16384]))
        await client.send(h2client.data(stream_id, end_stream=True))
        reply = await client.finished(stream_id)
        assert reply.status == 0
        assert len(content(reply.messages[0])) == size
        assert reply.largest_frame <= 16384


async def test_server_stream() -> None:
    async with serving() as serve, connected(serve.port) as client:
        reply = await client.call(path("Count"), value(b"1000 10"))
        assert len(reply.messages) == 1000
        assert reply.status == 0


async def test_client_stream_and_both() -> None:
    async with serving() as serve, connected(serve.port) as client:
        for method, expected in (("Sum", [b"300"]), ("Chat", [bytes(100)] * 3)):
            stream_id = await client.open(path(method))
            for _ in range(3):
                await client.send(h2client.data(stream_id, h2client.message(value(bytes(100)))))
            await client.send(h2client.data(stream_id, end_stream=True))
            reply = await client.finished(stream_id)
            assert [content(message) for message in reply.messages] == expected
            assert reply.status == 0


async def test_streamed_upload_across_frames_and_messages() -> None:
    async with serving() as serve, connected(serve.port) as client:
        stream_id = await client.open(path("Upload"))
        body = h2client.message(bytes(100_000)) + h2client.message(b"") + h2client.message(bytes(5))
        for start in range(0, len(body), 9999):
            await client.send(h2client.data(stream_id, body[start : start + 9999], padding=start % 7))
        await client.send(h2client.data(stream_id, end_stream=True))
        reply = await client.finished(stream_id)
        assert content(reply.messages[0]) == b"100005 3"


async def test_decode_error() -> None:
    async with serving() as serve, connected(serve.port) as client:
        reply = await client.call(path("Upload"), b"!")
        assert (reply.status, reply.text) == (3, "no exclamation marks, please")


async def test_failure_after_the_first_message() -> None:
    async with serving() as serve, connected(serve.port) as client:
        reply = await client.call(path("FailLate"), value(b"one"))
        assert [content(message) for message in reply.messages] == [b"one"]
        assert (reply.status, reply.text) == (5, "after the first")


async def test_headers_that_end_the_stream() -> None:
    async with serving() as serve, connected(serve.port) as client:
        reply = await client.finished(await client.open(path("Echo"), end_stream=True))
        assert reply.status == 3
        reply = await client.finished(await client.open(path("Sum"), end_stream=True))
        assert content(reply.messages[0]) == b"0"


@pytest.mark.parametrize("peer_frame", [16384, 1 << 20])
async def test_file_messages(tmp_path: Path, peer_frame: int) -> None:
    payload = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(payload)
    async with serving() as serve, connected(serve.port, {h2client.SETTINGS_MAX_FRAME_SIZE: peer_frame}) as client:
        with (tmp_path / "file").open("rb") as file:
            serve.state.descriptor = file.fileno()
            serve.state.file_size = len(payload)
            reply = await client.call(path("File"), value(b"700000"))
        assert b"".join(content(message) for message in reply.messages) == payload
        assert reply.largest_frame <= peer_frame
        assert reply.status == 0


async def test_a_file_that_is_too_short_ends_its_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(200_000))
    async with serving() as serve, connected(serve.port) as client:
        with (tmp_path / "file").open("rb") as file:
            serve.state.descriptor = file.fileno()
            serve.state.file_size = 400_000
            reply = await client.call(path("File"), value(b"400000"))
        assert reply.status == 13  # INTERNAL: its handler has gone on
        assert reply.reset is None
        assert (await client.call(path("Echo"), value(b"x"))).status == 0
        assert serve.state.running == 0


async def test_a_reply_waits_for_the_window_and_the_handler_with_it() -> None:
    async with serving() as serve, connected(serve.port, credit=False) as client:
        stream_id = client.new_id()
        await client.send(
            h2client.headers(stream_id, h2client.block(h2client.request_fields(path("Count")))),
            h2client.data(stream_id, h2client.message(value(b"1000 20000")), end_stream=True),
        )
        reply = client.reply(stream_id)
        await client.until(lambda: len(reply.body) == 65535)
        assert (await client.call(path("Fail"), value(b"x"))).status == 5  # needs no window
        assert serve.state.pulled < 12
        client.credit = True
        await client.send(frames.window_update(0, 65535), frames.window_update(stream_id, 65535))
        assert (await client.finished(stream_id)).status == 0
        assert len(reply.messages) == 1000


async def test_small_calls_beside_a_download(tmp_path: Path) -> None:
    size = 256 << 20
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(size)
        async with (
            serving() as serve,
            connected(serve.port, {h2client.SETTINGS_INITIAL_WINDOW_SIZE: 2**31 - 1}) as client,
        ):
            await client.send(frames.window_update(0, 2**30))
            serve.state.descriptor = file.fileno()
            serve.state.file_size = size
            stream_id = client.new_id()
            await client.send(
                h2client.headers(stream_id, h2client.block(h2client.request_fields(path("File")))),
                h2client.data(stream_id, h2client.message(value(b"4000000")), end_stream=True),
            )
            download = client.reply(stream_id)
            await client.until(lambda: len(download.body) > 1 << 20)
            for _ in range(5):
                before = len(download.body)
                assert (await client.call(path("Echo"), value(b"x"))).status == 0
                assert len(download.body) - before < 32 << 20  # what was in the sockets' buffers, not the whole file
                download.body.clear()
            assert not download.ended


async def test_two_downloads_share(tmp_path: Path) -> None:
    size = 64 << 20
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(size)
        async with (
            serving() as serve,
            connected(serve.port, {h2client.SETTINGS_INITIAL_WINDOW_SIZE: 2**31 - 1}) as client,
        ):
            await client.send(frames.window_update(0, 2**30))
            serve.state.descriptor = file.fileno()
            serve.state.file_size = size
            ids = [client.new_id(), client.new_id()]
            request = h2client.block(h2client.request_fields(path("File")))
            for stream_id in ids:
                await client.send(
                    h2client.headers(stream_id, request),
                    h2client.data(stream_id, h2client.message(value(b"4000000")), end_stream=True),
                )
            first, second = (client.reply(stream_id) for stream_id in ids)
            await client.until(lambda: len(first.body) + len(second.body) > size)
            assert abs(len(first.body) - len(second.body)) < 16 << 20


async def test_statistics() -> None:
    async with serving() as serve, connected(serve.port) as client:
        await client.call(path("Echo"), value(b"x"))
        await client.open(path("Wait"))
        await client.send(h2client.data(client.next_id - 2, h2client.message(b""), end_stream=True))
        while not serve.state.running:
            await trio.testing.wait_all_tasks_blocked()
        statistics = serve.server.statistics()
        assert statistics.connections == statistics.connections_total == 1
        assert statistics.streams == 1
        assert statistics.streams_total == 2
        assert statistics.bytes_received > 100
        assert statistics.bytes_sent > 100


async def test_a_connection_over_the_limit_takes_the_place_of_an_idle_one() -> None:
    async with serving(Limits(max_connections=1)) as serve:
        async with connected(serve.port) as first:
            assert (await first.call(path("Echo"), value(b"x"))).status == 0
            async with connected(serve.port) as second:
                assert (await second.call(path("Echo"), value(b"x"))).status == 0
                await first.until_closed()
                assert {frame.code for frame in first.goaways} == {ErrorCode.NO_ERROR}


async def test_a_connection_without_a_place_is_told_and_one_without_a_call_is_closed() -> None:
    async with serving(Limits(max_connections=1)) as serve, connected(serve.port) as first:
        running = await first.open(path("Wait"))
        await first.send(h2client.data(running, h2client.message(b""), end_stream=True))
        while not serve.state.running:
            await trio.testing.wait_all_tasks_blocked()
        async with connected(serve.port) as second:
            async with connected(serve.port) as third:
                reply = await third.call(path("Echo"), value(b"x"))
                assert reply.status == 14
                assert "max_connections" in dict(reply.fields)["grpc-message"]
                await third.until_closed()
            await second.until_closed()
        serve.state.go_on.set()
        assert (await first.finished(running)).status == 0


async def test_streams_over_the_limit_are_refused() -> None:
    async with serving(Limits(max_concurrent_streams=2)) as serve, connected(serve.port) as client:
        assert client.server_settings[3] == 2
        ids = [await client.open(path("Wait")) for _ in range(3)]
        for stream_id in ids:
            await client.try_send(h2client.data(stream_id, h2client.message(b""), end_stream=True))
        assert (await client.finished(ids[2])).reset is ErrorCode.REFUSED_STREAM
        serve.state.go_on.set()
        for stream_id in ids[:2]:
            assert (await client.finished(stream_id)).status == 0


async def test_calls_over_the_limit_of_the_server_are_refused_but_for_health_checks() -> None:
    """Also those that have sent only their headers."""
    health = path("Echo")
    async with serving(Limits(max_calls=4)) as serve:
        serve.server._shared.health_checks = {health}
        async with connected(serve.port) as one, connected(serve.port) as two:
            first = await one.open(path("Sum"))
            await two.open(path("Wait"))
            while serve.server.statistics().streams < 2:
                await trio.testing.wait_all_tasks_blocked()
            for client in (one, two):
                reply = await client.call(path("Count"), value(b"1 1"))
                assert reply.status == 8
                assert "max_calls" in dict(reply.fields)["grpc-message"]
                assert (await client.call(health, value(b"x"))).status == 0
            await one.send(h2client.data(first, end_stream=True))
            assert (await one.finished(first)).status == 0
            assert (await two.call(path("Count"), value(b"1 1"))).status == 0


async def test_a_client_that_leaves_gets_its_replies() -> None:
    async with serving() as serve, connected(serve.port) as client:
        stream_id = await client.open(path("Wait"))
        await client.send(h2client.data(stream_id, h2client.message(value(b"x")), end_stream=True))
        await client.send(frames.goaway(0, ErrorCode.NO_ERROR))
        while not serve.state.running:
            await trio.testing.wait_all_tasks_blocked()
        serve.state.go_on.set()
        assert (await client.finished(stream_id)).status == 0
        await client.until_closed()


async def test_a_connection_that_waits_holds_no_buffer() -> None:
    async with serving() as serve, connected(serve.port) as one, connected(serve.port) as two:
        for client in (one, two):
            assert (await client.call(path("Echo"), value(b"x"))).status == 0
        await trio.testing.wait_all_tasks_blocked()
        assert len(serve.server._shared.buffers._free) == 1


async def test_a_connection_leaves_no_garbage_to_collect() -> None:
    async with serving() as serve:

        async def use() -> None:
            async with connected(serve.port) as client:
                assert (await client.call(path("Echo"), value(b"x"))).status == 0
                await client.open(path("Sum"))
            with trio.fail_after(5):
                while serve.server.statistics().connections:
                    await trio.testing.wait_all_tasks_blocked()

        await use()
        gc.collect()
        gc.disable()
        try:
            await use()
            kinds = Counter(type(found).__name__ for found in _garbage())
        finally:
            gc.enable()
    assert not kinds.keys() & {"Core", "Engine", "Outbound", "_Connection", "Stream", "Call"}


def _garbage() -> list[object]:
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
