"""Row 14: a client resets the stream, or its connection drops, mid-upload, mid-download, mid-watch, 500 times: handlers, descriptors
and temporary files are back to where they were within a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.faults.abuse import (
    WATCH,
    back_at,
    begin,
    clients,
    download,
    settled,
    temporary_files,
    until,
    upload,
)
from tests.faults.crash import Launcher, Server
from tests.faults.scenarios import MEDIUM, publish, store
from tests.support.h2client import H2Client, connected
from tests.support.measures import memory_bytes

TIMES = 500
AT_ONCE = 50
MIB = 1 << 20

# The numbers of two versions, larger than a client's window at first, so that a download stops amidst.
STORED, TRANSIENT = 1, 2

# How uploads begin that are small or large, stored or not.
UPLOADS = [
    upload(bytes(size), archived=stored)[:60_000] for size in (1000, 300_000, 40_000_000) for stored in (True, False)
]


async def begin_work(client: H2Client, what: str, number: int) -> None:
    """Begin something, and return when it is under way."""
    if what == "upload":
        # Cut off in any place.
        start = UPLOADS[number % len(UPLOADS)]
        await begin(client, "CreateVersion", start[: 60 + len(start) * number // TIMES], whole=False)
        return
    if what == "watch":
        stream_id = await begin(client, "VersionUpdate", WATCH)
    else:
        stream_id = await begin(client, "RetrieveVersionData", download(1 + number % 2))
    reply = client.reply(stream_id)
    await client.until(lambda: len(reply.body) >= (1 if what == "watch" else 65535))


def handlers(server: Server, idle: int, connections: int) -> int:
    """How many calls run, not counting the canary's: each connection has two tasks of its own, and the canary is one."""
    return server.tasks - idle - 2 * (connections + 1)


@pytest.mark.parametrize("what", ["upload", "download", "watch"])
@pytest.mark.parametrize("way", ["reset", "drop"])
async def test_clients_that_vanish(launcher: Launcher, memory_path: Path, what: str, way: str) -> None:
    server = launcher.start(memory_path / "archive")
    with server.calls() as calls:
        calls.create("m")
        assert store(calls, MEDIUM) == {STORED}
        assert publish(calls, MEDIUM[:-1]) == {TRANSIENT}
    before = await settled(server)
    most_files = memory = 0
    for start in range(0, TIMES, AT_ONCE):
        with launcher.canary(server):
            if way == "reset":
                async with connected(server.port) as client:
                    client.credit = False
                    for number in range(start, start + AT_ONCE):
                        if what == "download":  # the connection's window, too, is for one of them
                            await client.send(frames.window_update(0, 65535))
                        await begin_work(client, what, number)
                    await until(lambda: handlers(server, before.tasks, 1) >= AT_ONCE)
                    most_files = max(most_files, len(temporary_files(server)))
                    resets = [frames.rst_stream(number, ErrorCode.CANCEL) for number in range(1, 2 * AT_ONCE, 2)]
                    await client.send(*resets)
                    await until(lambda: handlers(server, before.tasks, 1) == 0, 1)
                    assert not temporary_files(server)
            else:
                async with clients(server, AT_ONCE, credit=False) as vanishing:
                    for number, client in enumerate(vanishing, start):
                        await begin_work(client, what, number)
                    await until(lambda: handlers(server, before.tasks, AT_ONCE) >= AT_ONCE)
                    most_files = max(most_files, len(temporary_files(server)))
        await back_at(server, before)
        # After the first half of them it has what it needs for so many at once.
        if start + AT_ONCE == TIMES // 2:
            memory = memory_bytes(server.pid)
    assert memory_bytes(server.pid) - memory < 8 * MIB
    assert (most_files > 0) == (what == "upload")
    with server.calls() as calls:
        assert calls.data("m", STORED) == MEDIUM
        assert calls.data("m", TRANSIENT) == MEDIUM[:-1]
        calls.wait_for_status(watchers=0)
    assert server.stop() == 0
    assert {line["level"] for line in server.log} == {"info"}
