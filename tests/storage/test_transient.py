from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from modelreg.errors import ResourceExhausted
from modelreg.log import silent_logger
from modelreg.storage.archive import Archive
from modelreg.storage.blobs import BlobStore
from modelreg.storage.layout import Layout
from modelreg.storage.threads import Threads
from modelreg.storage.transient import Content, TransientStore
from modelreg.storage.writers import SMALL_BYTES
from tests.storage.surroundings import (
    LARGE,
    all_closed,
    archive_at,
    cancelled_at_every_step,
    model_record,
    open_descriptors,
    pattern,
    quick_directory,
    store,
)

Store = TransientStore[str]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as path:
        yield path


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    async with archive_at(tmp_path) as archive:
        yield archive


@pytest.fixture
async def descriptors(archive: Archive) -> AsyncIterator[None]:
    """What a test leaves open in threads that nobody waits for is closed in the end, and nothing else is left."""
    before = open_descriptors()
    yield
    with trio.fail_after(10):
        await all_closed(before)


uses_descriptors = pytest.mark.usefixtures("descriptors")


def store_of(
    archive: Archive,
    evicted: list[str],
    *,
    max_items: int = 100,
    max_bytes: int = 100 << 20,
    max_items_of_a_model: int = 0,
) -> Store:
    return TransientStore(
        archive,
        max_items=max_items,
        max_items_of_a_model=max_items_of_a_model,
        max_bytes=max_bytes,
        evicted=lambda key, _: evicted.append(key),
    )


@asynccontextmanager
async def archive_without_disk() -> AsyncIterator[Archive]:
    """For content that nothing on a disk has."""
    layout, threads = Layout(Path("/nowhere")), Threads(silent_logger())
    async with trio.open_nursery() as nursery:
        yield Archive(layout, threads, BlobStore(layout, threads, silent_logger()), [], nursery, 64 << 20)


async def put(transient: Store, key: str, content: bytes, model: str | None = None) -> None:
    """Add a version, where it isn't said otherwise of a model of its own."""
    async with transient.incoming(len(content), model or key) as incoming:
        await incoming.write(memoryview(content))
        assert await incoming.finish() == hashlib.sha256(content).digest()
        transient.put(key, incoming)


def bytes_of(archive: Archive, content: Content) -> bytes:
    if content.data is not None:
        return bytes(content.data)
    if content.fd is not None:
        return os.pread(content.fd, content.size, 0)
    return archive.blobs.read(content.digest, content.size)


def read(transient: Store, archive: Archive, key: str) -> bytes:
    content = transient.use(key)
    try:
        return bytes_of(archive, content)
    finally:
        transient.release(content)


@uses_descriptors
@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, LARGE])
async def test_content_comes_out_as_it_went_in(size: int, archive: Archive) -> None:
    transient = store_of(archive, [])
    await put(transient, "a", pattern(size))
    assert transient.in_memory == size
    assert read(transient, archive, "a") == pattern(size)
    transient.remove("a")
    assert (len(transient), transient.in_memory) == (0, 0)


