"""Several registries in one process: each has a directory, a port and a log of its own, and nothing else in common."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from modelreg.errors import ArchiveInUse
from modelreg.log import silent_logger
from modelreg.server import serve
from modelreg.settings import Settings
from tests.clients.calls import Code, connected, fails
from tests.support.server import server_here


async def test_two_servers_on_two_directories_know_nothing_of_each_other(tmp_path: Path) -> None:
    def use_both(first: str, second: str) -> None:
        with connected(first) as calls, connected(second) as others:
            calls.create("m", server="first")
            with fails(Code.NOT_FOUND, 'no model "m" found'):
                others.data("m")
            others.create("m", server="second")
            with others.watch("m") as watch:
                others.wait_for_status(watchers=1)
                assert calls.store("m", b"first").version_number == 1
                assert calls.publish("m", b"first, too").version_number == 2
                assert others.publish("m", b"second").version_number == 1
                assert watch.next_numbers(1) == [1]
                assert calls.status("versions", "watchers") == {"versions": "2", "watchers": "0"}
            assert (calls.data("m", 1), others.data("m", 1)) == (b"first", b"second")

    def use_the_second(first: str, second: str) -> None:
        with connected(second) as others:
            assert others.data("m", 1) == b"second"
        with connected(first) as calls, fails(Code.UNAVAILABLE):
            calls.status()

    async with server_here(tmp_path / "second") as second:
        async with server_here(tmp_path / "first") as first:
            await trio.to_thread.run_sync(use_both, first.address, second.address)
        await trio.to_thread.run_sync(use_the_second, first.address, second.address)
    assert [line["event"] for line in first.log].count("stored a version") == 1
    assert "stored a version" not in [line["event"] for line in second.log]


async def test_one_after_the_other_on_one_directory(tmp_path: Path) -> None:
    def store(address: str) -> int:
        with connected(address) as calls:
            calls.create("m")
            return calls.store("m", b"data").version_number

    for number in (1, 2, 3):
        async with server_here(tmp_path) as server:
            assert await trio.to_thread.run_sync(store, server.address) == number


async def test_two_on_one_directory_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    def still_works(address: str) -> None:
        with connected(address) as calls:
            calls.create("m")
            assert calls.store("m", b"data").version_number == 1

    async with server_here(tmp_path) as server:
        with pytest.raises(ArchiveInUse):
            await serve(Settings(port=0, archive_dir=tmp_path), silent_logger(), stop=trio.Event())
        await trio.to_thread.run_sync(still_works, server.address)
