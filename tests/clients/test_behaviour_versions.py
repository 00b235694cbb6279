"""Version numbers and handles, and the calls that read versions: RetrieveVersionInfos, RetrieveVersionData."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import Calls, Code, connected, data_hash, fails
from tests.support.server import StartServer, server_program

MIB = 1 << 20


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """The calls of a server that no test changes: model m has versions 3 to 9 of once nine, as two transient ones are gone."""
    directory = tmp_path_factory.mktemp("listing")
    with server_program(directory, "--cache_max_items=2") as server, connected(server.address) as calls:
        calls.create("m")
        calls.create("empty")
        for number in range(1, 10):
            (calls.publish if number in (1, 2, 4, 9) else calls.store)("m", f"data {number}".encode())
        assert calls.numbers("m") == AVAILABLE
        yield calls


AVAILABLE = [3, 4, 5, 6, 7, 8, 9]


def page(
    calls: Calls, handle: str = "", count: int = 0, numbers: Sequence[int] = (), model_id: str = "m"
) -> tuple[list[int], str]:
    """The numbers of a page of versions, and the next handle."""
    reply = calls.RetrieveVersionInfos(
        api.RetrieveVersionInfosRequest(
            model_id=model_id, version_numbers=numbers, versions_count=count, version_handle=handle
        )
    )
    for version in reply.version_infos:
        assert version.data_hash == data_hash(f"data {version.version_number}".encode())
    return [version.version_number for version in reply.version_infos], reply.next_version_handle


def pages(calls: Calls, count: int, numbers: Sequence[int] = ()) -> list[list[int]]:
    """What a client finds that goes on until a page is short."""
    found, handle = page(calls, "", count, numbers)
    result = [found]
    while len(found) == count:
        found, handle = page(calls, handle, count, numbers)
        result.append(found)
    return result


# Ids, numbers, handles


@pytest.mark.parametrize(("number", "found"), [(3, 3), (9, 9), (-1, 9), (-2, 8), (-6, 4), (-7, 3)])
def test_number_above_zero_is_that_one_and_below_the_nth_to_last_of_those_available_now(
    listing: Calls, number: int, found: int
) -> None:
    assert page(listing, numbers=[number]) == ([found], str(found + 1))
    assert listing.data("m", number) == f"data {found}".encode()


@pytest.mark.parametrize(
    ("number", "named"),
    [
        (0, "0"),
        (1, "1"),
        (2, "2"),
        (10, "10"),
        (28, "28"),
        (2**31 - 1, "2147483647"),
        (-8, "n-8"),
        (-28, "n-28"),
        (-(2**31), "n-2147483648"),
    ],
)
def test_number_zero_or_evicted_or_beyond_is_not_found(listing: Calls, number: int, named: str) -> None:
    details = f'no version "{named}" for model "m" found'
    with fails(Code.NOT_FOUND, details):
        page(listing, numbers=[number])
    with fails(Code.NOT_FOUND, details):
        listing.data("m", number)


def test_minus_one_of_a_model_without_versions_is_not_found(listing: Calls) -> None:
    with fails(Code.NOT_FOUND, 'no version "n-1" for model "empty" found'):
        listing.info("empty", -1)
    with fails(Code.NOT_FOUND, 'no version "n-1" for model "empty" found'):
        listing.data("empty")


# RetrieveVersionInfos: no numbers


def test_versions_without_numbers_are_all_available_in_order_of_number(listing: Calls) -> None:
    assert page(listing) == (AVAILABLE, "10")


@pytest.mark.parametrize(
    ("handle", "count", "expected", "next_handle"),
    [
        ("", 2, [3, 4], "5"),
        ("0", 2, [3, 4], "5"),
        ("1", 2, [3, 4], "5"),
        ("3", 2, [3, 4], "5"),
        ("5", 3, [5, 6, 7], "8"),
        ("8", 3, [8, 9], "10"),
        ("5", 0, [5, 6, 7, 8, 9], "10"),
        ("", 2**32 - 1, AVAILABLE, "10"),
        ("10", 3, [], "10"),
        ("57", 3, [], "57"),
        (str(2**64), 0, [], str(2**64)),
    ],
)
def test_versions_without_numbers_come_from_the_handles_number_on(
    listing: Calls, handle: str, count: int, expected: list[int], next_handle: str
) -> None:
    assert page(listing, handle, count) == (expected, next_handle)


@pytest.mark.parametrize("count", range(1, 9))
def test_versions_without_numbers_page_by_page(listing: Calls, count: int) -> None:
    assert list(itertools.chain(*pages(listing, count))) == AVAILABLE


def test_versions_of_a_model_without_versions(listing: Calls) -> None:
    assert page(listing, model_id="empty") == ([], "0")
    assert page(listing, "", 5, model_id="empty") == ([], "0")
    assert page(listing, "7", 5, model_id="empty") == ([], "7")


# RetrieveVersionInfos: numbers


def test_versions_by_number_come_in_the_order_asked_duplicates_included(listing: Calls) -> None:
    assert page(listing, numbers=[7, 3, -1, 7, 9, 5]) == ([7, 3, 9, 7, 9, 5], "6")


@pytest.mark.parametrize(("missing", "named"), [(28, "28"), (-28, "n-28"), (0, "0"), (1, "1")])
def test_versions_by_number_any_missing(listing: Calls, missing: int, named: str) -> None:
    for count in (0, 1):
        with fails(Code.NOT_FOUND, f'no version "{named}" for model "m" found'):
            page(listing, "", count, [3, missing, 4])


# RetrieveVersionInfos: numbers and versions_count and handle


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize(
    "numbers",
    [[3, 4, 5, 6, 7, 8], [8, 3, 7, 4, 6], [5], [-1, -2, -3, -4], [5, 5, 5], [9, 9, -1, 3, -7, 9, 4], [3, -7, 3, -7]],
    ids=str,
)
def test_versions_by_number_page_by_page_nothing_skipped_or_repeated(
    listing: Calls, numbers: list[int], count: int
) -> None:
    expected, _ = page(listing, numbers=numbers)
    found = pages(listing, count, numbers)
    assert list(itertools.chain(*found)) == expected
    assert all(len(one) == count for one in found[:-1])


@pytest.mark.parametrize(
    ("handle", "count", "next_handle"), [("", 2, "4"), ("4", 2, "9"), ("9", 2, "10"), ("10", 2, "10"), ("4", 0, "10")]
)
def test_versions_by_number_have_the_documented_handles(
    listing: Calls, handle: str, count: int, next_handle: str
) -> None:
    # Asked for each once, the last number returned says where to go on.
    assert page(listing, handle, count, [6, 3, 5, 8, 9])[1] == next_handle


# Handles, and unknown models


@pytest.mark.parametrize("handle", ["x", "-1", "+1", " 1", "1.0", "1e3", "0x1", "٣", "1_000", "9" * 1000])
@pytest.mark.parametrize("numbers", [(), (3, 4)], ids=["no numbers", "numbers"])
def test_versions_handle_that_is_no_number_or_negative_is_invalid(
    listing: Calls, handle: str, numbers: tuple[int, ...]
) -> None:
    with fails(Code.INVALID_ARGUMENT) as caught:
        page(listing, handle, 3, numbers)
    assert "version_handle" in str(caught.value)


@pytest.mark.parametrize("numbers", [[], [1], [-1], [0]])
def test_versions_of_an_unknown_model(listing: Calls, numbers: list[int]) -> None:
    with fails(Code.NOT_FOUND, 'no model "x" found'):
        page(listing, numbers=numbers, model_id="x")


# RetrieveVersionData

STORED_AND_TRANSIENT = pytest.mark.parametrize("archived", [True, False], ids=["stored", "transient"])


def store(calls: Calls, model_id: str, data: bytes, *, archived: bool) -> int:
    return (calls.store if archived else calls.publish)(
        model_id, *(data[start : start + MIB] for start in range(0, len(data), MIB))
    ).version_number


@STORED_AND_TRANSIENT
@pytest.mark.parametrize("size", [1, 1000, 128 << 10, 4 * MIB - 4096, 4 * MIB, 11 * MIB + 1])
def test_data_comes_in_chunks_that_a_client_accepts_by_default(
    calls: Calls, model: str, archived: bool, size: int
) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    chunks = calls.chunks(model, store(calls, model, data, archived=archived))
    assert b"".join(chunks) == data
    assert all(0 < len(chunk) <= 4 * MIB - 4096 for chunk in chunks)


@STORED_AND_TRANSIENT
def test_data_of_an_empty_version_is_one_empty_chunk(calls: Calls, model: str, archived: bool) -> None:
    assert calls.chunks(model, store(calls, model, b"", archived=archived)) == [b""]


@pytest.mark.parametrize(
    ("option", "size", "expected"),
    [
        (1, 3, [1, 1, 1]),
        (1000, 2000, [1000, 1000]),
        (5242880, 11 << 20, [5242880, 5242880, 1048576]),
        (10_000_000, 11_000_000, [10_000_000, 1_000_000]),
    ],
)
def test_data_chunks_are_none_larger_than_the_option_when_it_is_set(
    start_server: StartServer, option: int, size: int, expected: list[int]
) -> None:
    server = start_server(f"--sent_version_chunk_size={option}")
    with connected(server.address, ("grpc.max_receive_message_length", -1)) as calls:
        calls.create("m")
        for archived in (True, False):
            number = store(calls, "m", bytes(size), archived=archived)
            assert [len(chunk) for chunk in calls.chunks("m", number)] == expected


def test_data_of_an_unknown_model(calls: Calls) -> None:
    with fails(Code.NOT_FOUND, 'no model "x" found'):
        calls.data("x", 1)


# stored data damaged at rest


def flip_a_bit(blob: Path) -> None:
    blob.chmod(0o640)
    with blob.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


def cut_short(blob: Path) -> None:
    blob.chmod(0o640)
    with blob.open("r+b") as file:
        file.truncate(blob.stat().st_size - 1)


def make_longer(blob: Path) -> None:
    blob.chmod(0o640)
    with blob.open("ab") as file:
        file.write(b"x")


def replace_by_a_link(blob: Path) -> None:
    other = blob.rename(blob.with_name("elsewhere"))
    blob.symlink_to(other)


DAMAGES: list[Callable[[Path], object]] = [flip_a_bit, cut_short, make_longer, Path.unlink, replace_by_a_link]


@pytest.mark.parametrize("when", ["while it runs", "while it is stopped"])
def test_data_damaged_at_rest_is_data_loss_logged_and_counted_and_healed_by_storing_it_again(
    start_server: StartServer, when: str
) -> None:
    server = start_server()
    # A model for each way, with a content of its own.
    contents = {
        f"{damage.__name__} {size}": (damage, f"{damage.__name__} {size}".encode().ljust(size))
        for damage in DAMAGES
        for size in (1000, 9 * MIB)
    }
    with connected(server.address) as calls:
        for model_id, (_, data) in contents.items():
            calls.create(model_id)
            store(calls, model_id, data, archived=True)
            store(calls, model_id, b"sound", archived=True)
            assert calls.data(model_id, 1) == data
    if when == "while it is stopped":
        server.stop()
    for damage, data in contents.values():
        damage(blob(server.archive_dir, data))
    if when == "while it is stopped":
        server.start()
    with connected(server.address) as calls:
        for model_id, (_, data) in contents.items():
            assert_lost(calls, model_id, len(data))
            assert int(calls.status("damaged")["damaged"]) > 0
            server.wait_for_log("a blob is damaged", sha256=hashlib.sha256(data).hexdigest())
            assert calls.data(model_id, 2) == b"sound"
            assert store(calls, model_id, data, archived=True) == 3
            assert calls.data(model_id, 1) == data
            assert calls.data(model_id, 3) == data


def blob(archive_dir: Path, data: bytes) -> Path:
    name = hashlib.sha256(data).hexdigest()
    return archive_dir / "blobs" / "sha256" / name[:2] / name


def assert_lost(calls: Calls, model_id: str, size: int) -> None:
    # It stays listed.
    assert [version.data_size for version in calls.info(model_id)] == [size, 5]
    received: list[bytes] = []
    with fails(Code.DATA_LOSS) as caught:
        received.extend(chunk.data_chunk for chunk in calls.download(model_id, 1))
    assert 'version "1"' in caught.value.details()
    assert f'model "{model_id}"' in caught.value.details()
    # Never all of it: what's wrong might be in any part.
    assert len(b"".join(received)) < size


# version evicted or deleted while it is being read

LARGER_THAN_ANY_WINDOW = 48 * MIB


@STORED_AND_TRANSIENT
def test_version_deleted_while_it_is_being_read_is_read_to_the_end(start_server: StartServer, archived: bool) -> None:
    with connected(start_server().address) as calls:
        calls.create("m")
        store(calls, "m", b"d" * LARGER_THAN_ANY_WINDOW, archived=archived)
        reading = calls.download("m")
        received = len(next(reading).data_chunk)
        calls.DeleteModel(api.DeleteModelRequest(model_id="m"))
        for chunk in reading:
            assert chunk.data_chunk.count(b"d") == len(chunk.data_chunk)
            received += len(chunk.data_chunk)
        assert received == LARGER_THAN_ANY_WINDOW
        calls.wait_for_status(versions=0, stored_bytes=0, transient_bytes=0)


def test_version_evicted_while_it_is_being_read_is_read_to_the_end(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=1").address) as calls:
        calls.create("m")
        store(calls, "m", b"d" * LARGER_THAN_ANY_WINDOW, archived=False)
        reading = calls.download("m", 1)
        received = len(next(reading).data_chunk)
        calls.publish("m", b"newer")
        assert calls.numbers("m") == [2]
        assert received + sum(len(chunk.data_chunk) for chunk in reading) == LARGER_THAN_ANY_WINDOW
        with fails(Code.NOT_FOUND, 'no version "1" for model "m" found'):
            calls.data("m", 1)


def test_stored_version_that_is_gone_leaves_its_content_to_a_transient_one(start_server: StartServer) -> None:
    with connected(start_server().address) as calls:
        for model_id in ("stored", "transient"):
            calls.create(model_id)
        calls.store("stored", b"the same")
        calls.publish("transient", b"the same")
        assert calls.status("transient_bytes", "stored_bytes") == {"transient_bytes": "0", "stored_bytes": "8"}
        calls.DeleteModel(api.DeleteModelRequest(model_id="stored"))
        assert calls.data("transient") == b"the same"
