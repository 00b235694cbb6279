"""Row 33: lists that are long, asked for a thousand times at once, or never read: isolated, and memory is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelreg.api import model_registry_pb2 as api
from modelreg.machine import Shares
from modelreg.machine import memory_bytes as memory_of_machine
from modelreg.transport.frames import window_update
from tests.clients.calls import Code, model_info
from tests.faults.abuse import LARGEST_WINDOW, back_at, begin, encoded, path, send_all, settled
from tests.faults.crash import Launcher, Server
from tests.support.h2client import SETTINGS_INITIAL_WINDOW_SIZE, connected, message
from tests.support.measures import memory_bytes, peak_memory_bytes

MIB = 1 << 20

LARGE = {"notes": "x" * MIB}

# What a list is made in, and what asking for it takes.
BESIDE = 32 * MIB


@pytest.fixture
def server(launcher: Launcher, memory_path: Path) -> Server:
    server = launcher.start(memory_path / "archive", f"--max_user_data_bytes={2 * MIB}")
    with server.calls() as calls:
        calls.CreateOrUpdateModel(model_info("m", **LARGE))
        calls.create("small")
    return server


def ask(*model_ids: str) -> bytes:
    return encoded(api.RetrieveModelsRequest(model_ids=model_ids))


async def test_a_thousand_large_entries(launcher: Launcher, server: Server) -> None:
    before, memory = await settled(server), memory_bytes(server.pid)
    with launcher.canary(server):
        async with connected(server.port, {SETTINGS_INITIAL_WINDOW_SIZE: LARGEST_WINDOW}) as client:
            reply = await client.finished(await begin(client, "RetrieveModels", ask(*["m"] * 1000)))
            assert reply.status == Code.RESOURCE_EXHAUSTED.value[0]
            assert "--max_reply_bytes" in (reply.text or "")
            await client.send(window_update(0, 2**30))
            reply = await client.finished(await begin(client, "RetrieveModels", ask(*["m"] * 30)))
            assert (reply.status, len(reply.messages[0]) > 30 * MIB) == (0, True)
    assert peak_memory_bytes(server.pid) - memory < Shares.of(memory_of_machine()).largest_reply + BESIDE
    await back_at(server, before)


async def test_thousands_that_are_not_read(launcher: Launcher, server: Server) -> None:
    before, memory = await settled(server), memory_bytes(server.pid)
    with launcher.canary(server):
        async with (
            connected(server.port, {SETTINGS_INITIAL_WINDOW_SIZE: 0}) as deaf,
            connected(server.port) as other,
        ):
            for _ in range(2000):
                await begin(deaf, "RetrieveModels", ask("m"))
            reply = await other.finished(await begin(other, "RetrieveModels", ask("small")))
            assert reply.status == 0
            await settled(server)
    assert peak_memory_bytes(server.pid) - memory < Shares.of(memory_of_machine()).replies + BESIDE
    await back_at(server, before, seconds=5)


async def test_a_request_that_names_a_million(launcher: Launcher, server: Server) -> None:
    names = b"\x0a\x01m" * 1_300_000
    memory = memory_bytes(server.pid)
    with launcher.canary(server):
        async with connected(server.port) as client:
            stream_id = await client.open(path("RetrieveModels"))
            await send_all(client, stream_id, message(names))
            reply = await client.finished(stream_id)
            assert (reply.status, reply.text) == (
                Code.INVALID_ARGUMENT.value[0],
                "the request has 3900000 bytes, 520096 are allowed: ask for less at once",
            )
    # Parsed, it would have 40 MB.
    assert peak_memory_bytes(server.pid) - memory < 20 * MIB
