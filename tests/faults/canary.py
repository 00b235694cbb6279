"""A client that calls all the time, on a connection and in a process of its own, while another one misbehaves.

"Isolated" means that no call of it takes 100 ms. A call's time is that of a `Stopwatch`.
"""

from __future__ import annotations

import json
import sys

import trio

from tests.support.h2client import connected
from tests.support.measures import Stopwatch

# Seconds between two calls: what it asks for is no load of its own.
PAUSE = 0.003

# Calls, however soon it's told to end.
FEWEST = 5


def main(port: int, server: int) -> None:
    """Call the server on a port, with this process id, until standard input ends; then say how long the longest call took."""
    trio.run(_sing, port, server)


async def _sing(port: int, server: int) -> None:
    times: list[float] = []
    async with connected(port) as client:
        ended = False
        while not ended or len(times) < FEWEST:
            watch = Stopwatch(server)
            reply = await client.call("/cogmentAPI.ModelRegistrySP/Status", b"\x0a\x01*")
            times.append(watch.seconds)
            assert reply.status == 0, reply
            if len(times) == 1:
                _say("singing")
            with trio.move_on_after(PAUSE):
                await trio.lowlevel.wait_readable(0)
                ended = True
    _say(max(times))


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
