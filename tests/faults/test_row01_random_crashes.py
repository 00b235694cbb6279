"""Row 1 at random: writers, readers and deleters at once, SIGKILL at any moment, again and again on one directory.

Each writer has a model of its own, so that it knows what it has been told; contents are few, so that their blobs are shared, collected
and stored again all the time. Of the call that a crash cut short either outcome is right.
"""

from __future__ import annotations

import hashlib
import random
import sys
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import grpc
import pytest

from modelreg.cli import main
from tests.faults.crash import KILL, Launcher, Server, files_below
from tests.faults.scenarios import State, age, delete, expected_files, publish, state_of, store

WRITERS = 4
READERS = 2
CONTENTS = [b"", b"small", bytes(range(256)) * 400, bytes(range(256)) * 700, b"odd" * 1_234_567]
HASHES = {hashlib.sha256(content).hexdigest(): content for content in CONTENTS}


@attrs.define
class Ledger:
    """What the writer of one model knows of it."""

    model_id: str
    # None while there's no such model.
    state: tuple[dict[str, str], dict[int, str]] | None = None
    # The highest number given since the model was created.
    highest: int = 0
    # What it's about to do.
    doing: tuple[str, str] = ("nothing", "")
    calls: int = 0

    def write(self, server: Server, choose: random.Random) -> None:
        """Change the model until the server is gone."""
        with server.calls() as calls:
            while True:
                if self.state is None:
                    self.doing = ("create", str(choose.random()))
                else:
                    kind = choose.choices(["store", "publish", "create", "delete"], [6, 4, 1, 1])[0]
                    self.doing = (
                        kind,
                        choose.choice(list(HASHES)) if kind in ("store", "publish") else str(choose.random()),
                    )
                kind, what = self.doing
                given = 0
                try:
                    if kind == "create":
                        calls.create(self.model_id, turn=what)
                    elif kind == "delete":
                        delete(calls, self.model_id)
                    else:
                        (given,) = (store if kind == "store" else publish)(calls, HASHES[what], self.model_id)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    return
                assert not given or given > self.highest
                self.state = self.after(given)
                self.highest = 0 if kind == "delete" else max(given, self.highest)
                self.doing = ("nothing", "")
                self.calls += 1

    def after(self, number: int) -> tuple[dict[str, str], dict[int, str]] | None:
        """The state after what it's doing."""
        kind, what = self.doing
        if kind == "delete":
            return None
        user_data, versions = self.state or ({}, {})
        if kind == "create":
            return {"turn": what}, versions
        return user_data, {**versions, number: what} if kind == "store" else versions

    def check(self, found: tuple[dict[str, str], dict[int, str]] | None) -> None:
        """Compare with what is there after a crash, and go on from that."""
        new = max(found[1], default=0) if found else 0
        assert found in (self.state, self.after(new) if self.doing[0] != "nothing" else self.state)
        if found is not None and self.state is not None and new not in self.state[1]:
            assert not new or new > self.highest
        self.highest = 0 if found is None else max(self.highest, new)
        self.state = found
        self.doing = ("nothing", "")


def read(server: Server, choose: random.Random) -> None:
    """Read whatever there is until the server is gone: full bytes, or none."""
    with server.calls() as calls:
        while True:
            try:
                for model_id in calls.model_ids():
                    info = choose.choice(calls.info(model_id) or [None])
                    if info is not None:
                        data = calls.data(model_id, info.version_number)
                        assert b64encode(hashlib.sha256(data).digest()).decode() == info.data_hash
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise


@pytest.mark.parametrize("rounds", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_random_crashes(launcher: Launcher, memory_path: Path, rounds: int) -> None:
    seed = random.randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")  # shown where it fails
    choose = random.Random(seed)
    archive = memory_path / "archive"
    ledgers = [Ledger(f"model {number}") for number in range(WRITERS)]
    for _ in range(rounds):
        server = launcher.start(archive, "--cache_max_items=5")
        with ThreadPoolExecutor(WRITERS + READERS) as threads:
            launcher.control.arm(archive, KILL, at=choose.randrange(1, 400))
            work = [threads.submit(ledger.write, server, random.Random(choose.random())) for ledger in ledgers]
            work += [threads.submit(read, server, random.Random(choose.random())) for _ in range(READERS)]
            for each in work:
                each.result()
        assert server.wait() == -9
        launcher.control.disarm()
        age(archive)
        server = launcher.start(archive)
        state: State = state_of(server)
        server.kill()
        for ledger in ledgers:
            ledger.check(state.pop(ledger.model_id, None))
        assert not state
        everything = {ledger.model_id: ledger.state for ledger in ledgers if ledger.state is not None}
        assert files_below(archive) == expected_files(everything)
    assert main(["verify", f"--archive_dir={archive}"]) == 0
    sys.stdout.write(f"{sum(ledger.calls for ledger in ledgers)} calls acknowledged\n")
