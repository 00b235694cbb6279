"""What outlives a stop, and what outlives a crash: stored versions, and the numbers that have been given."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import Code, OpenRequest, body, connected, fails, header
from tests.support.server import ServerProgram, StartServer

MIB = 1 << 20


def stop_and_start(server: ServerProgram) -> None:
    server.restart()


def kill_and_start(server: ServerProgram) -> None:
    server.kill()
    server.start()


BeginAgain = Callable[[ServerProgram], None]

BOTH_WAYS = pytest.mark.parametrize("begin_again", [stop_and_start, kill_and_start])


@BOTH_WAYS
def test_stored_versions_stay_as_they_are(start_server: StartServer, begin_again: BeginAgain) -> None:
    server = start_server()
    sizes = [0, 1, 128 << 10, MIB + 1, 9 * MIB]
    with connected(server.address) as calls:
        calls.create("m", colour="red")
        for size in sizes:
            calls.store("m", *([b"a" * size] if size <= 2 * MIB else [b"a" * MIB] * 9), user_data={"size": str(size)})
        before = calls.info("m")
        status = calls.status("models", "versions", "stored_bytes")
    begin_again(server)
    with connected(server.address) as calls:
        assert calls.info("m") == before
        assert calls.status("models", "versions", "stored_bytes") == status
        for number, size in enumerate(sizes, 1):
            assert calls.data("m", number) == b"a" * size
        assert calls.store("m", b"next").version_number == 6


@BOTH_WAYS
def test_numbers_are_never_given_twice(start_server: StartServer, begin_again: BeginAgain) -> None:
    server = start_server("--cache_max_items=5")
    # Models by the versions that each run of the server gives them, stored or transient.
    last = dict.fromkeys(["", "s", "t", "st", "ts", "tttss", "t" * 101, "s" + "t" * 100 + "s"], 0)
    for _ in range(3):
        with connected(server.address) as calls:
            for kinds in last:
                model_id = f"model {kinds}"
                calls.create(model_id)
                for kind in kinds:
                    number = (calls.store if kind == "s" else calls.publish)(model_id, b"data").version_number
                    assert number > last[kinds]
                    if begin_again is stop_and_start:
                        assert number == last[kinds] + 1  # no gap after a clean stop
                    last[kinds] = number
        begin_again(server)


def test_numbers_of_a_deleted_model_begin_again_at_1_after_a_crash_too(start_server: StartServer) -> None:
    server = start_server()
    with connected(server.address) as calls:
        calls.create("m")
        for _ in range(3):
            calls.publish("m", b"data")
        calls.store("m", b"data")
        calls.DeleteModel(api.DeleteModelRequest(model_id="m"))
    kill_and_start(server)
    with connected(server.address) as calls:
        assert calls.model_ids() == []
        calls.create("m")
        assert calls.publish("m", b"data").version_number == 1


def test_upload_cut_short_by_a_crash_leaves_nothing_after_the_next_start(start_server: StartServer) -> None:
    server = start_server()
    tmp = server.archive_dir / "tmp"
    with connected(server.address) as calls, OpenRequest(header("m", data_size=2 * MIB), body(b"a" * MIB)) as request:
        calls.create("m")
        running = calls.CreateVersion.future(request)
        calls.wait_until(lambda: list(tmp.iterdir()) != [])
        server.kill()
        with fails(Code.UNAVAILABLE):
            running.result()
    server.start()
    assert list(tmp.iterdir()) == []
    assert server.wait_for_log("removed what an earlier run left unfinished")["files"] == 1
    with connected(server.address) as calls:
        assert calls.numbers("m") == []
        assert calls.store("m", b"a" * 2 * MIB).version_number == 1
