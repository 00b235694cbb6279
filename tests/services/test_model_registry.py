"""What the servicer adds to the domain's calls; all of them together are shown in tests/clients/."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from modelreg import __version__
from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.errors import InvalidArgument
from modelreg.log import LineQuota, silent_logger
from modelreg.registry.records import ModelInfo, UploadHeader, VersionInfo
from modelreg.registry.registry import open_registry
from modelreg.services import messages
from modelreg.services.audit import Audit
from modelreg.services.messages import Update, Updates, field_one, model_message, upload_header, version_message
from modelreg.services.model_registry import ModelRegistryServicer
from modelreg.services.open_files import OpenFiles
from modelreg.services.status import overall_load
from modelreg.storage.archive import open_archive
from modelreg.transport.requests import NO_REQUEST, Request

AUDIT = Audit(silent_logger(), LineQuota(silent_logger()))

DIGEST = hashlib.sha256(b"data").digest()


@pytest.fixture
async def servicer(tmp_path: Path) -> AsyncIterator[ModelRegistryServicer]:
    async with (
        open_archive(tmp_path, silent_logger()) as archive,
        open_registry(archive, cache_max_items=10, cache_max_bytes=1000) as registry,
    ):
        yield ModelRegistryServicer(
            registry, max_data_chunk_bytes=1000, tokens=lambda: None, audit=AUDIT, open_files=OpenFiles(100)
        )


# Status


async def test_status_answers_without_a_descriptor_left(
    servicer: ModelRegistryServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", fail)
    reply = await servicer.Status(common_pb2.StatusRequest(names=["overall_load"]), request=NO_REQUEST)
    assert dict(reply.statuses) == {"overall_load": "254"}


async def test_status_without_names_asks_for_nothing(servicer: ModelRegistryServicer) -> None:
    assert await servicer.Status(common_pb2.StatusRequest(), request=NO_REQUEST) == common_pb2.StatusReply()


async def test_status_of_a_star_is_all_there_is(
    servicer: ModelRegistryServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 9.0, 9.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    reply = await servicer.Status(common_pb2.StatusRequest(names=["*"]), request=NO_REQUEST)
    assert dict(reply.statuses) == {
        "overall_load": "25",
        "models": "0",
        "versions": "0",
        "stored_bytes": "0",
        "transient_bytes": "0",
        "evicted": "0",
        "watchers": "0",
        "damaged": "0",
        "damaged_versions": "",
    }


async def test_status_gives_what_is_known_of_what_is_asked(servicer: ModelRegistryServicer) -> None:
    reply = await servicer.Status(
        common_pb2.StatusRequest(names=["models", "nonsense", "models", "watchers"]), request=NO_REQUEST
    )
    assert dict(reply.statuses) == {"models": "0", "watchers": "0"}


async def test_status_tells_the_largest_version_that_is_taken_when_it_is_asked(servicer: ModelRegistryServicer) -> None:
    names = ["max_version_bytes", "cache_max_bytes"]
    reply = await servicer.Status(common_pb2.StatusRequest(names=names), request=NO_REQUEST)
    assert dict(reply.statuses) == {"max_version_bytes": "0", "cache_max_bytes": "1000"}


async def test_status_takes_so_many_names(servicer: ModelRegistryServicer) -> None:
    names = ["models"] * 100
    reply = await servicer.Status(common_pb2.StatusRequest(names=names), request=NO_REQUEST)
    assert dict(reply.statuses) == {"models": "0"}
    with pytest.raises(InvalidArgument, match="101 names"):
        await servicer.Status(common_pb2.StatusRequest(names=[*names, "models"]), request=NO_REQUEST)


@pytest.mark.parametrize(
    ("load", "cores", "expected"),
    [(0.0, 2, 0), (0.004, 1, 0), (1.0, 4, 25), (2.0, 2, 100), (1000.0, 2, 254), (1, None, 100)],
)
def test_overall_load_is_in_percent_of_the_cores_and_never_says_that_nobody_can_be_served(
    monkeypatch: pytest.MonkeyPatch, load: float, cores: int | None, expected: int
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert overall_load() == expected


# Version


async def test_version(servicer: ModelRegistryServicer) -> None:
    reply = await servicer.Version(common_pb2.VersionRequest())
    assert [version.name for version in reply.versions] == ["cogment-api", "grpc", "modelreg"]
    assert {version.name: version.version for version in reply.versions}["modelreg"] == __version__


# RetrieveVersionData


@given(st.integers(1, 300_000))
@example(127)
@example(128)
@example(16383)
@example(16384)
@example(2097151)
@example(2097152)
def test_prefix_of_a_chunk_is_what_protobuf_writes(size: int) -> None:
    message = api.RetrieveVersionDataReplyChunk(data_chunk=bytes(size)).SerializeToString()
    assert message[: len(message) - size] == field_one(size)


def test_prefix_of_an_empty_chunk_is_one_that_protobuf_reads() -> None:
    assert api.RetrieveVersionDataReplyChunk.FromString(field_one(0)).data_chunk == b""


# Messages


def test_model_message() -> None:
    message = model_message(ModelInfo(model_id="m", user_data={"a": "b"}))
    assert message == api.ModelInfo(model_id="m", user_data={"a": "b"})


def test_version_message() -> None:
    version = VersionInfo(
        model_id="m", number=2**32 - 1, timestamp=2**64 - 1, stored=True, digest=DIGEST, size=4, user_data={"a": "b"}
    )
    assert version_message(version) == api.ModelVersionInfo(
        model_id="m",
        version_number=2**32 - 1,
        creation_timestamp=2**64 - 1,
        archived=True,
        data_hash="Om6weQ85rIfJTzhWst0sXREOaBFgImGpqSPTuyOtyLc=",
        data_size=4,
        user_data={"a": "b"},
    )


def with_metadata(*metadata: tuple[str, str]) -> Request:
    return attrs.evolve(NO_REQUEST, fields=tuple((name.encode(), value.encode()) for name, value in metadata))


def test_upload_header() -> None:
    message = api.ModelVersionInfo(
        model_id="m",
        version_number=57,
        creation_timestamp=3,
        archived=True,
        data_hash=base64.b64encode(DIGEST).decode(),
        data_size=4,
        user_data={"a": "b"},
    )
    assert upload_header(message, NO_REQUEST) == UploadHeader(
        model_id="m", stored=True, size=4, digest=DIGEST, timestamp=3, user_data={"a": "b"}
    )


def test_upload_header_that_says_little() -> None:
    assert upload_header(api.ModelVersionInfo(model_id="m"), with_metadata(("user-agent", "x"))) == UploadHeader(
        model_id="m", stored=False, size=0
    )


@given(st.text(min_size=1))
def test_hash_that_is_not_32_bytes_in_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="data_hash"):
        upload_header(api.ModelVersionInfo(model_id="m", data_hash=text), NO_REQUEST)


def test_request_id() -> None:
    assert (
        upload_header(api.ModelVersionInfo(), with_metadata(("modelreg-request-id", "x" * 128))).request_id == "x" * 128
    )


@pytest.mark.parametrize("values", [[""], ["x" * 129], ["a", "b"], ["a", "a"]])
def test_request_id_that_is_none_too_long_or_not_one_is_refused(values: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="modelreg-request-id"):
        upload_header(api.ModelVersionInfo(), with_metadata(*(("modelreg-request-id", value) for value in values)))


# Downloads that go on


async def download(servicer: ModelRegistryServicer, size: int, *offsets: str) -> list[bytes]:
    """The chunks of a transient version of so many bytes, from an offset on."""
    await servicer.CreateOrUpdateModel(
        api.CreateOrUpdateModelRequest(model_info=api.ModelInfo(model_id="m")), NO_REQUEST
    )

    async def upload() -> AsyncIterator[api.CreateVersionRequestChunk]:
        version = api.ModelVersionInfo(model_id="m", data_size=size)
        yield api.CreateVersionRequestChunk(header=api.CreateVersionRequestChunk.Header(version_info=version))
        yield api.CreateVersionRequestChunk(body=api.CreateVersionRequestChunk.Body(data_chunk=CONTENT[:size]))

    await servicer.CreateVersion(upload(), NO_REQUEST)
    request = with_metadata(*(("modelreg-offset", offset) for offset in offsets))
    asked = api.RetrieveVersionDataRequest(model_id="m", version_number=-1)
    chunks = []
    async with aclosing(servicer.RetrieveVersionData(asked, request)) as replies:
        async for reply in replies:
            assert isinstance(reply, api.RetrieveVersionDataReplyChunk)
            chunks.append(reply.data_chunk)
    return chunks


CONTENT = os.urandom(2500)


@pytest.mark.parametrize(
    ("size", "offset", "chunks"),
    [
        (500, None, [(0, 500)]),
        (500, "0", [(0, 500)]),
        (500, "1", [(0, 0), (1, 500)]),
        (500, "499", [(0, 0), (499, 500)]),
        (500, "500", [(0, 0)]),
        (0, None, [(0, 0)]),
        (0, "0", [(0, 0)]),
        (999, "0000000000000000998", [(0, 0), (998, 999)]),
    ],
)
async def test_download_from_an_offset(
    servicer: ModelRegistryServicer, size: int, offset: str | None, chunks: list[tuple[int, int]]
) -> None:
    """A chunk without data says that the offset was heeded."""
    found = await download(servicer, size, *([] if offset is None else [offset]))
    assert found == [CONTENT[start:end] for start, end in chunks]


@pytest.mark.parametrize("offsets", [["501"], ["-1"], ["x"], [""], ["1", "1"], ["9" * 20]])
async def test_download_from_no_offset_is_refused(servicer: ModelRegistryServicer, offsets: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="modelreg-offset"):
        await download(servicer, 500, *offsets)


# Idle watches


async def replies_until(servicer: ModelRegistryServicer, seconds: float, *metadata: tuple[str, str]) -> list[Update]:
    """What a watch of a new model is sent in so many seconds."""
    model = api.CreateOrUpdateModelRequest(model_info=api.ModelInfo(model_id="m"))
    await servicer.CreateOrUpdateModel(model, NO_REQUEST)
    request = with_metadata(*metadata)
    replies: list[Update] = []
    with trio.move_on_after(seconds):
        async with aclosing(servicer.VersionUpdate(api.VersionUpdateRequest(model_id="m"), request)) as watch:
            async for reply in watch:
                replies.append(reply)  # noqa: PERF401  # kept when the time is over
    return replies


@pytest.mark.parametrize(("asked", "times"), [("20", 3), ("30.5", 2), ("0", 70), ("0.001", 70), ("999999999", 0)])
async def test_watch_that_asks_is_kept_alive(
    servicer: ModelRegistryServicer, autojump_clock: trio.testing.MockClock, asked: str, times: int
) -> None:
    replies = await replies_until(servicer, 70.5, ("modelreg-watch-keepalive", asked))
    assert [reply.SerializeToString() for reply in replies] == [b""] * times


async def test_watch_that_does_not_ask_hears_of_versions_only(
    servicer: ModelRegistryServicer, autojump_clock: trio.testing.MockClock
) -> None:
    assert await replies_until(servicer, 1e6) == []


@pytest.mark.parametrize("values", [[""], ["x"], ["-1"], ["inf"], ["nan"], ["1e3"], ["²"], ["9" * 10], ["20", "20"]])
async def test_watch_that_asks_for_no_seconds_is_refused(servicer: ModelRegistryServicer, values: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="modelreg-watch-keepalive"):
        await replies_until(servicer, 1, *(("modelreg-watch-keepalive", value) for value in values))


# VersionUpdate


def test_watchers_get_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(number: int, size: int = 0) -> VersionInfo:
        return VersionInfo(
            model_id="m", number=number, timestamp=1, stored=False, digest=DIGEST, size=4, user_data={"a": "x" * size}
        )

    updates = Updates()
    one = version(1)
    encoded = updates.encoded(one)
    assert api.VersionUpdateReply.FromString(encoded).version_info == version_message(one)
    assert updates.encoded(one) is encoded
    assert updates.encoded(version(1, 5)) != encoded  # of a model that was made again
    assert updates.encoded(one) == encoded
    monkeypatch.setattr(messages, "UPDATES_BYTES", 1000)
    monkeypatch.setattr(messages, "UPDATES", 3)
    kept = [version(number) for number in range(2, 5)]
    for each in kept:
        updates.encoded(each)
    assert [number for _, number in updates._kept] == [2, 3, 4]
    large = version(5, 2000)
    assert updates.encoded(large) is updates.encoded(large)
    assert [number for _, number in updates._kept] == [5]
    assert updates._bytes == len(updates.encoded(large))
