from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from modelreg.errors import (
    DataLoss,
    InvalidArgument,
    ModelregError,
    NotFound,
    ResourceExhausted,
    StorageFailed,
    Unavailable,
)
from modelreg.log import LineQuota, silent_logger
from modelreg.registry import registry as registry_module
from modelreg.registry.numbers import BLOCK
from modelreg.registry.records import ModelInfo, UploadHeader, VersionInfo
from modelreg.registry.registry import Registry, open_registry
from modelreg.registry.transfer import VersionReader
from modelreg.registry.user_data import UserDataLimits
from modelreg.storage import durable, sidecars
from modelreg.storage.archive import Archive
from modelreg.storage.layout import HIGHEST_NUMBER, Layout
from modelreg.storage.sidecars import ModelRecord
from tests.storage.surroundings import (
    LARGE,
    all_closed,
    archive_at,
    blobs_below,
    cancelled_at_every_step,
    fail_directory_syncs,
    fail_file_syncs,
    files_below,
    open_descriptors,
    pattern,
    small_file_system,
)

NOW = 1_700_000_000_000_000_000
SIZES = [0, 10, LARGE]
KINDS = pytest.mark.parametrize("stored", [True, False], ids=["stored", "transient"])


@asynccontextmanager
async def registry_at(
    path: Path, *, max_items: int = 1000, max_bytes: int = 1 << 30, crash: bool = False
) -> AsyncIterator[Registry]:
    """A registry of its own archive. With *crash* it isn't closed, only left: nothing is written that a power cut wouldn't leave."""
    before = open_descriptors()
    async with archive_at(path) as archive:
        if crash:
            yield Registry(
                archive,
                cache_max_items=max_items,
                cache_max_bytes=max_bytes,
                max_version_bytes=0,
                user_data_limits=UserDataLimits(),
                clock=lambda: NOW,
                logger=silent_logger(),
                quota=LineQuota(silent_logger()),
            )
        else:
            async with open_registry(
                archive, cache_max_items=max_items, cache_max_bytes=max_bytes, clock=lambda: NOW
            ) as registry:
                yield registry
                assert archive._budget.used == 0
    if not crash:
        with trio.fail_after(10):
            await all_closed(before)
    assert not list((path / "tmp").iterdir())


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("m", {})
        yield registry


def archive_of(registry: Registry) -> Archive:
    return registry._archive


def header(content: bytes, *, stored: bool = True, model_id: str = "m", request_id: str | None = None) -> UploadHeader:
    return UploadHeader(
        model_id=model_id,
        stored=stored,
        size=len(content),
        digest=hashlib.sha256(content).digest(),
        user_data={"a": "b"},
        request_id=request_id,
    )


async def add(
    registry: Registry,
    content: bytes = b"content",
    *,
    stored: bool = True,
    model_id: str = "m",
    request_id: str | None = None,
) -> VersionInfo:
    async with registry.upload(header(content, stored=stored, model_id=model_id, request_id=request_id)) as upload:
        for start in range(0, len(content), 1_000_003):
            await upload.write(memoryview(content)[start : start + 1_000_003])
        return await upload.commit()


async def bytes_of(reader: VersionReader) -> bytes:
    if reader.data is not None:
        return bytes(reader.data)
    if reader.fd is None:
        return await reader.load()
    parts = []
    for start in range(0, reader.version.size, 1 << 20):
        end = min(start + (1 << 20), reader.version.size)
        await reader.check(end)
        parts.append(os.pread(reader.fd, end - start, start))
    return b"".join(parts)


async def read(registry: Registry, number: int, model_id: str = "m") -> bytes:
    async with registry.read(model_id, number) as reader:
        return await bytes_of(reader)


def numbers(registry: Registry, model_id: str = "m") -> list[int]:
    return [version.number for version in registry.versions(model_id)]


def ceiling_on_disk(path: Path, model_id: str = "m") -> int:
    return sidecars.read(Layout(path).model_record(model_id), ModelRecord).number_ceiling


# Models


async def test_models_in_order(registry: Registry) -> None:
    for model_id in ("z", "a/b", "A", "é", "\U0001f600", "\uffff"):
        await registry.create_or_update_model(model_id, {"id": model_id})
    assert [model.model_id for model in registry.models()] == ["A", "a/b", "m", "z", "é", "\uffff", "\U0001f600"]
    assert [model.model_id for model in islice(registry.models(offset=1), 2)] == ["a/b", "m"]
    assert list(registry.models(offset=7)) == list(registry.models(offset=100)) == []
    assert registry.model("a/b") == ModelInfo(model_id="a/b", user_data={"id": "a/b"})
    with pytest.raises(NotFound, match='no model "x" found'):
        registry.model("x")


async def test_updating_replaces_user_data_and_nothing_else(tmp_path: Path) -> None:
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("m", {"a": "1", "b": "2"})
        await add(registry)
        await add(registry, stored=False)
        await registry.create_or_update_model("m", {"c": "3"})
        assert registry.model("m").user_data == {"c": "3"}
        assert numbers(registry) == [1, 2]
        assert ceiling_on_disk(tmp_path) == 1 + BLOCK
        await registry.create_or_update_model("m", {"c": "3"})
    async with registry_at(tmp_path) as registry:
        assert registry.model("m").user_data == {"c": "3"}
        assert (await add(registry)).number == 3


