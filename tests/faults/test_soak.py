"""An hour of everything at once: writers, publishers, readers, watchers, deleters, and clients that reset, vanish and send nonsense. At the end
memory, descriptors and tasks are flat, every read was of the right bytes, and nothing is damaged or left over.

``MODELREG_TEST_SOAK_SECONDS`` makes it shorter.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest
import trio

from modelreg.cli import main
from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.clients.calls import Calls, Code, data_hash
from tests.faults.abuse import WATCH, begin, download, fields, settled, temporary_files, upload
from tests.faults.crash import Launcher, Server
from tests.faults.scenarios import delete, publish, store
from tests.support.h2client import connected, headers, message
from tests.support.measures import descriptors, memory_bytes

SECONDS = float(os.environ.get("MODELREG_TEST_SOAK_SECONDS", "3600"))
SAMPLES = 200

MIB = 1 << 20

# A model is deleted when it has so many versions, so that how much there is stays the same; "m" is one of those.
MODELS = ["m", "n", "o", "p"]
VERSIONS = 100
CONTENTS = [b"", b"small" * 100, bytes(range(256)) * 400, bytes(range(251)) * 8000]

# How much more memory may be in use in the last quarter than in the second, by the medians of samples: what the allocator keeps of
# the largest moments. An upload, a reader or a watch that is never let go shows with hundreds of them.
MEMORY_SLACK = 16 * MIB

# The same for tasks and descriptors, which come and go with the load.
COUNT_SLACK = 10


@attrs.frozen
class Sample:
    memory: int
    descriptors: int
    tasks: int


class Load:
    """Who does what to a server until told to stop, and how often."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.stopping = threading.Event()
        self.done: Counter[str] = Counter()

    def run(self, work: Callable[[Calls, random.Random], str], seed: int) -> None:
        """Do something again and again. What others have deleted or evicted in between isn't there, and nothing else may go wrong."""
        choose = random.Random(seed)
        try:
            with self.server.calls() as calls:
                while not self.stopping.is_set():
                    try:
                        self.done[work(calls, choose)] += 1
                    except grpc.RpcError as error:
                        failed: Any = error
                        if failed.code() is not Code.NOT_FOUND:
                            raise
                        self.done["not found"] += 1
        except BaseException:
            self.stopping.set()
            raise

    def misbehave(self, seed: int) -> None:
        try:
            trio.run(self._misbehave, random.Random(seed))
        except BaseException:
            self.stopping.set()
            raise

    async def _misbehave(self, choose: random.Random) -> None:
        while not self.stopping.is_set():
            async with connected(self.server.port, credit=choose.random() < 0.5) as client:
                begun = []
                for _ in range(choose.randrange(1, 10)):
                    stored = choose.random() < 0.5
                    whole = upload(choose.choice(CONTENTS), archived=stored)[:60_000]
                    begun += [
                        await begin(client, "CreateVersion", whole[: choose.randrange(len(whole))], whole=False),
                        await begin(client, "RetrieveVersionData", download(-1)),
                        await begin(client, "VersionUpdate", WATCH),
                        await begin(client, "Status", message(b"\xff")),
                        await begin(client, "Nothing", b"", extra=[(b"grpc-timeout", b"10m")]),
                    ]
                # It has seen all of that when it answers; an answer of this kind needs no window.
                assert (await client.call("/nobody/Nothing", b"")).status == 12
                if choose.random() < 0.5:
                    await client.send(*(frames.rst_stream(stream_id, ErrorCode.CANCEL) for stream_id in begun))
                    self.done["reset"] += len(begun)
                elif choose.random() < 0.5:
                    opened = headers(client.new_id(), fields("VersionUpdate"))
                    pings = frames.ping(bytes(8)) * choose.randrange(1000)
                    await client.try_send(pings, opened, b"GET / HTTP/1.1\r\n\r\n")
                    await client.until_closed()
                    self.done["nonsense"] += 1
                else:
                    self.done["drop"] += 1

    def sample(self, seconds: float) -> list[Sample]:
        """Look at it again and again for so long."""
        samples = []
        pid = self.server.pid
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stopping.wait(seconds / SAMPLES):
            samples.append(Sample(memory_bytes(pid), descriptors(pid), self.server.tasks))
        self.stopping.set()
        return samples


