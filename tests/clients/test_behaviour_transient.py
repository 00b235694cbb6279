"""Transient versions: bounded by count and by bytes, the least recently used goes first, and none outlives the server."""

from __future__ import annotations

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import Calls, Code, OpenRequest, connected, fails, header
from tests.support.server import StartServer

KIB = 1 << 10
MIB = 1 << 20


def publish(calls: Calls, model_id: str, count: int, size: int = 10) -> None:
    """Versions each of a content of its own."""
    for _ in range(count):
        number = (calls.numbers(model_id) or [0])[-1] + 1
        calls.publish(model_id, f"{model_id} {number}".encode().ljust(size))


def test_cache_max_items_keeps_the_most_recent_ones(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=3").address) as calls:
        calls.create("m")
        publish(calls, "m", 5)
        assert calls.numbers("m") == [3, 4, 5]
        assert [calls.info("m", number)[0].version_number for number in (-1, -2, -3)] == [5, 4, 3]
        with fails(Code.NOT_FOUND, 'no version "n-4" for model "m" found'):
            calls.info("m", -4)
        with fails(Code.NOT_FOUND, 'no version "2" for model "m" found'):
            calls.data("m", 2)


def test_cache_max_items_is_100_by_default(start_server: StartServer) -> None:
    with connected(start_server().address) as calls:
        calls.create("m")
        for _ in range(103):
            calls.publish("m", b"the same")
        assert calls.numbers("m") == list(range(4, 104))


def test_stored_versions_are_not_counted(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=1").address) as calls:
        calls.create("m")
        for number in range(3):
            calls.store("m", b"stored %d" % number)
        publish(calls, "m", 2)
        assert calls.numbers("m") == [1, 2, 3, 5]


def test_cache_max_bytes_counts_bytes(start_server: StartServer) -> None:
    with connected(start_server(f"--cache_max_bytes={100 * KIB}").address) as calls:
        calls.create("m")
        publish(calls, "m", 3, 40 * KIB)
        assert calls.numbers("m") == [2, 3]
        assert calls.status("transient_bytes") == {"transient_bytes": str(80 * KIB)}
        publish(calls, "m", 1, 100 * KIB)
        assert calls.numbers("m") == [4]
        assert calls.data("m") == b"m 4".ljust(100 * KIB)


def test_cache_max_bytes_holds_for_large_versions_too(start_server: StartServer) -> None:
    with connected(start_server(f"--cache_max_bytes={6 * MIB}").address) as calls:
        calls.create("m")
        publish(calls, "m", 5, 2 * MIB)
        assert calls.numbers("m") == [3, 4, 5]
        for number in (3, 4, 5):
            assert calls.data("m", number) == f"m {number}".encode().ljust(2 * MIB)


def test_cache_max_bytes_holds_beside_downloads_that_stall(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=1", f"--cache_max_bytes={48 * MIB}").address) as calls:
        calls.create("m")
        stalled = []
        for number in (1, 2, 3):
            publish(calls, "m", 1, 16 * MIB)
            stalled.append(calls.download("m", number))
            stalled[-1].initial_metadata()  # it has begun
        # Two of them are gone from the list, and all of them from no memory.
        assert calls.numbers("m") == [3]
        assert calls.status("transient_bytes") == {"transient_bytes": str(48 * MIB)}
        with fails(Code.RESOURCE_EXHAUSTED) as caught:
            publish(calls, "m", 1)
        assert "--cache_max_bytes" in caught.value.details()
        assert calls.numbers("m") == [3]
        assert b"".join(chunk.data_chunk for chunk in stalled[0]) == b"m 1".ljust(16 * MIB)
        calls.wait_for_status(transient_bytes=32 * MIB)
        publish(calls, "m", 1, 16 * MIB)
        stalled[1].cancel()
        calls.wait_for_status(transient_bytes=32 * MIB)
        assert b"".join(chunk.data_chunk for chunk in stalled[2]) == b"m 3".ljust(16 * MIB)
        calls.wait_for_status(transient_bytes=16 * MIB)


def test_transient_version_larger_than_the_whole_limit_is_refused_before_its_body_and_costs_nobody_else(
    start_server: StartServer,
) -> None:
    with connected(start_server(f"--cache_max_bytes={100 * KIB}").address) as calls:
        calls.create("m")
        publish(calls, "m", 2)
        request = OpenRequest(header("m", archived=False, data_size=100 * KIB + 1))
        with request, fails(Code.RESOURCE_EXHAUSTED) as caught:
            calls.CreateVersion(request)
        assert "--cache_max_bytes" in caught.value.details()
        assert calls.numbers("m") == [1, 2]
        # It may be stored.
        assert calls.store("m", b"a" * 101 * KIB).version_number == 3


def test_least_recently_read_goes_first(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=4").address) as calls:
        calls.create("m")
        publish(calls, "m", 4)
        assert calls.data("m", 1) == b"m 1".ljust(10)
        calls.info("m", 2)  # looking at it isn't use
        publish(calls, "m", 1)
        assert calls.numbers("m") == [1, 3, 4, 5]
        publish(calls, "m", 1)
        assert calls.numbers("m") == [1, 4, 5, 6]


def test_newest_of_each_model_goes_only_when_nothing_else_is_left(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=3").address) as calls:
        for model_id in ("a", "b", "c", "d"):
            calls.create(model_id)
        publish(calls, "a", 1)
        publish(calls, "b", 4)
        # The oldest use is that of a's only version, which stays.
        assert (calls.numbers("a"), calls.numbers("b")) == ([1], [3, 4])
        publish(calls, "c", 1)
        assert (calls.numbers("a"), calls.numbers("b"), calls.numbers("c")) == ([1], [4], [1])
        publish(calls, "d", 1)
        assert (calls.numbers("a"), calls.numbers("b"), calls.numbers("c"), calls.numbers("d")) == ([], [4], [1], [1])


def test_version_stored_later_makes_a_transient_one_no_more_the_newest(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=2").address) as calls:
        for model_id in ("a", "b"):
            calls.create(model_id)
        publish(calls, "a", 1)
        publish(calls, "b", 1)
        calls.store("a", b"stored")
        publish(calls, "b", 1)
        # The newest of b before the last is no longer that either, but was used later than a's.
        assert (calls.numbers("a"), calls.numbers("b")) == ([2], [1, 2])


def test_transient_version_whose_content_is_stored_costs_no_memory(start_server: StartServer) -> None:
    with connected(start_server(f"--cache_max_bytes={4 * MIB}").address) as calls:
        calls.create("m")
        for size in (1000, 3 * MIB):
            calls.store("m", b"a" * size)
            for _ in range(3):
                version = calls.publish("m", b"a" * size)
                assert not version.archived
        assert calls.numbers("m") == list(range(1, 9))
        assert calls.status("transient_bytes") == {"transient_bytes": "0"}
        assert calls.data("m") == b"a" * 3 * MIB
        assert calls.data("m", 2) == b"a" * 1000


def test_transient_versions_are_gone_after_a_restart(start_server: StartServer) -> None:
    server = start_server()
    with connected(server.address) as calls:
        calls.create("m")
        calls.store("m", b"stored")
        publish(calls, "m", 2)
    server.restart()
    with connected(server.address) as calls:
        assert calls.numbers("m") == [1]
        assert calls.data("m", -1) == b"stored"
        with fails(Code.NOT_FOUND, 'no version "3" for model "m" found'):
            calls.data("m", 3)


def test_deleting_a_model_frees_its_memory(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=2").address) as calls:
        for model_id in ("a", "b"):
            calls.create(model_id)
        publish(calls, "a", 2, 2 * MIB)
        calls.DeleteModel(api.DeleteModelRequest(model_id="a"))
        assert calls.status("transient_bytes") == {"transient_bytes": "0"}
        publish(calls, "b", 2)
        assert calls.numbers("b") == [1, 2]


def test_no_model_pushes_out_the_newest_version_of_another_one_to_replace_its_own(start_server: StartServer) -> None:
    server = start_server(f"--cache_max_bytes={10 * MIB}", "--cache_max_items=5")
    with connected(server.address) as calls:
        for model_id in ("a", "b"):
            calls.create(model_id)
            publish(calls, model_id, 1, 4 * MIB)
        publish(calls, "b", 3, 4 * MIB)
        assert (calls.numbers("a"), calls.numbers("b")) == ([1], [4])
        publish(calls, "b", 10)
        assert (calls.numbers("a"), calls.numbers("b")) == ([1], [11, 12, 13, 14])
        assert calls.status("evicted") == {"evicted": "0"}


def test_a_version_that_goes_for_another_model_is_logged_and_counted(start_server: StartServer) -> None:
    server = start_server("--cache_max_items=2")
    with connected(server.address) as calls:
        for model_id in ("a", "b", "c"):
            calls.create(model_id)
        publish(calls, "a", 2)
        publish(calls, "b", 1)
        line = server.wait_for_log("evicted a version to make room for another model")
        assert (line["level"], line["model"], line["version"], line["needing"]) == ("info", "a", 1, "b")
        publish(calls, "c", 1)
        line = server.wait_for_log(
            "evicted the newest version of a model to make room for another model, as nothing else was left: "
            "raise --cache_max_items or --cache_max_bytes"
        )
        assert (line["level"], line["model"], line["version"], line["needing"]) == ("warning", "a", 2, "c")
        assert calls.status("evicted") == {"evicted": "2"}
        assert (calls.numbers("a"), calls.numbers("b"), calls.numbers("c")) == ([], [1], [1])


def test_cache_max_items_per_model(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=4", "--cache_max_items_per_model=2").address) as calls:
        for model_id in ("a", "b"):
            calls.create(model_id)
        publish(calls, "a", 2)
        publish(calls, "b", 5)
        assert (calls.numbers("a"), calls.numbers("b")) == ([1, 2], [4, 5])