async def test_user_data_is_the_registrys_own(registry: Registry) -> None:
    data = {"a": "1"}
    await registry.create_or_update_model("m", data)
    data["a"] = "2"
    assert registry.model("m").user_data == {"a": "1"}


async def test_a_model_is_created_by_many_at_once(registry: Registry) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(registry.create_or_update_model, "new", {"n": str(number)})
    assert [model.model_id for model in registry.models()] == ["m", "new"]
    record = sidecars.read(archive_of(registry)._layout.model_record("new"), ModelRecord)
    assert record.user_data == registry.model("new").user_data


async def test_creations_and_deletions_race(registry: Registry, tmp_path: Path) -> None:
    async def come_and_go(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(6):
            try:
                if chance.random() < 0.4:
                    await registry.delete_model("m")
                elif chance.random() < 0.5:
                    await registry.create_or_update_model("m", {"seed": str(chance.random())})
                else:
                    await add(registry, b"same", stored=chance.random() < 0.5)
            except NotFound:
                await registry.create_or_update_model("m", {})

    async with trio.open_nursery() as nursery:
        for seed in range(8):
            nursery.start_soon(come_and_go, seed)
    await registry.create_or_update_model("m", {"the": "end"})
    assert len(list(registry.models())) == 1
    stored = [version for version in registry.versions("m") if version.stored]
    files = files_below(tmp_path)
    assert len([name for name in files if "/versions/" in name]) == len(stored)
    assert registry.statistics().stored_bytes == (4 if blobs_below(tmp_path) else 0)
    await registry.delete_model("m")
    assert files_below(tmp_path) == set()
    assert registry.statistics().stored_bytes == registry.statistics().transient_bytes == 0


@pytest.mark.parametrize("model_id", ["", "a\nb", "x" * 513])
async def test_what_is_no_model_id_is_an_invalid_argument_in_every_call(model_id: str, registry: Registry) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: registry.create_or_update_model(model_id, {}),
        lambda: registry.delete_model(model_id),
        lambda: add(registry, model_id=model_id),
        lambda: read(registry, 1, model_id),
        lambda: anext(registry.watch(model_id)),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument):
            await call()
    with pytest.raises(InvalidArgument):
        registry.model(model_id)
    with pytest.raises(InvalidArgument):
        registry.versions(model_id)
    with pytest.raises(InvalidArgument):
        registry.version(model_id, 1)


async def test_an_unknown_model_is_not_found_in_every_call(registry: Registry) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: registry.delete_model("x"),
        lambda: add(registry, model_id="x"),
        lambda: read(registry, 1, "x"),
        lambda: anext(registry.watch("x")),
    ]
    for call in calls:
        with pytest.raises(NotFound, match='no model "x" found'):
            await call()


# Versions


@KINDS
@pytest.mark.parametrize("size", SIZES)
async def test_what_goes_in_comes_out(stored: bool, size: int, registry: Registry) -> None:
    content = pattern(size)
    version = await add(registry, content, stored=stored)
    assert version == VersionInfo(
        model_id="m",
        number=1,
        timestamp=NOW,
        stored=stored,
        digest=hashlib.sha256(content).digest(),
        size=size,
        user_data={"a": "b"},
    )
    assert registry.version("m", 1) == registry.version("m", -1) == version
    assert await read(registry, 1) == content
    assert await read(registry, -1) == content


async def test_what_was_stored_is_there_after_a_restart_and_what_was_not_is_not(tmp_path: Path) -> None:
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("m", {})
        first = await add(registry, pattern(LARGE))
        await add(registry, b"transient", stored=False)
        third = await add(registry, b"small")
    async with registry_at(tmp_path) as registry:
        assert list(registry.versions("m")) == [first, third]
        assert await read(registry, 1) == pattern(LARGE)
        assert await read(registry, -1) == b"small"
        assert (await add(registry, stored=False)).number == 4


async def test_versions_that_are_not_there(registry: Registry) -> None:
    await add(registry)
    for number, named in ((0, "0"), (2, "2"), (-2, "n-2"), (2**31, "2147483648")):
        with pytest.raises(NotFound, match=f'no version "{named}" for model "m" found'):
            registry.version("m", number)
        with pytest.raises(NotFound):
            await read(registry, number)


async def test_a_timestamp_of_ones_own(registry: Registry) -> None:
    async with registry.upload(UploadHeader(model_id="m", stored=True, size=0, timestamp=5)) as upload:
        assert (await upload.commit()).timestamp == 5


