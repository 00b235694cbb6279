"""What calls may have of the process's open files, and how those that find none left wait."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from modelreg.services import open_files
from modelreg.services.open_files import OpenFiles
from modelreg.transport.requests import NO_REQUEST

A, A2, B = "10.0.0.1:1000", "10.0.0.1:2000", "10.0.0.2:1000"


class Calls:
    """Calls that have a file until they're told to end."""

    def __init__(self, files: OpenFiles, nursery: trio.Nursery) -> None:
        self._files = files
        self._nursery = nursery
        self.running: list[str] = []
        self._ends: dict[str, list[trio.Event]] = {}

    async def begin(self, peer: str, count: int) -> int:
        """Begin so many; how many of the peer's have a file after that."""
        for _ in range(count):
            self._nursery.start_soon(self._call, peer)
        await trio.testing.wait_all_tasks_blocked()
        return self.running.count(peer)

    async def _call(self, peer: str) -> None:
        async with self._files.one(attrs.evolve(NO_REQUEST, peer=peer)):
            self.running.append(peer)
            end = trio.Event()
            self._ends.setdefault(peer, []).append(end)
            await end.wait()
            self.running.remove(peer)

    async def end_one(self, peer: str) -> None:
        self._ends[peer].pop().set()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def calls(nursery: trio.Nursery) -> Calls:
    return Calls(OpenFiles(40), nursery)  # 8 for calls: 2 a connection, 4 an address


async def test_a_connection_has_its_share(calls: Calls) -> None:
    assert await calls.begin(A, 5) == 2
    assert await calls.begin(A2, 1) == 1
    await calls.end_one(A)
    assert calls.running.count(A) == 2


async def test_an_address_has_its_share(calls: Calls) -> None:
    for port in range(1, 6):
        await calls.begin(f"10.0.0.1:{port}", 1)
    assert len(calls.running) == 4
    assert await calls.begin(B, 1) == 1


async def test_all_have_what_there_is(calls: Calls) -> None:
    for host in range(1, 6):
        await calls.begin(f"10.0.0.{host}:1", 2)
    assert len(calls.running) == 8
    await calls.end_one("10.0.0.1:1")
    assert calls.running.count("10.0.0.5:1") == 1


async def test_one_that_is_cancelled_while_it_waits_takes_nothing(calls: Calls) -> None:
    await calls.begin(A, 2)
    with trio.move_on_after(0):
        await calls.begin(A, 0)
        async with calls._files.one(attrs.evolve(NO_REQUEST, peer=A)):
            raise AssertionError
    await calls.end_one(A)
    assert await calls.begin(A, 1) == 2


async def test_little_is_kept_of_clients_that_have_gone(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "MOST_KEPT", 1)
    for peer in (A, A2, B):
        assert await calls.begin(peer, 1) == 1
    for peer in (A, A2, B):
        assert set(calls._files._connections) >= set(calls.running)
        await calls.end_one(peer)
    assert not calls.running
    assert len(calls._files._connections) <= 1
    assert len(calls._files._hosts) <= 1