@uses_descriptors
async def test_without_memfd_create(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    transient = store_of(archive, [])
    await put(transient, "a", pattern(LARGE))
    assert read(transient, archive, "a") == pattern(LARGE)
    transient.close()


@uses_descriptors
@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_reader_has_the_bytes_of_what_is_gone(size: int, archive: Archive) -> None:
    transient = store_of(archive, [], max_items=1)
    await put(transient, "a", pattern(size))
    readers = [transient.use("a"), transient.use("a")]
    await put(transient, "b", b"")
    for content in readers:
        assert bytes_of(archive, content) == pattern(size)
        transient.release(content)
    transient.close()


@uses_descriptors
@pytest.mark.parametrize("size", [1000, LARGE])
async def test_what_is_gone_counts_until_its_last_reader_has_done(size: int, archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_items=2, max_bytes=2 * size)
    await put(transient, "read", pattern(size))
    readers = [transient.use("read"), transient.use("read")]
    transient.remove("read")
    await put(transient, "a", pattern(size))
    assert transient.in_memory == 2 * size
    await put(transient, "b", pattern(size))
    assert evicted == ["a"]
    transient.release(readers[0])
    assert transient.in_memory == 2 * size
    transient.release(readers[1])
    assert transient.in_memory == size
    await put(transient, "c", pattern(size))
    assert evicted == ["a"]
    transient.close()
    assert transient.in_memory == 0


@uses_descriptors
async def test_what_frees_no_memory_stays_when_memory_is_wanted(archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_bytes=1000)
    await put(transient, "read", pattern(400))
    await put(transient, "empty", b"")
    await put(transient, "other", pattern(400))
    reader = transient.use("read")
    await put(transient, "new", pattern(600))
    assert evicted == ["other"]
    with pytest.raises(ResourceExhausted, match=r"downloads.*--cache_max_bytes"):
        await put(transient, "too large", pattern(601))
    assert evicted == ["other", "new"]
    transient.release(reader)
    await put(transient, "fits", pattern(601))
    assert evicted == ["other", "new", "read"]
    transient.close()


@uses_descriptors
async def test_files_that_only_readers_hold(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted)
    monkeypatch.setattr(transient, "_max_files", 2)
    await put(transient, "small", b"x")
    await put(transient, "a", pattern(LARGE))
    await put(transient, "b", pattern(LARGE))
    readers = [transient.use("a"), transient.use("b")]
    transient.remove("a")
    with pytest.raises(ResourceExhausted, match="downloads"):
        await put(transient, "c", pattern(LARGE))
    assert evicted == []
    assert transient.in_memory == 2 * LARGE + 1
    assert transient._arriving == 0
    await put(transient, "small too", b"y")
    for content in readers:
        transient.release(content)
    await put(transient, "c", pattern(LARGE))
    await put(transient, "d", pattern(LARGE))
    assert evicted == ["b"]
    transient.close()


@uses_descriptors
async def test_content_that_is_stored_takes_no_memory(archive: Archive) -> None:
    content = pattern(LARGE)
    await archive.write_model(model_record("m"))
    record = await store(archive, "m", 1, content)
    transient = store_of(archive, [])
    await put(transient, "a", content)
    assert transient.in_memory == 0
    assert read(transient, archive, "a") == content
    digest = bytes.fromhex(record.sha256)
    archive.blobs.release(digest, LARGE)  # the stored version goes
    await archive.blobs.collect()
    assert read(transient, archive, "a") == content
    reader = transient.use("a")
    transient.remove("a")
    await archive.blobs.collect()
    assert bytes_of(archive, reader) == content
    transient.release(reader)
    await archive.blobs.collect()
    assert archive.blobs.bytes == 0
    assert not archive._layout.blob(digest).exists()


@uses_descriptors
async def test_content_whose_blob_is_not_known_to_be_sound_is_kept_in_memory(archive: Archive) -> None:
    content = pattern(10)
    await archive.write_model(model_record("m"))
    await store(archive, "m", 1, content)
    archive.blobs._sound.clear()
    transient = store_of(archive, [])
    await put(transient, "a", content)
    assert transient.in_memory == 10
    transient.close()


@uses_descriptors
async def test_more_than_all_memory_is_refused_before_a_byte_came(archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_bytes=1000)
    await put(transient, "a", pattern(1000))
    with pytest.raises(ResourceExhausted, match="--cache_max_bytes"):
        async with transient.incoming(1001, "m"):
            raise AssertionError("not to be reached")
    assert not evicted


@uses_descriptors
async def test_room_for_what_comes_is_made_before_it_comes(archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_bytes=500_000)
    await put(transient, "a", pattern(1000))
    async with transient.incoming(499_500, "m") as first, transient.incoming(300_000, "m") as second:
        assert first.room(400_000) is not None
        assert not evicted
        first.filled(400_000)
        assert first.room(99_500) is not None
        assert evicted == ["a"]
        assert first.room(99_500) is not None  # it has it already
        assert second.room(300_000) is None
        with pytest.raises(ResourceExhausted, match=r"uploads under way.*--cache_max_bytes"):
            await second.write(memoryview(bytes(300_000)))
        first.filled(99_500)
        await first.finish()
        transient.put("b", first)
    assert transient.in_memory == 499_500
    assert transient._arriving == 0


@uses_descriptors
async def test_uploads_under_way_count(archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_bytes=1000)
    await put(transient, "a", pattern(300))
    async with transient.incoming(900, "m") as first:
        await first.write(memoryview(bytes(600)))
        assert not evicted
        await first.write(memoryview(bytes(200)))
        assert evicted == ["a"]
        async with transient.incoming(900, "m") as second:
            await second.write(memoryview(bytes(200)))
            with pytest.raises(ResourceExhausted, match=r"uploads under way.*--cache_max_bytes"):
                await second.write(memoryview(bytes(1)))
        await first.write(memoryview(bytes(100)))
        await first.finish()
        transient.put("b", first)
    assert transient.in_memory == 900
    assert transient._arriving == 0


@uses_descriptors
@pytest.mark.parametrize("size", [10, LARGE])
async def test_an_upload_that_is_not_put_leaves_no_trace(size: int, archive: Archive) -> None:
    transient = store_of(archive, [])

    async def work() -> None:
        async with transient.incoming(size, "m") as incoming:
            await incoming.write(memoryview(pattern(size)))
            await incoming.finish()

    async def check() -> None:
        assert (transient._arriving, transient.in_memory, len(transient)) == (0, 0, 0)
        assert archive._budget.used == archive._small_budget.used == 0

    await cancelled_at_every_step(work, check)


# Who goes first


@uses_descriptors
async def test_the_least_recently_used_goes_first(archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_items=3)
    for key in "abc":
        await put(transient, key, b"")
        transient.demote(key)
    read(transient, archive, "a")
    await put(transient, "d", b"")
    assert evicted == ["b"]
    transient.demote("d")
    await put(transient, "e", b"")
    assert evicted == ["b", "c"]


@uses_descriptors
async def test_the_newest_of_a_model_goes_when_nothing_else_is_left(archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_items=3)
    await put(transient, "newest of one", b"")
    await put(transient, "another's", b"")
    await put(transient, "another's newest", b"")
    transient.demote("another's")
    read(transient, archive, "another's")
    await put(transient, "x", b"")
    assert evicted == ["another's"]
    await put(transient, "y", b"")
    assert evicted == ["another's", "newest of one"]


@uses_descriptors
@pytest.mark.parametrize("size", [600, LARGE])
async def test_a_model_gives_up_its_own_newest_before_that_of_another(archive: Archive, size: int) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_bytes=2 * size)
    await put(transient, "a's", pattern(size), model="a")
    await put(transient, "b's", pattern(size), model="b")
    await put(transient, "b's next", pattern(size), model="b")  # which may come before b's newest is known to be old
    assert evicted == ["b's"]
    transient.close()