@KINDS
@pytest.mark.parametrize("size", [10, LARGE])
async def test_uploads_that_are_wrong_leave_nothing(
    stored: bool, size: int, registry: Registry, tmp_path: Path
) -> None:
    content = pattern(size)
    before = files_below(tmp_path)
    async with registry.upload(header(content, stored=stored)) as upload:
        room = upload.room(size + 1)
        if room is not None:  # never for more than announced
            assert len(room) <= size
            upload.filled(0)
        await upload.write(memoryview(content))
        assert upload.room(1) is None
    with pytest.raises(InvalidArgument, match=f"{size - 1} bytes of data came, data_size announced {size}"):
        async with registry.upload(header(content, stored=stored)) as upload:
            await upload.write(memoryview(content)[:-1])
            await upload.commit()
    with pytest.raises(InvalidArgument, match=f"more data came than the {size} bytes"):
        async with registry.upload(header(content, stored=stored)) as upload:
            await upload.write(memoryview(content))
            await upload.write(memoryview(b""))
            await upload.write(memoryview(b"!"))
    with pytest.raises(InvalidArgument, match="another SHA-256"):
        async with registry.upload(header(content, stored=stored)) as upload:
            await upload.write(memoryview(content[:-1] + b"!"))
            await upload.commit()
    async with registry.upload(header(content, stored=stored)) as upload:
        await upload.write(memoryview(content))
    assert numbers(registry) == []
    assert files_below(tmp_path) == before
    assert registry.statistics().stored_bytes == registry.statistics().transient_bytes == 0
    assert (await add(registry, content, stored=stored)).number == 1


@KINDS
@pytest.mark.parametrize("size", [10, LARGE])
async def test_an_upload_cancelled_at_any_step_is_a_version_or_nothing(
    stored: bool, size: int, registry: Registry, tmp_path: Path
) -> None:
    content = pattern(size)
    archive = archive_of(registry)

    async def check() -> None:
        there = list(registry.versions("m"))
        assert archive._budget.used == 0
        assert registry._transient._arriving == 0
        assert blobs_below(tmp_path) == {version.digest.hex() for version in there if stored}
        assert not list((tmp_path / "tmp").iterdir())
        for version in there:
            assert await read(registry, version.number) == content
        sidecars_there = [path.name for path in (tmp_path / "models" / "m" / "versions").iterdir()]
        assert len(sidecars_there) == (len(there) if stored else 0)
        await registry.delete_model("m")
        await registry.create_or_update_model("m", {})
        assert blobs_below(tmp_path) == set()
        assert archive.blobs.bytes == 0

    async def work() -> None:
        await add(registry, content, stored=stored)

    await cancelled_at_every_step(work, check)


async def test_a_read_cancelled_at_any_step_leaves_nothing_open(registry: Registry) -> None:
    await add(registry, pattern(LARGE))
    archive_of(registry).blobs._sound.clear()
    before = open_descriptors()

    async def work() -> None:
        await read(registry, 1)

    async def check() -> None:
        assert open_descriptors() <= before
        assert archive_of(registry).blobs._references == {registry.version("m", 1).digest: 1}

    await cancelled_at_every_step(work, check)


async def test_a_deletion_cancelled_at_any_step_is_whole(registry: Registry, tmp_path: Path) -> None:
    async def work() -> None:
        await registry.create_or_update_model("m", {})
        await add(registry, stored=True)
        await add(registry, b"other", stored=False)
        await registry.delete_model("m")

    async def check() -> None:
        there = bool(list(registry.models()))
        assert there == (tmp_path / "models" / "m").exists()
        if there:
            await registry.delete_model("m")
        assert files_below(tmp_path) == set()
        assert registry.statistics().stored_bytes == registry.statistics().transient_bytes == 0

    await cancelled_at_every_step(work, check)


# Many at once


async def follow(registry: Registry, count: int, seen: list[int], model_id: str = "m") -> None:
    async with aclosing(registry.watch(model_id)) as versions:
        async for version in versions:
            assert version is not None
            assert registry.version(model_id, version.number) == version
            seen.append(version.number)
            if version.number == count:
                return


@pytest.mark.parametrize("kind", ["stored", "transient", "both"])
async def test_a_hundred_uploads_to_one_model_at_once(kind: str, registry: Registry) -> None:
    given: list[int] = []
    watchers: list[list[int]] = [[] for _ in range(5)]

    async def upload(number: int) -> None:
        stored = kind == "stored" or (kind == "both" and number % 2 == 0)
        size = LARGE if number % 25 == 0 else 1000
        given.append((await add(registry, pattern(size, seed=number), stored=stored)).number)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for seen in watchers:
                nursery.start_soon(follow, registry, 100, seen)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(100):
                nursery.start_soon(upload, number)
    assert sorted(given) == numbers(registry) == list(range(1, 101))
    assert watchers == [list(range(1, 101))] * 5


@pytest.mark.parametrize("size", [10, LARGE])
async def test_the_same_content_thirty_two_times_at_once(size: int, registry: Registry, tmp_path: Path) -> None:
    content = pattern(size)
    async with trio.open_nursery() as nursery:
        for _ in range(32):
            nursery.start_soon(add, registry, content)
    assert numbers(registry) == list(range(1, 33))
    assert blobs_below(tmp_path) == {hashlib.sha256(content).hexdigest()}
    assert registry.statistics().stored_bytes == size
    assert await read(registry, 17) == content
    await registry.delete_model("m")
    assert blobs_below(tmp_path) == set()


async def test_the_same_request_at_once_and_after_a_restart(tmp_path: Path) -> None:
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("m", {})
        given: list[VersionInfo] = []

        async def upload(stored: bool) -> None:
            given.append(await add(registry, stored=stored, request_id="r" if stored else "t"))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(upload, number % 2 == 0)
        assert len(given) == 10
        assert {version.number for version in given} == set(numbers(registry)) == {1, 2}
        stored = await add(registry, request_id="r")
    async with registry_at(tmp_path) as registry:
        assert await add(registry, request_id="r") == stored
        assert registry.committed(header(b"content", request_id="r")) == stored
        assert (await add(registry, request_id="other")).number > stored.number


