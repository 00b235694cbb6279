"""Row 26: zero or overflowing WINDOW_UPDATE, re-used or even stream ids, DATA on a closed stream, frames over the limit, data over the
window: the error that RFC 9113 has for it, for the stream where it's a stream's, and the connection otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from modelreg.transport.frames import frame_header, rst_stream, window_update
from tests.faults.abuse import LARGEST_WINDOW, WATCH, back_at, begin, create, fields, path, settled, until, with_sibling
from tests.faults.crash import Launcher
from tests.support.h2client import connected, data, headers, message, settings
from tests.transport.service import path as service_path
from tests.transport.service import serving

OPEN = fields("CreateVersion")

# Stream 1 has ended, 3 is a running upload, 5 and later ones are idle.
CONNECTION_ERRORS = {
    "zero window update": ([window_update(0, 0)], ErrorCode.PROTOCOL_ERROR),
    "overflowing window update": ([window_update(0, LARGEST_WINDOW)], ErrorCode.FLOW_CONTROL_ERROR),
    "overflowing initial window": (
        [window_update(3, LARGEST_WINDOW - 65535), settings({4: 65536})],
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "impossible initial window": ([settings({4: 2**31})], ErrorCode.FLOW_CONTROL_ERROR),
    "impossible frame size": ([settings({5: 100})], ErrorCode.PROTOCOL_ERROR),
    "window update of an idle stream": ([window_update(9, 1)], ErrorCode.PROTOCOL_ERROR),
    "stream id used again": ([headers(1, OPEN)], ErrorCode.STREAM_CLOSED),
    "stream id that is lower": ([headers(7, OPEN), headers(5, OPEN)], ErrorCode.PROTOCOL_ERROR),
    "even stream id": ([headers(4, OPEN)], ErrorCode.PROTOCOL_ERROR),
    "headers on stream 0": ([headers(0, OPEN)], ErrorCode.PROTOCOL_ERROR),
    "data on an idle stream": ([data(9, b"x")], ErrorCode.PROTOCOL_ERROR),
    "data on stream 0": ([data(0, b"x")], ErrorCode.PROTOCOL_ERROR),
    "data on a stream of the server": ([data(2, b"x")], ErrorCode.PROTOCOL_ERROR),
    "reset of an idle stream": ([rst_stream(9, 8)], ErrorCode.PROTOCOL_ERROR),
    "data over the frame limit": ([frame_header(2**24 - 1, frames.DATA, 0, 3)], ErrorCode.FRAME_SIZE_ERROR),
    "headers over the frame limit": ([frame_header(2**24 - 1, frames.HEADERS, 4, 9)], ErrorCode.FRAME_SIZE_ERROR),
    "unknown frame over the limit": ([frame_header(2**24 - 1, 0x99, 0, 0)], ErrorCode.FRAME_SIZE_ERROR),
    "ping of seven bytes": ([frame_header(7, frames.PING, 0, 0) + bytes(7)], ErrorCode.FRAME_SIZE_ERROR),
    "ping on a stream": ([frame_header(8, frames.PING, 0, 3) + bytes(8)], ErrorCode.PROTOCOL_ERROR),
    "settings on a stream": ([frame_header(0, frames.SETTINGS, 0, 3)], ErrorCode.PROTOCOL_ERROR),
    "settings of five bytes": ([frame_header(5, frames.SETTINGS, 0, 0) + bytes(5)], ErrorCode.FRAME_SIZE_ERROR),
    "more padding than payload": (
        [frame_header(2, frames.DATA, frames.PADDED, 3) + b"\x05x"],
        ErrorCode.PROTOCOL_ERROR,
    ),
    "continuation of nothing": ([frame_header(1, frames.CONTINUATION, 4, 3) + b"\x82"], ErrorCode.PROTOCOL_ERROR),
    "a header block interrupted": (
        [headers(9, OPEN, end_headers=False), frames.ping(bytes(8))],
        ErrorCode.PROTOCOL_ERROR,
    ),
    "push": ([frame_header(4, frames.PUSH_PROMISE, 4, 3) + bytes(4)], ErrorCode.PROTOCOL_ERROR),
    "no hpack": ([headers(9, b"\xff" * 9)], ErrorCode.COMPRESSION_ERROR),
    "http/1.1": ([b"GET / HTTP/1.1\r\n\r\n"], ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
async def test_errors_of_the_connection(launcher: Launcher, memory_path: Path, name: str) -> None:
    server = launcher.start(memory_path / "archive")
    sent, code = CONNECTION_ERRORS[name]
    async with connected(server.port) as other:
        before = await settled(server)
        with launcher.canary(server):
            for _ in range(10):
                async with connected(server.port) as client:
                    await create(client)
                    await begin(client, "CreateVersion", b"", whole=False)
                    await client.try_send(*sent)
                    await client.until_closed()
                    assert [frame.code for frame in client.goaways] == [code]
        await back_at(server, before)
        await create(other)


def after_the_end(stream_id: int) -> list[bytes]:
    """A request of one message that goes on behind its end."""
    return [data(stream_id, WATCH, end_stream=True), data(stream_id, b"late")]


# Of an upload and of a watch that wait for their request.
STREAM_ERRORS: dict[str, tuple[Callable[[int], list[bytes]], ErrorCode]] = {
    "zero window update": (lambda stream_id: [window_update(stream_id, 0)], ErrorCode.PROTOCOL_ERROR),
    "overflowing window update": (
        lambda stream_id: [window_update(stream_id, LARGEST_WINDOW)],
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "content-length that is wrong": (
        lambda stream_id: [data(stream_id, bytes(10), end_stream=True)],
        ErrorCode.PROTOCOL_ERROR,
    ),
    "data on a stream that was ended": (after_the_end, ErrorCode.STREAM_CLOSED),
}


@pytest.mark.parametrize("method", ["CreateVersion", "VersionUpdate"])
@pytest.mark.parametrize("name", STREAM_ERRORS)
async def test_errors_of_a_stream(launcher: Launcher, memory_path: Path, method: str, name: str) -> None:
    server = launcher.start(memory_path / "archive")
    sent, code = STREAM_ERRORS[name]
    async with with_sibling(server) as (client, _):
        with launcher.canary(server):
            for _ in range(10):
                length = b"%d" % len(WATCH)
                stream_id = await client.open(path(method), [(b"content-length", length)])
                await client.send(*sent(stream_id))
                assert (await client.finished(stream_id)).reset is code


async def test_data_over_the_window_of_a_stream() -> None:
    """At the transport's test service, where a handler reads nothing: the registry's all read as fast as data comes."""
    async with serving() as serve, connected(serve.port) as client:
        stream_id = await client.open(service_path("Hold"))
        await until(lambda: serve.state.running == 1)
        for _ in range(65):
            await client.send(data(stream_id, bytes(16384)))
        assert (await client.finished(stream_id)).reset is ErrorCode.FLOW_CONTROL_ERROR
        await until(lambda: serve.state.running == 0)
        assert (await client.call(service_path("Echo"), b"")).status == 0


async def test_a_connection_that_was_failed_takes_its_calls_with_it() -> None:
    async with serving() as serve, connected(serve.port) as client:
        for _ in range(3):
            await client.open(service_path("Upload"))
        await until(lambda: serve.state.running == 3)
        await client.send(window_update(0, 0))
        await client.until_closed()
        assert [frame.code for frame in client.goaways] == [ErrorCode.PROTOCOL_ERROR]
        await until(lambda: serve.state.running == 0)


async def test_a_stalled_upload_starves_nobody() -> None:
    async with serving() as serve, connected(serve.port) as client:
        stalled = [await client.open(service_path("Hold")) for _ in range(8)]
        for stream_id in stalled:
            for _ in range(64):
                await client.send(data(stream_id, bytes(16384)))
        stream_id = await client.open(service_path("Upload"))
        for _ in range(64):
            await client.send(data(stream_id, message(bytes(16000))))
        await client.send(data(stream_id, end_stream=True))
        assert (await client.finished(stream_id)).status == 0
