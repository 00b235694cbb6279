"""Row 15: requests that are none: GET, missing ``te`` or content-type, a path of three segments, bad ``grpc-timeout``, a bad ``-bin`` header,
HEADERS with END_STREAM, bytes that are no message, a message cut short. They get an RST or a status, and cost their stream only."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.faults.abuse import WATCH, encoded, path, upload_begins, with_sibling
from tests.faults.crash import Launcher
from tests.support.h2client import Fields, block, data, headers, message, request_fields

WATCHING = path("VersionUpdate")
UPLOADING = path("CreateVersion")


@pytest.mark.parametrize(
    ("fields", "http_status", "status"),
    [
        (request_fields(WATCHING, method=b"GET"), "405", 13),
        (request_fields(WATCHING, without=[b"te"]), "400", 13),
        (request_fields(WATCHING, without=[b"content-type"]), "415", 3),
        (request_fields(WATCHING, content_type=b"application/json"), "415", 3),
        (request_fields("/one/two/three"), "200", 12),
        (request_fields("/cogmentAPI.ModelRegistrySP/Nothing"), "200", 12),
        (request_fields(WATCHING, [(b"grpc-timeout", b"soon")]), "200", 3),
        (request_fields(WATCHING, [(b"x-bin", b"*")]), "200", 3),
    ],
)
async def test_headers_that_are_no_call(
    launcher: Launcher, memory_path: Path, fields: Fields, http_status: str, status: int
) -> None:
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, _):
        with launcher.canary(server):
            for _ in range(20):
                stream_id = client.new_id()
                await client.send(headers(stream_id, block(fields)), data(stream_id, WATCH, end_stream=True))
                reply = await client.finished(stream_id)
                assert dict(reply.fields)[":status"] == http_status
                assert reply.status == status
                assert not reply.body


@pytest.mark.parametrize(
    "field",
    [(b"Upper", b"case"), (b"connection", b"close"), (b"", b"no name"), (b"x", b"two\r\nlines"), (b":path", b"/again")],
)
async def test_headers_that_are_not_even_http(
    launcher: Launcher, memory_path: Path, field: tuple[bytes, bytes]
) -> None:
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, _):
        with launcher.canary(server):
            for _ in range(20):
                stream_id = await client.open(WATCHING, [field])
                assert (await client.finished(stream_id)).reset is ErrorCode.PROTOCOL_ERROR


NO_MESSAGES = {
    "nothing": (b"", 3),
    "garbage": (message(b"\xff\xff\xff"), 3),
    "text that is no UTF-8": (message(b"\x0a\x01\xff"), 3),
    "cut within the prefix": (b"\0\0\0", 3),
    "cut within the message": (message(b"\x0a\x05hello")[:-1], 3),
    "a flag that is none": (message(b"", flag=2), 3),
    "compressed, but not said how": (message(b"x", flag=1), 13),
}


@pytest.mark.parametrize("method", ["VersionUpdate", "Status", "CreateVersion"])
@pytest.mark.parametrize("name", NO_MESSAGES)
async def test_bodies_that_are_no_message(launcher: Launcher, memory_path: Path, method: str, name: str) -> None:
    server = launcher.start(memory_path / "archive")
    sent, expected = NO_MESSAGES[name]
    async with with_sibling(server) as (client, _):
        with launcher.canary(server):
            for start in (b"", upload_begins(1000)) if method == "CreateVersion" else (b"",):
                stream_id = await client.open(path(method))
                await client.send(data(stream_id, start + sent, end_stream=True))
                assert (await client.finished(stream_id)).status == expected
            # The same with nothing but headers, and with trailers.
            assert (await client.finished(await client.open(path(method), end_stream=True))).status == 3
            stream_id = await client.open(path(method))
            await client.send(headers(stream_id, block([(b"x-checksum", b"1")]), end_stream=True))
            assert (await client.finished(stream_id)).status == 3


async def test_two_messages_where_one_is_taken(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, _):
        stream_id = await client.open(WATCHING)
        await client.send(data(stream_id, WATCH + WATCH, end_stream=True))
        assert (await client.finished(stream_id)).status == 3
        stream_id = await client.open(UPLOADING)
        await client.send(data(stream_id, upload_begins(10) + upload_begins(10), end_stream=True))
        assert (await client.finished(stream_id)).status == 3


async def test_a_client_that_never_ends_its_request(launcher: Launcher, memory_path: Path) -> None:
    """A call of one message waits for the end of the request, which may say that it's no such call; a reset ends the waiting."""
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, sibling):
        waiting = []
        for _ in range(100):
            stream_id = await client.open(WATCHING)
            await client.send(data(stream_id, encoded()), data(stream_id, WATCH))
            waiting.append(stream_id)
        await sibling.hears()
        assert not any(client.reply(stream_id).ended for stream_id in waiting)
        await client.send(*(frames.rst_stream(stream_id, ErrorCode.CANCEL) for stream_id in waiting))