async def test_a_request_that_failed_can_be_sent_again(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        fail_file_syncs(broken)
        with pytest.raises(StorageFailed):
            await add(registry, request_id="r")
    assert registry.committed(header(b"", request_id="r")) is None
    assert (await add(registry, request_id="r")).number == 1


# Uploads that create their model


def creating(content: bytes, *, stored: bool = True) -> UploadHeader:
    return attrs.evolve(header(content, stored=stored, model_id="new"), creates_model=True)


@KINDS
async def test_an_upload_creates_its_model_when_it_is_committed(stored: bool, registry: Registry) -> None:
    assert registry.committed(creating(b"content")) is None
    for number in (1, 2):
        async with registry.upload(creating(b"content", stored=stored)) as upload:
            assert (len(list(registry.models())) == 2) is (number == 2)
            await upload.write(memoryview(b"content"))
            assert (await upload.commit()).number == number
    assert [model.model_id for model in registry.models()] == ["m", "new"]


@KINDS
async def test_an_upload_that_fails_creates_no_model(
    stored: bool, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgument):
        async with registry.upload(creating(b"content", stored=stored)) as upload:
            await upload.commit()  # before its data has come

    async def full(*_: object) -> None:
        raise ResourceExhausted("no space")

    committing: tuple[object, str] = (
        (archive_of(registry), "store_version") if stored else (registry, "_reserve_number")
    )
    monkeypatch.setattr(*committing, full)
    with pytest.raises(ResourceExhausted):
        async with registry.upload(creating(b"content", stored=stored)) as upload:
            await upload.write(memoryview(b"content"))
            await upload.commit()
    assert [model.model_id for model in registry.models()] == ["m"]
    monkeypatch.undo()
    async with registry_at(tmp_path / "another") as another:  # nor does a directory of it stay
        assert list(another.models()) == []
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m"]


@KINDS
async def test_a_model_that_another_upload_uses_stays(
    stored: bool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that created it fails while another one commits to it, or is about to."""
    committing: tuple[object, str] = (
        (archive_of(registry), "store_version") if stored else (registry, "_reserve_number")
    )
    entered, go_on = trio.Event(), trio.Event()

    async def full(*_: object) -> None:
        entered.set()
        await go_on.wait()
        raise ResourceExhausted("no space")

    async def fail() -> None:
        with pytest.raises(ResourceExhausted):
            async with registry.upload(creating(b"one", stored=stored)) as upload:
                await upload.write(memoryview(b"one"))
                await upload.commit()

    async def succeed() -> None:
        async with registry.upload(creating(b"two", stored=stored)) as upload:
            await upload.write(memoryview(b"two"))
            await upload.commit()

    for in_time in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(*committing, full)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                await entered.wait()
                patch.undo()
                if in_time:
                    nursery.start_soon(succeed)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                go_on.set()
        if not in_time:
            await succeed()
        assert len(list(registry.versions("new"))) == 1
        await registry.delete_model("new")
        entered, go_on = trio.Event(), trio.Event()


# Deletions beside other work


@KINDS
@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_model_deleted_during_an_upload(stored: bool, size: int, registry: Registry, tmp_path: Path) -> None:
    content = pattern(size)
    with pytest.raises(NotFound, match='no model "m" found'):
        async with registry.upload(header(content, stored=stored)) as upload:
            await upload.write(memoryview(content))
            await registry.delete_model("m")
            await upload.commit()
    assert files_below(tmp_path) == set()
    assert registry.statistics().stored_bytes == registry.statistics().transient_bytes == 0


@KINDS
async def test_a_model_created_anew_during_an_upload_is_another_one(
    stored: bool, registry: Registry, tmp_path: Path
) -> None:
    await add(registry, b"old 1")
    await add(registry, b"old 2", stored=False)
    with pytest.raises(NotFound):
        async with registry.upload(header(b"content", stored=stored)) as upload:
            await upload.write(memoryview(b"content"))
            await registry.delete_model("m")
            await registry.create_or_update_model("m", {})
            await upload.commit()
    assert numbers(registry) == []
    assert (await add(registry, b"new", stored=stored)).number == 1
    assert await read(registry, 1) == b"new"


@KINDS
@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_model_deleted_while_a_version_is_read(
    stored: bool, size: int, registry: Registry, tmp_path: Path
) -> None:
    content = pattern(size)
    await add(registry, content, stored=stored)
    async with registry.read("m", 1) as reader:
        await registry.delete_model("m")
        await registry.create_or_update_model("m", {})
        await add(registry, b"other")
        assert await bytes_of(reader) == content
    assert blobs_below(tmp_path) == {hashlib.sha256(b"other").hexdigest()}


class Held:
    """Holds up the writing of versions' sidecars."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        write = sidecars.write_version

        def held_up(layout: Layout, record: sidecars.VersionRecord) -> None:
            self.go_on.wait(10)
            write(layout, record)

        monkeypatch.setattr(sidecars, "write_version", held_up)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.go_on.set()


async def test_a_deletion_waits_for_commits_under_way(
    registry: Registry, held: Held, tmp_path: Path, nursery: trio.Nursery
) -> None:
    committed: list[VersionInfo] = []

    async def upload() -> None:
        committed.append(await add(registry))

    nursery.start_soon(upload)
    await trio.testing.wait_all_tasks_blocked()
    deleted = trio.Event()

    async def delete() -> None:
        await registry.delete_model("m")
        deleted.set()

    nursery.start_soon(delete)
    await trio.testing.wait_all_tasks_blocked()
    assert not deleted.is_set()
    with pytest.raises(NotFound):
        await add(registry, b"too late")
    held.go_on.set()
    await deleted.wait()
    assert len(committed) == 1
    assert files_below(tmp_path) == set()


async def test_a_later_version_is_seen_after_an_earlier_one(
    registry: Registry, held: Held, nursery: trio.Nursery
) -> None:
    seen: list[int] = []
    nursery.start_soon(follow, registry, 2, seen)
    nursery.start_soon(add, registry)
    await trio.testing.wait_all_tasks_blocked()
    second = trio.Event()

    async def upload() -> None:
        await add(registry, b"quick", stored=False)
        second.set()

    nursery.start_soon(upload)
    await trio.testing.wait_all_tasks_blocked()
    assert not second.is_set()
    assert numbers(registry) == []
    held.go_on.set()
    await second.wait()
    assert numbers(registry) == [1, 2]


async def test_a_deletion_that_fails_changes_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    await add(registry)

    def fail(path: Path, final: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(durable, "move_away", fail)
        with pytest.raises(StorageFailed):
            await registry.delete_model("m")
    assert await read(registry, 1) == b"content"
    assert (await add(registry)).number == 2
    await registry.delete_model("m")
    assert list(registry.models()) == []


# Watches


async def next_number(versions: AsyncIterator[VersionInfo | None]) -> int:
    version = await anext(versions)
    assert version is not None
    return version.number


async def test_a_watch_begins_with_the_newest(registry: Registry) -> None:
    for _ in range(3):
        await add(registry)
    async with aclosing(registry.watch("m")) as versions:
        assert await next_number(versions) == 3
        await add(registry)
        await add(registry, stored=False)
        assert registry.statistics().watchers == 1
        assert [await next_number(versions), await next_number(versions)] == [4, 5]
    assert registry.statistics().watchers == 0


async def test_a_watch_of_an_empty_model_waits(registry: Registry, nursery: trio.Nursery) -> None:
    seen: list[int] = []
    nursery.start_soon(follow, registry, 1, seen)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == []
    await registry.create_or_update_model("m", {"changed": "meanwhile"})
    await trio.testing.wait_all_tasks_blocked()
    assert seen == []
    await add(registry)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == [1]


async def test_a_watch_tells_of_silence_and_misses_nothing(
    registry: Registry, autojump_clock: trio.testing.MockClock
) -> None:
    await add(registry)
    began = trio.current_time()
    async with aclosing(registry.watch("m", silence=20)) as versions:
        assert await next_number(versions) == 1
        for turn in (1, 2):
            assert await anext(versions) is None
            assert trio.current_time() - began == 20 * turn
        await add(registry)  # nothing waits for it
        assert await next_number(versions) == 2
        assert await anext(versions) is None
        await registry.delete_model("m")
        with pytest.raises(NotFound):
            await anext(versions)


async def test_a_slow_watcher_passes_over_what_is_gone(tmp_path: Path) -> None:
    async with registry_at(tmp_path, max_items=2) as registry:
        await registry.create_or_update_model("m", {})
        async with aclosing(registry.watch("m")) as versions:
            await add(registry, stored=False)
            assert await next_number(versions) == 1
            for _ in range(5):
                await add(registry, stored=False)
            assert [await next_number(versions), await next_number(versions)] == [5, 6]


@pytest.mark.parametrize("waiting", [True, False], ids=["waiting", "reading slowly"])
@pytest.mark.parametrize("end", ["deleted", "deleted and created anew", "stopping"])
async def test_a_watch_ends(end: str, waiting: bool, registry: Registry, nursery: trio.Nursery) -> None:
    await add(registry)
    expected = Unavailable if end == "stopping" else NotFound
    versions = registry.watch("m")
    assert await next_number(versions) == 1
    ended = trio.Event()

    async def wait() -> None:
        with pytest.raises(expected):
            await anext(versions)
        ended.set()

    if waiting:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
    else:
        await add(registry)
    if end == "stopping":
        registry.stop_watches()
        with pytest.raises(Unavailable):
            await anext(registry.watch("m"))
    else:
        await registry.delete_model("m")
        if "anew" in end:
            await registry.create_or_update_model("m", {})
    if not waiting:
        await wait()
    await ended.wait()
    assert registry.statistics().watchers == 0


# Transient versions


async def test_evicted_versions_are_not_listed(tmp_path: Path) -> None:
    async with registry_at(tmp_path, max_items=3) as registry:
        await registry.create_or_update_model("m", {})
        for number in range(5):
            await add(registry, b"%d" % number, stored=False)
        assert numbers(registry) == [3, 4, 5]
        assert registry.version("m", -3).number == 3
        await read(registry, 3)
        await add(registry, stored=False)
        assert numbers(registry) == [3, 5, 6]
        with pytest.raises(NotFound, match='no version "4"'):
            await read(registry, 4)


async def test_the_newest_of_every_model_stays_as_long_as_there_is_another(tmp_path: Path) -> None:
    async with registry_at(tmp_path, max_items=3) as registry:
        for model_id in ("a", "b"):
            await registry.create_or_update_model(model_id, {})
        await add(registry, model_id="a", stored=False)
        for _ in range(10):
            await add(registry, model_id="b", stored=False)
        assert numbers(registry, "a") == [1]
        assert numbers(registry, "b") == [9, 10]
        await add(registry, model_id="a", stored=True)
        await add(registry, model_id="b", stored=False)
        assert numbers(registry, "a") == [2], "a stored version is newer now"


async def test_the_version_that_is_replaced_as_the_newest_goes_before_another_models_newest(tmp_path: Path) -> None:
    async with registry_at(tmp_path, max_items=2) as registry:
        for model_id in ("a", "b"):
            await registry.create_or_update_model(model_id, {})
            await add(registry, model_id=model_id, stored=False)
        await add(registry, model_id="b", stored=False)
        assert (numbers(registry, "a"), numbers(registry, "b")) == ([1], [2])


async def test_a_shared_blob_goes_with_the_transient_version_that_was_its_last_user(tmp_path: Path) -> None:
    async with registry_at(tmp_path, max_items=1) as registry:
        for model_id in ("m", "other"):
            await registry.create_or_update_model(model_id, {})
        await add(registry, pattern(LARGE))
        await add(registry, pattern(LARGE), model_id="other", stored=False)
        assert registry.statistics().transient_bytes == 0
        await registry.delete_model("m")
        assert await read(registry, 1, "other") == pattern(LARGE)
        assert len(blobs_below(tmp_path)) == 1
        await add(registry, b"evicts it", model_id="other", stored=False)
        assert blobs_below(tmp_path) == set()


async def test_so_it_does_when_the_registry_closes(tmp_path: Path) -> None:
    async with registry_at(tmp_path) as registry:
        for model_id in ("m", "other"):
            await registry.create_or_update_model(model_id, {})
        await add(registry, pattern(LARGE))
        await add(registry, pattern(LARGE), model_id="other", stored=False)
        await registry.delete_model("m")
    assert blobs_below(tmp_path) == set()


async def test_more_than_fits_names_the_option(tmp_path: Path) -> None:
    async with registry_at(tmp_path, max_bytes=1000) as registry:
        await registry.create_or_update_model("m", {})
        with pytest.raises(ResourceExhausted, match="--cache_max_bytes"):
            await add(registry, bytes(1001), stored=False)
        assert (await add(registry, bytes(1000), stored=False)).number == 1


async def test_thousands_of_versions_through_a_small_cache_beside_readers(tmp_path: Path) -> None:
    async with registry_at(tmp_path, max_items=20, max_bytes=100_000) as registry:
        await registry.create_or_update_model("m", {})
        done = trio.Event()

        async def keep_reading(seed: int) -> None:
            chance = random.Random(seed)
            while not done.is_set():
                await trio.lowlevel.checkpoint()
                if there := list(registry.versions("m")):
                    version = chance.choice(there)
                    async with registry.read("m", version.number) as reader:
                        await trio.lowlevel.checkpoint()
                        assert hashlib.sha256(await bytes_of(reader)).digest() == version.digest

        async with trio.open_nursery() as nursery:
            for seed in range(4):
                nursery.start_soon(keep_reading, seed)
            for number in range(2000):
                await add(registry, b"%d" % number * 500, stored=False)
                assert registry.statistics().transient_bytes <= 100_000
                assert registry.statistics().versions <= 20
            done.set()
        assert registry.version("m", -1).number == 2000


# Damage


def flip(path: Path) -> None:
    path.chmod(0o640)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: os.truncate(path, 3)], ids=["flip", "gone", "cut"])
async def test_damage_is_data_loss_and_storing_again_heals(
    damage: Callable[[Path], None], size: int, tmp_path: Path
) -> None:
    content = pattern(size)
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("m", {})
        await add(registry, content)
    damage(Layout(tmp_path).blob(hashlib.sha256(content).digest()))
    async with registry_at(tmp_path) as registry:
        assert numbers(registry) == [1]
        for _ in range(2):
            with pytest.raises(DataLoss, match='the data of version "1" of model "m"'):
                await read(registry, 1)
        assert registry.statistics().damage_found == 2
        await add(registry, content, stored=False)
        assert registry.statistics().transient_bytes == size, "a damaged blob isn't shared"
        await add(registry, content)
        assert await read(registry, 1) == await read(registry, 3) == content


# Numbers over crashes


@pytest.mark.parametrize("seed", range(5))
async def test_no_number_is_ever_given_twice(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    highest = 0
    stored: set[int] = set()
    for _ in range(6):
        crash = chance.random() < 0.5
        async with registry_at(tmp_path, max_items=5, crash=crash) as registry:
            await registry.create_or_update_model("m", {"round": str(chance.random())})
            assert set(numbers(registry)) == stored
            for _ in range(chance.choice([0, 1, 3, 10, BLOCK, BLOCK + 1])):
                version = await add(registry, stored=chance.random() < 0.05)
                assert version.number > highest
                highest = version.number
                if version.stored:
                    stored.add(version.number)
    async with registry_at(tmp_path) as registry:
        assert highest < (await add(registry)).number <= highest + BLOCK * 6


async def test_a_clean_end_leaves_no_gap_and_a_crash_a_small_one(tmp_path: Path) -> None:
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("m", {})
        await add(registry, stored=False)
        assert ceiling_on_disk(tmp_path) == BLOCK
    assert ceiling_on_disk(tmp_path) == 1
    async with registry_at(tmp_path, crash=True) as registry:
        assert (await add(registry, stored=False)).number == 2
    async with registry_at(tmp_path) as registry:
        assert (await add(registry)).number == 1 + BLOCK + 1


async def test_a_block_is_one_write(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = sidecars.write_model

    def counting(layout: Layout, record: ModelRecord) -> None:
        written.append(record.number_ceiling)
        write(layout, record)

    monkeypatch.setattr(sidecars, "write_model", counting)
    async with trio.open_nursery() as nursery:
        for _ in range(BLOCK + 1):
            nursery.start_soon(lambda: add(registry, b"", stored=False))
    assert written == [BLOCK, 2 * BLOCK]


@KINDS
async def test_numbers_that_are_used_up(stored: bool, tmp_path: Path) -> None:
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("m", {})
    sidecars.write_model(Layout(tmp_path), ModelRecord(model_id="m", user_data={}, number_ceiling=HIGHEST_NUMBER - 1))
    async with registry_at(tmp_path) as registry:
        assert (await add(registry, stored=stored)).number == HIGHEST_NUMBER
        for kind in (True, False):
            with trio.fail_after(10), pytest.raises(ResourceExhausted, match="go on with a new model"):
                await add(registry, b"one more", stored=kind)
        assert blobs_below(tmp_path) == ({hashlib.sha256(b"content").hexdigest()} if stored else set())


# A disk that fails


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_file_that_can_not_be_synced_is_no_version(
    size: int, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(tmp_path)
    with monkeypatch.context() as broken:
        fail_file_syncs(broken)
        with pytest.raises(StorageFailed):
            await add(registry, pattern(size))
    assert files_below(tmp_path) == before
    assert registry.statistics().stored_bytes == 0
    assert (await add(registry, pattern(size))).number == 1


async def test_a_ceiling_that_can_not_be_written_is_none(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        fail_file_syncs(broken)
        with pytest.raises(StorageFailed):
            await add(registry, stored=False)
    assert ceiling_on_disk(tmp_path) == 0
    assert numbers(registry) == []
    assert (await add(registry, stored=False)).number == 1
    assert ceiling_on_disk(tmp_path) == BLOCK


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("after", range(4))
async def test_a_directory_that_can_not_be_synced_stops_everything(
    size: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with archive_at(tmp_path) as archive:
        async with open_registry(archive, cache_max_items=10, cache_max_bytes=1 << 20) as registry:
            await registry.create_or_update_model("m", {})
            await add(registry)
            with monkeypatch.context() as broken:
                fail_directory_syncs(broken, after=after)
                with pytest.raises(Unavailable):
                    for number in range(9):
                        await add(registry, pattern(size, seed=number))
            assert archive.threads.failed.is_set()
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: registry.create_or_update_model("new", {}),
                lambda: registry.delete_model("m"),
                lambda: add(registry),
                lambda: add(registry, stored=False),
            ]
            for call in calls:
                with pytest.raises(Unavailable):
                    await call()
            acknowledged = numbers(registry)
            assert archive._budget.used == 0
    async with registry_at(tmp_path) as registry:
        there = numbers(registry)
        assert set(acknowledged) <= set(there)
        assert there in (acknowledged, [*acknowledged, len(acknowledged) + 1])
        for number in there:
            await read(registry, number)
        assert (await add(registry)).number == len(there) + 1


async def test_a_number_whose_sidecar_may_be_on_the_disk_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sidecar was linked, its directory could not be synced: the next boot finds the version."""
    async with archive_at(tmp_path) as archive:
        async with open_registry(archive, cache_max_items=10, cache_max_bytes=1 << 20) as registry:
            await registry.create_or_update_model("m", {})
            await add(registry, stored=False)  # reserves numbers for others that aren't stored
            with monkeypatch.context() as broken:
                fail_directory_syncs(broken, after=1)  # after that of the blob
                with pytest.raises(Unavailable):
                    await add(registry)
            given = (await add(registry, stored=False)).number
    async with registry_at(tmp_path) as registry:
        assert given not in numbers(registry) == [2]


@pytest.mark.parametrize("restarted", [False, True])
async def test_content_that_is_there_already_takes_no_room(restarted: bool, tmp_path: Path) -> None:
    large, small = pattern(3 << 20), pattern(100_000)
    with small_file_system(tmp_path / "small", 4 << 20) as directory:
        async with registry_at(directory) as registry:
            await registry.create_or_update_model("m", {})
            for content in (large, small):
                await add(registry, content)
            if not restarted:
                await fill_up_and_add_again(registry, directory, [large, small])
        if restarted:
            async with registry_at(directory) as registry:
                await fill_up_and_add_again(registry, directory, [large, small])
        async with registry_at(directory) as registry:
            assert [await read(registry, number) for number in numbers(registry)] == [large, small] * 2


async def fill_up_and_add_again(registry: Registry, directory: Path, contents: list[bytes]) -> None:
    free = os.statvfs(directory)
    filler = directory / "filler"
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - (32 << 10)))
    with pytest.raises(ResourceExhausted):
        await add(registry, pattern(200_000))
    for content in contents:
        await add(registry, content)
    with pytest.raises(InvalidArgument, match="SHA-256"):
        async with registry.upload(header(contents[0])) as upload:
            await upload.write(memoryview(bytes(len(contents[0]))))
            await upload.commit()
    filler.unlink()


async def test_content_that_is_there_stays_while_it_is_sent_again(registry: Registry, tmp_path: Path) -> None:
    content = pattern(LARGE)
    await add(registry, content)
    await registry.create_or_update_model("other", {})
    async with registry.upload(header(content, model_id="other")) as upload:
        await registry.delete_model("m")
        await upload.write(memoryview(content))
        version = await upload.commit()
    assert await read(registry, version.number, "other") == content
    await registry.delete_model("other")
    assert blobs_below(tmp_path) == set()


@pytest.mark.parametrize("size", [LARGE - 1, LARGE + 1])
async def test_a_wrong_size_with_the_hash_of_content_that_is_there_harms_nothing(
    size: int, registry: Registry, tmp_path: Path
) -> None:
    content = pattern(LARGE)
    await add(registry, content)
    blobs = archive_of(registry).blobs
    async with registry.upload(attrs.evolve(header(content), size=size)) as upload:
        await registry.delete_model("m")
        await upload.write(memoryview(bytes(size)))
        with pytest.raises(InvalidArgument, match="SHA-256"):
            await upload.commit()
    assert blobs.damage_found == 0
    assert blobs.damaged == set()
    assert blobs.bytes == 0
    assert blobs_below(tmp_path) == set()


async def test_content_that_is_damaged_while_it_is_sent_again(registry: Registry, tmp_path: Path) -> None:
    content = pattern(LARGE)
    await add(registry, content)
    (path,) = (path for path in (tmp_path / "blobs").rglob("*") if path.is_file())
    async with registry.upload(header(content)) as upload:
        path.chmod(0o640)
        path.write_bytes(content[:-1] + b"!")
        await upload.write(memoryview(content))
        with pytest.raises(Unavailable, match="send it again"):
            await upload.commit()
    assert numbers(registry) == [1]
    version = await add(registry, content)
    assert await read(registry, version.number) == content


async def test_a_part_that_could_not_be_read(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file looks as it was, so only reading it again tells."""

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    await add(registry, pattern(LARGE))
    async with registry.read("m", 1) as reader:
        await reader.recheck()
        with monkeypatch.context() as broken:
            broken.setattr(os, "pread", fail)
            await reader.confirm()
            with pytest.raises(DataLoss):
                await reader.recheck()
    assert registry.statistics().damaged == 1


async def test_a_full_disk(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", 4 << 20) as small:
        async with registry_at(small) as registry:
            await registry.create_or_update_model("m", {})
            before = files_below(small)
            with pytest.raises(ResourceExhausted, match="--archive_dir"):
                await add(registry, bytes(5 << 20))
            async with registry.upload(header(pattern(3 << 20))) as upload:
                filler = small / "tmp" / "filler"
                filler.write_bytes(bytes(3 << 20))  # somebody else was quicker
                with pytest.raises(ResourceExhausted, match="--archive_dir"):
                    await upload.write(memoryview(pattern(3 << 20)))
                    await upload.commit()
            with pytest.raises(ResourceExhausted):
                with (small / "tmp" / "rest").open("wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                    except OSError:
                        pass
                await add(registry, bytes(5000))
            assert list(registry.versions("m")) == []
            filler.unlink()
            (small / "tmp" / "rest").unlink()
            assert files_below(small) == before
            assert (await add(registry, b"small")).number == 1


async def test_closing_takes_no_longer_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "CLOSING_SECONDS", 0)
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("m", {})
        await add(registry, stored=False)
        assert await registry.close() == 1
    assert ceiling_on_disk(tmp_path) == BLOCK


async def test_closing_writes_all_the_ceilings_it_can(tmp_path: Path) -> None:
    async with registry_at(tmp_path) as registry:
        for model_id in ("a", "b", "c"):
            await registry.create_or_update_model(model_id, {})
            await add(registry, stored=False, model_id=model_id)
        # A directory in the place of a record is what can't be replaced by a file.
        record = Layout(tmp_path).model_record("b")
        record.unlink()
        record.mkdir()
        assert await registry.close() == 1
        record.rmdir()
    for model_id in ("a", "c"):
        assert ceiling_on_disk(tmp_path, model_id) == 1


async def test_statistics(registry: Registry) -> None:
    await add(registry, b"12345")
    await add(registry, b"12345")
    await add(registry, b"123", stored=False)
    statistics = registry.statistics()
    assert (statistics.models, statistics.versions) == (1, 3)
    assert (statistics.stored_bytes, statistics.transient_bytes) == (5, 3)


def test_every_error_has_a_status() -> None:
    assert all(hasattr(kind, "status") for kind in ModelregError.__subclasses__())