@uses_descriptors
async def test_a_model_may_have_so_many_and_its_own_go_first(archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_items=10, max_items_of_a_model=2)
    await put(transient, "other", b"", model="other")
    for key in "abcd":
        await put(transient, key, b"", model="m")
        transient.demote(key)
        if key == "b":
            read(transient, archive, "a")
    assert evicted == ["b", "a"]
    transient.remove("c")
    await put(transient, "e", b"", model="m")
    assert evicted == ["b", "a"]
    assert len(transient) == 3


@uses_descriptors
async def test_demoting_what_is_not_here(archive: Archive) -> None:
    transient = store_of(archive, [])
    transient.demote("a")
    await put(transient, "a", b"")
    transient.demote("a")
    transient.demote("a")
    assert len(transient) == 1


@uses_descriptors
async def test_there_is_always_place_for_one(archive: Archive) -> None:
    evicted: list[str] = []
    transient = store_of(archive, evicted, max_items=1)
    for number in range(4):
        await put(transient, str(number), b"x")
    assert evicted == ["0", "1", "2"]
    assert transient.in_memory == 1


@attrs.define
class Plain:
    """What a store of transient versions does, in the plainest way."""

    max_items: int
    max_bytes: int
    # Least recently used first.
    keys: list[str] = attrs.field(factory=list)
    sizes: dict[str, int] = attrs.field(factory=dict)
    newest: set[str] = attrs.field(factory=set)
    evicted: list[str] = attrs.field(factory=list)
    # One entry a reader.
    read: list[str] = attrs.field(factory=list)

    def used(self) -> int:
        return sum(self.sizes[key] for key in {*self.keys, *self.read})

    def evict(self, keys: list[str]) -> None:
        key = next((key for key in keys if key not in self.newest), keys[0])
        self.evicted.append(key)
        self.keys.remove(key)

    def put(self, key: str, size: int) -> bool:
        """Whether there was room."""
        while self.used() + size > self.max_bytes:
            freeing = [key for key in self.keys if self.sizes[key] and key not in self.read]
            if not freeing:
                return False
            self.evict(freeing)
        while len(self.keys) >= self.max_items:
            self.evict(self.keys)
        self.keys.append(key)
        self.sizes[key] = size
        self.newest.add(key)
        return True

    def use(self, key: str) -> None:
        self.keys.remove(key)
        self.keys.append(key)


