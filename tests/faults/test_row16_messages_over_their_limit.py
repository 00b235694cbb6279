"""Row 16: a message over its limit of 4 MiB: RESOURCE_EXHAUSTED, and it costs its stream only. Bodies of CreateVersion are streamed and have
no limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.clients.calls import body
from tests.faults.abuse import begin, encoded, send_all, upload_begins, with_sibling
from tests.faults.crash import Launcher
from tests.support.h2client import data, message
from tests.support.measures import memory_bytes, peak_memory_bytes

MIB = 1 << 20
LIMIT = 4 * MIB

# A field that's unknown, with a length of four bytes: the tag and the length take five.
FILLING = 5


def filled(size: int) -> bytes:
    """A valid message of this size, whichever message it is: a field that nobody knows."""
    length = size - FILLING
    encoded_length = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21])
    return message(b"\x7a" + encoded_length + bytes(length))


@pytest.mark.parametrize("method", ["Status", "VersionUpdate", "CreateOrUpdateModel"])
async def test_a_message_over_its_limit(launcher: Launcher, memory_path: Path, method: str) -> None:
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, sibling):
        with launcher.canary(server):
            memory = memory_bytes(server.pid)
            for size in (LIMIT + 1, 1 << 30, (1 << 32) - 1):
                stream_id = await begin(client, method, b"\0" + size.to_bytes(4, "big"), whole=False)
                assert (await client.finished(stream_id)).status == 8
                # It goes on all the same.
                await client.send(*[data(stream_id, bytes(16384))] * 100)
            stream_id = await begin(client, method, b"", whole=False)
            await send_all(client, stream_id, filled(LIMIT + 1))
            assert (await client.finished(stream_id)).status == 8
            await sibling.hears()
            assert peak_memory_bytes(server.pid) - memory < 8 * MIB


@pytest.mark.parametrize("method", ["Status", "CreateVersion"])
async def test_many_messages_that_never_end(launcher: Launcher, memory_path: Path, method: str) -> None:
    """Within its limit each, and 256 MiB together: most find no room, and the others go on."""
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, sibling):
        with launcher.canary(server):
            memory = memory_bytes(server.pid)
            sent = filled(LIMIT)[: MIB // 2]
            begun = [await begin(client, method, sent, whole=False) for _ in range(512)]
            refused = 0
            while refused < 350:
                assert await client.receive()
                refused = sum(client.reply(stream_id).status == 8 for stream_id in begun)
            await sibling.hears()
            assert peak_memory_bytes(server.pid) - memory < 128 * MIB
            await client.send(*(frames.rst_stream(stream_id, ErrorCode.CANCEL) for stream_id in begun))


async def test_a_message_at_its_limit(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, _):
        with launcher.canary(server):
            stream_id = await begin(client, "Version", b"", whole=False)
            await send_all(client, stream_id, filled(LIMIT))
            reply = await client.finished(stream_id)
            assert reply.status == 0
            assert common_pb2.VersionInfo.FromString(reply.messages[0]).versions


async def test_uploads_have_no_limit_of_their_messages(launcher: Launcher, memory_path: Path) -> None:
    """But for those that hold no data: they're collected."""
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, _):
        content = bytes(range(256)) * (48 << 10)
        stream_id = await begin(client, "CreateVersion", upload_begins(len(content)), whole=False)
        await send_all(client, stream_id, encoded(body(content)))
        reply = await client.finished(stream_id)
        assert reply.status == 0
        assert api.CreateVersionReply.FromString(reply.messages[0]).version_info.data_size == len(content)
        stream_id = await begin(client, "CreateVersion", upload_begins(1000), whole=False)
        await send_all(client, stream_id, filled(LIMIT + 1))
        assert (await client.finished(stream_id)).status == 8