def write(calls: Calls, choose: random.Random) -> str:
    store(calls, choose.choice(CONTENTS) + bytes([choose.randrange(8)]), choose.choice(MODELS))
    return "store"


def publish_one(calls: Calls, choose: random.Random) -> str:
    publish(calls, choose.choice(CONTENTS) + choose.randbytes(8), choose.choice(MODELS))
    return "publish"


def read(calls: Calls, choose: random.Random) -> str:
    model_id = choose.choice(MODELS)
    (info,) = calls.info(model_id, -choose.randrange(1, 10))
    data = calls.data(model_id, info.version_number)
    # A model that has been deleted and made again may have another version of this number.
    if data_hash(data) != info.data_hash:
        (now,) = calls.info(model_id, info.version_number)
        assert now != info, "wrong bytes"
    return "read"


def watch(calls: Calls, choose: random.Random) -> str:
    with calls.watch(choose.choice(MODELS)) as watching:
        numbers = watching.next_numbers(choose.randrange(1, 20))
        assert numbers == sorted(set(numbers))
    return "watch"


def delete_one(calls: Calls, choose: random.Random) -> str:
    model_id = choose.choice(MODELS)
    if len(calls.numbers(model_id)) < VERSIONS:
        return "looked"
    delete(calls, model_id)
    calls.create(model_id, turn=str(choose.random()))
    return "delete"


def median_of(samples: list[Sample], what: str) -> float:
    return float(statistics.median(getattr(sample, what) for sample in samples))


@pytest.mark.slow
def test_soak(launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(tmp_path / "archive", "--cache_max_items=50")
    with server.calls() as calls:
        for model_id in MODELS:
            calls.create(model_id)
            store(calls, b"first", model_id)
    before = trio.run(settled, server)
    load = Load(server)
    seeds = itertools.count(random.randrange(1 << 32))
    with ThreadPoolExecutor(16) as threads:
        watchers = [threads.submit(load.run, watch, next(seeds)) for _ in range(2)]
        works = [write, write, publish_one, publish_one, read, read, delete_one]
        others = [threads.submit(load.run, work, next(seeds)) for work in works]
        others += [threads.submit(load.misbehave, next(seeds)) for _ in range(2)]
        samples = load.sample(SECONDS)
        wait(others)  # nobody deletes any more
        with server.calls() as calls:
            while wait(watchers, timeout=0.1).not_done:  # they wait for more
                for model_id in MODELS:
                    publish(calls, b"last", model_id)
        for each in watchers + others:
            each.result()
    sys.stdout.write(f"{dict(load.done)}\n")
    assert all(load.done[what] for what in ("store", "publish", "read", "watch", "delete", "reset", "drop", "nonsense"))
    size = len(samples) // 4
    quarters = [samples[start : start + size] for start in range(0, 4 * size, size)]
    for what, slack in (("memory", MEMORY_SLACK), ("descriptors", COUNT_SLACK), ("tasks", COUNT_SLACK)):
        medians = [median_of(quarter, what) for quarter in quarters]
        sys.stdout.write(f"{what}, by quarters: {medians}\n")
        assert medians[3] < medians[1] + slack
    # Nobody is there any more: what is left are the files of transient versions, of which there were none before.
    after = trio.run(settled, server)
    assert after.tasks == before.tasks
    assert after.descriptors <= before.descriptors + 50
    assert not temporary_files(server)
    with server.calls() as calls:
        for model_id in MODELS:
            delete(calls, model_id)
    assert trio.run(settled, server) == before
    assert not [line for line in server.log if line["level"] == "error"]
    assert server.stop() == 0
    assert main(["verify", f"--archive_dir={server.archive_dir}"]) == 0