steps = st.lists(
    st.tuples(st.just("put"), st.integers(0, 400) | st.just(SMALL_BYTES + 1))
    | st.tuples(st.sampled_from(["use", "release", "remove", "demote", "abandon"]), st.integers(0, 100)),
    min_size=5,
    max_size=50,
)


@settings(max_examples=60)
@given(steps=steps, max_items=st.integers(1, 6), max_bytes=st.sampled_from([400, 1000, SMALL_BYTES + 500, 1 << 20]))
def test_like_a_plain_cache(steps: list[tuple[str, int]], max_items: int, max_bytes: int) -> None:
    async def main() -> None:
        async with archive_without_disk() as archive:
            await take_steps(archive)

    async def take_steps(archive: Archive) -> None:
        evicted: list[str] = []
        transient = store_of(archive, evicted, max_items=max_items, max_bytes=max_bytes)
        plain = Plain(max_items, max_bytes)
        readers: list[tuple[int, Content]] = []
        for number, (step, argument) in enumerate(steps):
            key = plain.keys[argument % len(plain.keys)] if plain.keys else None
            if step == "put" and argument <= max_bytes:
                content = pattern(argument, seed=number)
                if plain.put(str(number), argument):
                    await put(transient, str(number), content)
                else:
                    with pytest.raises(ResourceExhausted):
                        await put(transient, str(number), content)
            elif step == "abandon":
                async with transient.incoming(0, "m") as incoming:
                    await incoming.finish()
            elif step == "use" and key is not None:
                readers.append((int(key), transient.use(key)))
                plain.use(key)
                plain.read.append(key)
            elif step == "release" and readers:
                seed, held = readers.pop(argument % len(readers))
                assert bytes_of(archive, held) == pattern(held.size, seed=seed)
                transient.release(held)
                plain.read.remove(str(seed))
            elif step == "remove" and key is not None:
                transient.remove(key)
                plain.keys.remove(key)
            elif step == "demote" and key is not None:
                transient.demote(key)
                plain.newest.discard(key)
            assert evicted == plain.evicted
            assert len(transient) == len(plain.keys) <= max_items
            assert transient.in_memory == plain.used() <= max_bytes
        transient.close()
        assert len(transient) == 0
        for seed, held in readers:
            assert bytes_of(archive, held) == pattern(held.size, seed=seed)
            transient.release(held)
        assert (transient.in_memory, transient._arriving, transient._files) == (0, 0, 0)

    trio.run(main)


@uses_descriptors
async def test_files_in_memory_may_not_be_so_large(archive: Archive) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(ResourceExhausted, match=r"larger than a file of the server may be: .*ulimit -f"):
            async with store_of(archive, []).incoming(LARGE, "m") as incoming:
                await incoming.write(memoryview(pattern(LARGE)))
                await incoming.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
