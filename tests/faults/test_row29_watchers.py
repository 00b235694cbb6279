"""Row 29: a watcher that never reads, beside 1,000 that do: the others are served on time, and memory is bounded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from modelreg.api import model_registry_pb2 as api
from modelreg.transport.frames import window_update
from tests.faults.abuse import LARGEST_WINDOW, WATCH, back_at, begin, clients, create, publish, settled, status, watch
from tests.faults.crash import Launcher
from tests.support.h2client import SETTINGS_INITIAL_WINDOW_SIZE, H2Client, Reply, connected, settings
from tests.support.measures import Stopwatch, memory_bytes, peak_memory_bytes
from tests.support.server import PATIENCE

WATCHERS = 1000
CONNECTIONS = 4
VERSIONS = 30

# Seconds for one version to reach them all. They share a process with the test, which reads what they're sent; a server that waited for the
# one that never reads would take minutes.
ON_TIME = 2

# Sent with each version, so that what isn't read is more than any window and any buffer.
NOTES = {"notes": "n" * 300_000}

MIB = 1 << 20


def all_have(replies: list[Reply], count: int) -> bool:
    return all(len(reply.messages) == count for reply in replies)


async def watchers(client: H2Client, count: int) -> None:
    """So many are there."""
    with trio.fail_after(PATIENCE):
        while await status(client, "watchers") < count:
            pass


async def test_one_that_never_reads(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    async with clients(server, CONNECTIONS) as connections, connected(server.port) as publisher:
        await create(publisher)
        await create(publisher, "heavy")
        for client in connections:
            for _ in range(WATCHERS // CONNECTIONS):
                await begin(client, "VersionUpdate", WATCH)
        await watchers(publisher, WATCHERS)
        before = await settled(server)
        async with clients(server, 2, credit=False) as deaf:
            # The windows of one are closed soon, those of the other never: what stops it is its socket.
            await deaf[1].send(settings({SETTINGS_INITIAL_WINDOW_SIZE: LARGEST_WINDOW}), window_update(0, 2**30))
            for client in deaf:
                for _ in range(10):
                    await begin(client, "VersionUpdate", watch("heavy"))
            await watchers(publisher, WATCHERS + 20)
            watches = {
                client: [client.reply(number) for number in range(1, client.next_id, 2)] for client in connections
            }
            await publish(publisher, model_id="heavy", user_data=NOTES)
            memory = memory_bytes(server.pid)
            slowest = 0.0
            with launcher.canary(server):
                for turn in range(1, VERSIONS + 1):
                    await publish(publisher, model_id="heavy", user_data=NOTES)
                    stopwatch = Stopwatch(server.pid)
                    await publish(publisher)
                    for client in connections:
                        await client.until(partial(all_have, watches[client], turn))
                    slowest = max(slowest, stopwatch.seconds)
            assert slowest < ON_TIME
            assert peak_memory_bytes(server.pid) - memory < 16 * MIB
            replies = [reply for own in watches.values() for reply in own]
            numbers = [
                api.VersionUpdateReply.FromString(one).version_info.version_number for one in replies[0].messages
            ]
            assert numbers == list(range(1, VERSIONS + 1))
            assert all(reply.body == replies[0].body for reply in replies)
        await back_at(server, before)
