"""VersionUpdate: whoever follows a model hears of every version, in order, and of the end."""

from __future__ import annotations

import pytest

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import Calls, Code, connected, fails
from tests.support.server import StartServer


def test_watch_gives_the_newest_version_at_once_then_every_newer_one_in_order_each_once(
    calls: Calls, model: str
) -> None:
    calls.store(model, b"1")
    second = calls.publish(model, b"2", user_data={"a": "b"})
    with calls.watch(model) as watch:
        assert watch.next() == second
        later = [(calls.store if number % 3 else calls.publish)(model, b"%d" % number) for number in range(3, 40)]
        assert [watch.next() for _ in later] == later
    with calls.watch(model) as watch:
        assert watch.next() == later[-1]


def test_watch_of_a_model_without_versions_waits_for_the_first(calls: Calls, model: str) -> None:
    with calls.watch(model) as watch:
        calls.wait_for_status(watchers=1)
        version = calls.publish(model, b"1")
        assert watch.next() == version
    calls.wait_for_status(watchers=0)


def test_watch_of_an_unknown_model(calls: Calls) -> None:
    with calls.watch("x") as watch, fails(Code.NOT_FOUND, 'no model "x" found'):
        watch.next()


@pytest.mark.parametrize("versions", [0, 1])
@pytest.mark.parametrize("again", [False, True], ids=["gone", "created again"])
def test_watch_of_a_model_deleted_meanwhile_ends_not_found(
    calls: Calls, model: str, versions: int, again: bool
) -> None:
    for _ in range(versions):
        calls.publish(model, b"data")
    with calls.watch(model) as watch:
        watch.next_numbers(versions)
        calls.wait_for_status(watchers=1)
        calls.DeleteModel(api.DeleteModelRequest(model_id=model))
        if again:
            # Its versions are another model's.
            calls.create(model)
            calls.publish(model, b"another")
        with fails(Code.NOT_FOUND, f'no model "{model}" found'):
            watch.next()
    calls.wait_for_status(watchers=0)


def test_watch_ends_unavailable_when_the_server_stops(start_server: StartServer) -> None:
    server = start_server()
    with connected(server.address) as calls:
        calls.create("m")
        calls.create("quiet")
        calls.publish("m", b"data")
        with calls.watch("m") as watch, calls.watch("quiet") as quiet:
            watch.next()
            calls.wait_for_status(watchers=2)
            server.stop()
            for one in (watch, quiet):
                with fails(Code.UNAVAILABLE):
                    one.next()


# A client that takes no more of a stream than this before it's asked for. (C-core takes megabytes, where they come fast.)
HESITANT = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))

# Far more than what client and server then have in hand for a stream.
MANY = 400
LONG = {"notes": "n" * 10_000}


def test_watcher_that_reads_slowly_holds_up_nobody_and_gets_every_available_version_in_order(
    start_server: StartServer,
) -> None:
    server = start_server(f"--cache_max_items={MANY}")
    with connected(server.address) as calls, connected(server.address, *HESITANT) as others:
        calls.create("m")
        with others.watch("m") as slow, calls.watch("m") as quick:
            calls.wait_for_status(watchers=2)
            for number in range(1, MANY + 1):
                calls.publish("m", b"data", user_data=LONG)
                assert quick.next().version_number == number
            assert slow.next_numbers(MANY) == list(range(1, MANY + 1))


def test_watcher_that_reads_slowly_has_no_queue_and_is_not_told_of_what_is_gone_by_then(
    start_server: StartServer,
) -> None:
    server = start_server("--cache_max_items=3")
    with connected(server.address) as calls, connected(server.address, *HESITANT) as others:
        calls.create("m")
        with others.watch("m") as slow:
            calls.wait_for_status(watchers=1)
            for _ in range(MANY):
                calls.publish("m", b"data", user_data=LONG)
            numbers = [slow.next().version_number]
            while numbers[-1] < MANY:
                numbers.append(slow.next().version_number)
        assert numbers == sorted(set(numbers))
        assert numbers[-3:] == [MANY - 2, MANY - 1, MANY]
        assert len(numbers) < MANY


def test_watcher_that_reads_slowly_is_told_of_a_deletion_though_the_model_was_created_again_since(
    start_server: StartServer,
) -> None:
    server = start_server(f"--cache_max_items={MANY}")
    with connected(server.address) as calls, connected(server.address, *HESITANT) as others:
        calls.create("m")
        with others.watch("m") as slow:
            calls.wait_for_status(watchers=1)
            for _ in range(MANY):
                calls.publish("m", b"data", user_data=LONG)
            calls.DeleteModel(api.DeleteModelRequest(model_id="m"))
            calls.create("m")
            told: list[int] = []
            with fails(Code.NOT_FOUND, 'no model "m" found'):
                told.extend(reply.version_info.version_number for reply in slow.call)
            assert told == list(range(1, len(told) + 1))
            assert len(told) < MANY


def test_many_watchers_all_hear_of_a_version(calls: Calls, model: str) -> None:
    watches = [calls.watch(model) for _ in range(200)]
    calls.wait_for_status(watchers=200)
    calls.publish(model, b"1")
    calls.store(model, b"2")
    assert [watch.next_numbers(2) for watch in watches] == [[1, 2]] * 200
    for watch in watches:
        watch.call.cancel()
    calls.wait_for_status(watchers=0)


def test_watch_goes_on_from_where_the_registry_was_before_a_restart(start_server: StartServer) -> None:
    server = start_server()
    with connected(server.address) as calls:
        calls.create("m")
        calls.store("m", b"1")
        calls.publish("m", b"2")
    server.restart()
    with connected(server.address) as calls, calls.watch("m") as watch:
        assert watch.next().version_number == 1
        calls.publish("m", b"3")
        assert watch.next().version_number == 3
