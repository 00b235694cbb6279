"""CreateVersion: what is stored or published, what is refused, and that nothing is left of what wasn't finished."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import (
    Calls,
    Chunk,
    Code,
    OpenRequest,
    body,
    connected,
    data_hash,
    fails,
    header,
    open_channel,
    upload,
)
from tests.support.server import ServerProgram, StartServer, server_here

MIB = 1 << 20

# Beyond this a version goes to a file while it arrives, and isn't gathered in memory.
LARGE = MIB + 1

STORED_AND_TRANSIENT = pytest.mark.parametrize("archived", [True, False], ids=["stored", "transient"])
SMALL_AND_LARGE = pytest.mark.parametrize("size", [10, LARGE], ids=["small", "large"])


def temporary_files(server: ServerProgram) -> list[Path]:
    return list((server.archive_dir / "tmp").iterdir())


def files(server: ServerProgram) -> list[str]:
    """All that a server has on its disk but its own two files."""
    found = (path for path in server.archive_dir.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(server.archive_dir)) for path in found if path.name not in {"LOCK", "FORMAT"})


# stored or transient; data in chunks of any sizes, also empty ones


@STORED_AND_TRANSIENT
@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1],
        [0, 0, 5, 0, 7, 0],
        [1] * 300,
        [1, 127, 128, 16383, 16384, 65535],
        [MIB, 1, 3 * MIB, 0, MIB - 1],
        [4 * MIB - 100],
        [9 * MIB],
    ],
    ids=lambda sizes: f"{len(sizes)} of {sum(sizes)} bytes",
)
def test_version_stored_or_transient_in_chunks_of_any_sizes(
    calls: Calls, model: str, archived: bool, sizes: Sequence[int]
) -> None:
    chunks = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    data = b"".join(chunks)
    before = time.time_ns()
    reply = calls.CreateVersion(iter(upload(model, *chunks, archived=archived, user_data={"accuracy": "0.9"})))
    version = reply.version_info
    assert before <= version.creation_timestamp <= time.time_ns()
    assert version == api.ModelVersionInfo(
        model_id=model,
        version_number=1,
        creation_timestamp=version.creation_timestamp,
        archived=archived,
        data_hash=data_hash(data),
        data_size=len(data),
        user_data={"accuracy": "0.9"},
    )
    assert calls.info(model) == [version]
    assert calls.data(model) == data


@STORED_AND_TRANSIENT
def test_version_has_the_headers_timestamp_if_it_is_not_zero(calls: Calls, model: str, archived: bool) -> None:
    versions = [
        calls.CreateVersion(
            iter(upload(model, b"x", archived=archived, creation_timestamp=timestamp))
        ).version_info.creation_timestamp
        for timestamp in (1, 1633119005107454620, 2**64 - 1)
    ]
    assert versions == [1, 1633119005107454620, 2**64 - 1]
    assert [version.creation_timestamp for version in calls.info(model)] == versions


def test_version_number_in_the_header_is_ignored(calls: Calls, model: str) -> None:
    assert calls.store(model, b"x", version_number=57).version_number == 1
    assert calls.publish(model, b"x", version_number=1).version_number == 2


@STORED_AND_TRANSIENT
@SMALL_AND_LARGE
def test_version_with_the_right_hash(calls: Calls, model: str, archived: bool, size: int) -> None:
    data = b"a" * size
    version = calls.CreateVersion(iter(upload(model, data, archived=archived, data_hash=data_hash(data)))).version_info
    assert version.data_hash == data_hash(data)


# no message at all; first message no header; a second header; a body message of neither kind

NEITHER = Chunk()

INVALID_UPLOADS: dict[str, list[Chunk]] = {
    "no message at all": [],
    "first message a body": [body(b"data")],
    "first message of neither kind": [NEITHER, header("m", data_size=4), body(b"data")],
    "header without version_info": [Chunk(header=Chunk.Header())],
    "a second header": [header("m", data_size=4), header("m", data_size=4), body(b"data")],
    "a second header after data": [header("m", data_size=4), body(b"data"), header("m", data_size=4)],
    "body message of neither kind": [header("m", data_size=4), NEITHER, body(b"data")],
    "body message of neither kind after data": [header("m", data_size=4), body(b"data"), NEITHER],
}


@pytest.mark.parametrize("messages", INVALID_UPLOADS.values(), ids=INVALID_UPLOADS.keys())
def test_upload_out_of_order_is_invalid(calls: Calls, model: str, messages: list[Chunk]) -> None:
    for message in messages:
        if message.header.version_info.model_id:
            message.header.version_info.model_id = model
    with fails(Code.INVALID_ARGUMENT):
        calls.CreateVersion(iter(messages))
    assert calls.numbers(model) == []


@pytest.mark.parametrize(
    ("messages", "valid"),
    [([b"\xff\xff\xff"], 0), ([b"\x0a\x05\x0a"], 0), ([b"\xff\xff\xff"], 1), ([b"\x12\x05\x0a\x09abc"], 1)],
    ids=["first", "first, cut short", "later", "later, cut short"],
)
def test_upload_bytes_that_are_no_valid_message_are_invalid(
    calls: Calls, model: str, messages: list[bytes], valid: int
) -> None:
    good = [header(model, data_size=3).SerializeToString()]
    with fails(Code.INVALID_ARGUMENT):
        calls.method("CreateVersion", raw=True)(iter(good[:valid] + messages))
    assert calls.numbers(model) == []


# fewer bytes than data_size


@STORED_AND_TRANSIENT
@pytest.mark.parametrize(("came", "announced"), [(0, 1), (3, 10), (MIB, LARGE)])
def test_upload_of_fewer_bytes_than_data_size_names_both_figures(
    calls: Calls, model: str, archived: bool, came: int, announced: int
) -> None:
    with fails(Code.INVALID_ARGUMENT) as caught:
        calls.CreateVersion(iter(upload(model, b"a" * came, data_size=announced, archived=archived)))
    assert str(came) in caught.value.details()
    assert str(announced) in caught.value.details()
    assert calls.numbers(model) == []


# more bytes than data_size


@STORED_AND_TRANSIENT
@pytest.mark.parametrize(("announced", "chunks"), [(0, [1]), (10, [10, 1]), (10, [3 * MIB]), (LARGE, [MIB, 1, 1])])
def test_upload_of_more_bytes_than_data_size_is_refused_at_the_first_byte_too_many(
    calls: Calls, model: str, archived: bool, announced: int, chunks: list[int]
) -> None:
    with OpenRequest(
        *upload(model, *(b"a" * size for size in chunks), data_size=announced, archived=archived)
    ) as request:
        # The client hasn't finished: the reply doesn't wait for it.
        with fails(Code.INVALID_ARGUMENT) as caught:
            calls.CreateVersion(request)
        assert str(announced) in caught.value.details()
    assert calls.numbers(model) == []


def test_upload_of_more_bytes_than_data_size_leaves_the_rest_unread(calls: Calls, model: str) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        yield header(model, data_size=MIB)
        while taken < 1000:
            taken += 1
            yield body(b"a" * MIB)

    with fails(Code.INVALID_ARGUMENT):
        calls.CreateVersion(endless())
    assert taken < 1000
    assert calls.store(model, b"the connection lives").version_number == 1


# data_hash set and different, or not base64 of 32 bytes


@STORED_AND_TRANSIENT
@SMALL_AND_LARGE
def test_upload_with_another_hash_is_invalid(calls: Calls, model: str, archived: bool, size: int) -> None:
    with fails(Code.INVALID_ARGUMENT) as caught:
        calls.CreateVersion(iter(upload(model, b"a" * size, archived=archived, data_hash=data_hash(b"b" * size))))
    assert "data_hash" in caught.value.details()
    assert calls.numbers(model) == []


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "not base64 at all!",
        "=",
        data_hash(b"data")[:-1],
        data_hash(b"data") + "=",
        data_hash(b"data") + "AAAA",
        " " + data_hash(b"data"),
        "A" * 44,  # 33 bytes
        "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7",  # hex
        "-_" + "A" * 41 + "=",  # the alphabet of URLs
        "é" * 44,
    ],
)
def test_upload_with_a_hash_that_is_not_base64_of_32_bytes_is_refused_before_any_body_is_read(
    calls: Calls, model: str, text: str
) -> None:
    with OpenRequest(header(model, data_size=4, data_hash=text)) as request, fails(Code.INVALID_ARGUMENT) as caught:
        calls.CreateVersion(request)
    assert "data_hash" in caught.value.details()


# unknown model


@STORED_AND_TRANSIENT
def test_upload_for_an_unknown_model_is_not_found_before_any_body_is_read(calls: Calls, archived: bool) -> None:
    request = OpenRequest(header("x", data_size=LARGE, archived=archived))
    with request, fails(Code.NOT_FOUND, 'no model "x" found'):
        calls.CreateVersion(request)


# disk full, quota, or a transient version larger than the whole memory limit: see test_behaviour_full.py


# clients that are slow, or have stalled


@STORED_AND_TRANSIENT
@pytest.mark.parametrize("stalled", [16, 64])
@pytest.mark.parametrize("size", [100 << 10, 64 * MIB], ids=["small", "large"])
def test_uploads_that_stall_keep_no_other_waiting(
    start_server: StartServer, archived: bool, stalled: int, size: int
) -> None:
    server = start_server(f"--upload_buffer_bytes={16 * MIB}")
    with connected(server.address) as calls, contextlib.ExitStack() as stack:
        calls.create("m")
        channel = stack.enter_context(open_channel(server.address))
        running, requests = [], []
        for _ in range(stalled):
            requests.append(stack.enter_context(OpenRequest(header("m", data_size=size, archived=archived))))
            running.append(Calls(channel).CreateVersion.future(requests[-1]))
            requests[-1].send(body(b"a" * 100))
        for request in requests:
            request.wait_sent()
        Calls(channel).status()  # it came after all of them
        data = [bytes([number]) * MIB for number in range(64)]
        begin = time.monotonic()
        calls.CreateVersion(iter(upload("m", b"x", archived=archived)), timeout=5)
        calls.CreateVersion(iter(upload("m", *data, archived=archived)), timeout=20)
        assert time.monotonic() - begin < 10
        assert calls.data("m", 1) == b"x"
        assert calls.data("m", 2) == b"".join(data)
        assert not any(call.done() for call in running)


# client gone, deadline over, server stopping before the commit


def begin_upload(server: ServerProgram, calls: Calls, request: OpenRequest, model_id: str) -> None:
    """Send what an upload begins with, and wait until the server has begun to write it."""
    request.send(header(model_id, data_size=2 * MIB), body(b"a" * MIB))
    calls.wait_until(lambda: temporary_files(server) != [])


@pytest.mark.parametrize("how", ["cancelled", "connection closed", "deadline over"])
def test_upload_whose_client_is_gone_or_whose_deadline_is_over_leaves_nothing_behind(
    shared_server: ServerProgram, calls: Calls, model: str, how: str
) -> None:
    before, status = files(shared_server), calls.status("versions", "stored_bytes")
    with OpenRequest() as request, open_channel(shared_server.address) as channel:
        doomed = Calls(channel).CreateVersion.future(request, timeout=2 if how == "deadline over" else 30)
        begin_upload(shared_server, calls, request, model)
        if how == "cancelled":
            doomed.cancel()
        elif how == "connection closed":
            channel.close()
        else:
            with fails(Code.DEADLINE_EXCEEDED):
                doomed.result()
        calls.wait_until(lambda: temporary_files(shared_server) == [])
    assert files(shared_server) == before
    assert calls.numbers(model) == []
    assert calls.status(*status) == status
    assert calls.store(model, how.encode() * MIB).version_number == 1


def test_transient_upload_whose_client_is_gone_gives_its_memory_back(start_server: StartServer) -> None:
    server = start_server(f"--cache_max_bytes={3 * MIB}")
    with connected(server.address) as calls, OpenRequest() as request, open_channel(server.address) as channel:
        calls.create("m")
        doomed = Calls(channel).CreateVersion.future(request)
        request.send(header("m", data_size=2 * MIB, archived=False), body(b"a" * MIB))
        request.wait_sent()
        Calls(channel).status()  # it came after the data, and so that has arrived
        with fails(Code.RESOURCE_EXHAUSTED):
            calls.publish("m", b"b" * 3 * MIB)
        doomed.cancel()

        def fits() -> bool:
            try:
                calls.publish("m", b"b" * 3 * MIB)
            except grpc.RpcError as error:
                if error.code() is Code.RESOURCE_EXHAUSTED:
                    return False
                raise
            return True

        calls.wait_until(fits)
        assert calls.data("m") == b"b" * 3 * MIB


async def test_upload_still_running_when_the_server_stops_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelreg.server.DRAIN_SECONDS", 0.1)
    request = OpenRequest(header("m", data_size=2 * MIB), body(b"a" * MIB))

    def begin(address: str) -> tuple[Any, Any]:
        channel = open_channel(address)
        calls = Calls(channel)
        calls.create("m")
        running = calls.CreateVersion.future(request)
        calls.wait_until(lambda: list((tmp_path / "tmp").iterdir()) != [])
        return channel, running

    def end(channel: Any, running: Any) -> None:
        with channel, request, fails(Code.UNAVAILABLE):
            running.result()

    async with server_here(tmp_path) as server:
        channel, running = await trio.to_thread.run_sync(begin, server.address)
        server.stop.set()
        await trio.to_thread.run_sync(end, channel, running)
    left = [path for name in ("tmp", "blobs", "models") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["model.json"]


# the deleted model's upload still running


@STORED_AND_TRANSIENT
@SMALL_AND_LARGE
@pytest.mark.parametrize("again", [False, True], ids=["gone", "created again"])
def test_upload_to_a_model_deleted_meanwhile_is_not_found_at_commit_and_stores_nothing(
    calls: Calls, shared_server: ServerProgram, model: str, archived: bool, size: int, again: bool
) -> None:
    before = calls.status("models", "versions", "stored_bytes", "transient_bytes")
    with OpenRequest(header(model, data_size=size, archived=archived)) as request:
        running = calls.CreateVersion.future(request)
        request.wait_sent()
        calls.status()  # it came after the header, and so the upload has begun
        calls.DeleteModel(api.DeleteModelRequest(model_id=model))
        if again:
            calls.create(model)
        request.send(body(b"a" * size))
        request.close()
        with fails(Code.NOT_FOUND, f'no model "{model}" found'):
            running.result()
    assert calls.model_ids().count(model) == again
    if again:
        assert calls.numbers(model) == []
        calls.DeleteModel(api.DeleteModelRequest(model_id=model))
    before["models"] = str(int(before["models"]) - 1)
    assert calls.status(*before) == before
    assert temporary_files(shared_server) == []
