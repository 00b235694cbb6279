"""One check of what a writer promises, for everything that takes content piece by piece."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from modelreg.errors import ResourceExhausted, StorageFailed
from modelreg.log import silent_logger
from modelreg.storage import writers
from modelreg.storage.archive import Archive
from modelreg.storage.buffers import BUFFER_BYTES, FILLING_SECONDS, Budget, BufferPool
from modelreg.storage.threads import Threads
from modelreg.storage.transient import TransientStore
from modelreg.storage.writers import (
    BUFFERS_AHEAD,
    SMALL_BYTES,
    ContentWriter,
    FileWriter,
    MemoryWriter,
    file_writer,
    small_writer,
)
from tests.storage.surroundings import LARGE, archive_at, cancelled_at_every_step, memory_directory, pattern


@attrs.frozen
class Written:
    writer: ContentWriter
    # What has been written, after finish().
    content: Callable[[], bytes]
    budget: Budget


Make = Callable[[int, Budget], AbstractAsyncContextManager[Written]]


def bytes_of(fd: int) -> bytes:
    """What's in a file, read through another descriptor: one that goes past the page cache is choosy."""
    return Path(f"/proc/self/fd/{fd}").read_bytes()


@asynccontextmanager
async def small(size: int, budget: Budget) -> AsyncIterator[Written]:
    with small_writer(budget, min(size, SMALL_BYTES)) as writer:
        assert writer is not None
        yield Written(writer, lambda: bytes(writer.data), budget)


@asynccontextmanager
async def to_file(fd: int, budget: Budget, pool: BufferPool | None = None) -> AsyncIterator[Written]:
    failure: Exception | None = None
    async with (
        trio.open_nursery() as nursery,
        file_writer(fd, pool or BufferPool(budget, nursery), Threads(silent_logger()), nursery) as writer,
    ):
        try:
            yield Written(writer, lambda: bytes_of(fd), budget)
        except Exception as error:  # noqa: BLE001  # raised again, not wrapped in a group by the nursery
            failure = error
    if failure is not None:
        raise failure


@asynccontextmanager
async def file_in(directory: Path, budget: Budget, *, direct: bool = False) -> AsyncIterator[Written]:
    fd = os.open(directory / "content", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        if direct:
            writers.bypass_page_cache(fd)
        async with to_file(fd, budget) as written:
            yield written
    finally:
        os.close(fd)


@asynccontextmanager
async def memory_file(budget: Budget, pool: BufferPool | None = None) -> AsyncIterator[Written]:
    fd = os.memfd_create("test")
    try:
        async with to_file(fd, budget, pool) as written:
            yield written
    finally:
        os.close(fd)


@asynccontextmanager
async def into_archive(directory: Path, size: int, budget: Budget) -> AsyncIterator[Written]:
    async with archive_at(directory) as archive:
        use_budget(archive, budget)
        async with archive.incoming(size) as incoming:

            def content() -> bytes:
                incoming.install(archive.blobs)
                return archive.blobs.read(incoming.digest, size)

            yield Written(incoming, content, budget)
        assert not list((directory / "tmp").iterdir())


@asynccontextmanager
async def into_memory(directory: Path, size: int, budget: Budget) -> AsyncIterator[Written]:
    async with archive_at(directory) as archive:
        use_budget(archive, budget)
        store: TransientStore[str] = TransientStore(
            archive, max_items=10, max_bytes=100 << 20, evicted=lambda _, __: None
        )
        async with store.incoming(size, "m") as incoming:

            def read() -> bytes:
                store.put("key", incoming)
                content = store.use("key")
                try:
                    if content.data is not None:
                        return bytes(content.data)
                    assert content.fd is not None
                    return bytes_of(content.fd)
                finally:
                    store.release(content)

            yield Written(incoming, read, budget)
        store.close()
        assert store.in_memory == store._arriving == 0


def use_budget(archive: Archive, budget: Budget) -> None:
    archive._budget = archive._small_budget = budget
    archive._pool = BufferPool(budget, archive._nursery)


FILE_KINDS = ["a file on disk", "a file past the page cache", "a file on tmpfs", "a file in memory"]
KINDS = ["small", *FILE_KINDS, "an archive", "memory"]


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[dict[str, Path]]:
    with contextlib.ExitStack() as stack:
        yield {"disk": tmp_path, "tmpfs": stack.enter_context(memory_directory())}


@pytest.fixture
def make(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Make:
    disk, tmpfs = directories["disk"], directories["tmpfs"]
    kinds: dict[str, Make] = {
        "small": small,
        "a file on disk": lambda _, budget: file_in(disk, budget),
        "a file past the page cache": lambda _, budget: file_in(disk, budget, direct=True),
        "a file on tmpfs": lambda _, budget: file_in(tmpfs, budget, direct=True),
        "a file in memory": lambda _, budget: memory_file(budget),
        "an archive": lambda size, budget: into_archive(disk, size, budget),
        "memory": lambda size, budget: into_memory(disk, size, budget),
    }
    return kinds[request.param]


every_kind = pytest.mark.parametrize("make", KINDS, indirect=True)
every_file = pytest.mark.parametrize("make", FILE_KINDS, indirect=True)


# What every writer promises


@every_kind
@pytest.mark.parametrize(
    ("size", "cut"),
    [
        (0, 1),
        (1, 1),
        (SMALL_BYTES, 4096),
        (SMALL_BYTES + 1, 1 << 30),
        (BUFFER_BYTES, BUFFER_BYTES),
        (BUFFER_BYTES + 1, BUFFER_BYTES),
        (2 * BUFFER_BYTES, 999_983),
        (LARGE, 4096),
        (LARGE, 1 << 30),
    ],
)
async def test_any_cut_gives_the_same_bytes_and_digest(make: Make, size: int, cut: int) -> None:
    content = pattern(size)
    budget = Budget(64 << 20)
    async with make(size, budget) as written:
        for start in range(0, size, cut):
            reused = bytearray(content[start : start + cut])
            await written.writer.write(memoryview(reused))
            reused[:] = bytes(len(reused))  # it's the caller's again
        assert await written.writer.finish() == hashlib.sha256(content).digest()
        assert written.content() == content
    assert budget.used == 0


@every_kind
def test_any_cuts_at_all(make: Make) -> None:
    @settings(max_examples=15)
    @given(st.lists(st.integers(0, 700_000) | st.integers(0, 4097), max_size=8))
    def check(pieces: list[int]) -> None:
        content = pattern(sum(pieces), seed=len(pieces))

        async def main() -> None:
            async with make(len(content), Budget(4 << 20)) as written:
                start = 0
                for piece in pieces:
                    await written.writer.write(memoryview(content)[start : start + piece])
                    start += piece
                assert await written.writer.finish() == hashlib.sha256(content).digest()
                assert written.content() == content

        trio.run(main)

    check()


async def put(writer: ContentWriter, content: memoryview, cut: int) -> int:
    """Give it content piece by piece, into its own memory where it has some; how much went there."""
    landed = 0
    while content:
        room = writer.room(min(cut, len(content)))
        if room is None:
            await writer.write(content[:cut])
            content = content[cut:]
            continue
        assert 0 < len(room) <= cut
        size = max(1, len(room) - 7)  # less than there would be room for
        room[:size] = content[:size]
        writer.filled(size)
        landed += size
        content = content[size:]
    return landed


@every_kind
@pytest.mark.parametrize(
    ("size", "cut"), [(1, 1), (SMALL_BYTES, 4096), (SMALL_BYTES + 1, 999), (LARGE, 65536), (LARGE, 1 << 30)]
)
@pytest.mark.parametrize("budget_bytes", [BUFFER_BYTES, 64 << 20])
async def test_what_is_put_into_its_memory_is_content_as_well(
    make: Make, size: int, cut: int, budget_bytes: int
) -> None:
    content = pattern(size)
    budget = Budget(budget_bytes)
    async with make(size, budget) as written:
        landed = await put(written.writer, memoryview(content), cut)
        assert await written.writer.finish() == hashlib.sha256(content).digest()
        assert written.content() == content
    assert budget.used == 0
    if size > SMALL_BYTES and budget_bytes > BUFFER_BYTES and not isinstance(written.writer, MemoryWriter):
        assert landed


@every_file
async def test_there_is_no_room_once_it_ends(make: Make) -> None:
    async with make(LARGE, Budget(64 << 20)) as written:
        assert written.writer.room(1) is not None
        await written.writer.finish()
        assert written.writer.room(1) is None


@every_file
async def test_there_is_no_room_beyond_a_few_buffers(make: Make, gate: Gate) -> None:
    budget = Budget(64 << 20)
    async with make(LARGE, budget) as written:
        for _ in range(BUFFERS_AHEAD):
            room = written.writer.room(1 << 30)
            assert room is not None
            written.writer.filled(len(room))
        assert written.writer.room(1) is None
        assert budget.used == BUFFERS_AHEAD * BUFFER_BYTES
        gate.open.set()


async def test_there_is_no_room_where_others_have_it_all() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    budget = Budget(BUFFER_BYTES)
    assert budget.take_now(1)
    async with to_file(fd, budget) as written:
        assert written.writer.room(1) is None
    os.close(fd)


@pytest.mark.parametrize("others_wait", [False, True])
async def test_what_comes_while_it_closes_goes_nowhere(
    others_wait: bool, gate: Gate, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """A call is cancelled while its thread is at it, and its client sends on; or others get the buffer it was filling."""
    budget = Budget(2 * BUFFER_BYTES)
    pool = BufferPool(budget, nursery)
    scope = trio.CancelScope()
    closed = trio.Event()
    writers_: list[ContentWriter] = []

    async def cancelled() -> None:
        with scope:
            async with memory_file(budget, pool) as written:
                writers_.append(written.writer)
                await put(written.writer, memoryview(bytes(BUFFER_BYTES + 5)), 1 << 30)
                await trio.sleep_forever()
        closed.set()

    nursery.start_soon(cancelled)
    assert await trio.to_thread.run_sync(gate.reached.wait, 10)
    await trio.testing.wait_all_tasks_blocked()
    if others_wait:
        nursery.start_soon(pool.take, lambda: None)
    scope.cancel()
    await trio.sleep(1)  # long enough for a buffer that's being filled to be called in
    assert writers_[0].room(BUFFER_BYTES) is None
    gate.open.set()
    await closed.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert budget.used == (BUFFER_BYTES if others_wait else 0)


async def test_others_get_a_thread_while_an_upload_never_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is slower than the client: there's always a buffer that waits."""
    write_buffer = writers._write_buffer
    written_buffers = 0
    threads = Threads(silent_logger())
    monkeypatch.setattr(threads, "_files", trio.CapacityLimiter(1))
    started = threading.Event()

    def counted(fd: int, content: memoryview, offset: int) -> None:
        nonlocal written_buffers
        started.set()
        write_buffer(fd, content, offset)
        written_buffers += 1
        while not waited.is_set() and threads._files.statistics().tasks_waiting == 0:
            waited.wait(0.01)  # the other one has yet to come

    waited = threading.Event()
    before = -1

    async def other() -> None:
        nonlocal before
        assert await trio.to_thread.run_sync(started.wait, 10)
        before = await threads.file(lambda: written_buffers)
        waited.set()

    monkeypatch.setattr(writers, "_write_buffer", counted)
    fd = os.open("/dev/null", os.O_RDWR)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        async with file_writer(fd, BufferPool(Budget(64 << 20), nursery), threads, nursery) as writer:
            await writer.write(memoryview(bytes(10 * BUFFER_BYTES)))
            await writer.finish()
    os.close(fd)
    assert 1 <= before < BUFFERS_AHEAD


async def test_there_is_no_room_after_a_failure() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(ResourceExhausted):
        async with to_file(fd, Budget(64 << 20)) as written:
            room = written.writer.room(1 << 30)
            assert room is not None
            written.writer.filled(len(room))
            assert isinstance(written.writer, FileWriter)
            with trio.fail_after(10):
                while not written.writer._failed:  # a thread is at it
                    await trio.lowlevel.checkpoint()
            assert written.writer.room(1) is None
            await written.writer.write(memoryview(b"x"))
    os.close(fd)


@every_kind
async def test_the_smallest_budget_is_enough(make: Make) -> None:
    content = pattern(LARGE)
    async with make(LARGE, Budget(BUFFER_BYTES)) as written:
        await written.writer.write(memoryview(content))
        assert await written.writer.finish() == hashlib.sha256(content).digest()
        assert written.content() == content


@every_kind
@pytest.mark.parametrize("size", [5, LARGE])
async def test_cancelled_at_any_step_it_gives_everything_back(make: Make, size: int) -> None:
    content = memoryview(pattern(size))
    budget = Budget(3 << 20)

    async def work() -> None:
        async with make(size, budget) as written:
            for start in range(0, size, 1_000_003):
                await written.writer.write(content[start : start + 1_000_003])
            await written.writer.finish()

    async def check() -> None:
        assert budget.used == 0

    await cancelled_at_every_step(work, check)


@every_kind
async def test_an_exception_in_the_middle_gives_everything_back(make: Make) -> None:
    budget = Budget(8 << 20)
    with pytest.raises(ZeroDivisionError):
        async with make(LARGE, budget) as written:
            await written.writer.write(memoryview(pattern(LARGE - 7)))
            raise ZeroDivisionError
    assert budget.used == 0


# Of files only


@pytest.mark.parametrize("device", ["/dev/full", "read-only"])
@pytest.mark.parametrize("size", [5, LARGE, 30 << 20])
async def test_a_write_that_fails_is_reported_and_buffers_come_back(device: str, size: int) -> None:
    fd = os.open("/dev/full", os.O_RDWR) if device == "/dev/full" else os.open("/dev/zero", os.O_RDONLY)
    budget = Budget(4 << 20)
    expected = ResourceExhausted if device == "/dev/full" else StorageFailed
    async with to_file(fd, budget) as written:
        with pytest.raises(expected):
            await written.writer.write(memoryview(pattern(size)))
            await written.writer.finish()
        with pytest.raises(expected):
            await written.writer.finish()
    assert budget.used == 0
    os.close(fd)


async def test_a_write_that_fails_ends_an_endless_upload() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    budget = Budget(64 << 20)
    piece = memoryview(bytes(BUFFER_BYTES))
    with pytest.raises(ResourceExhausted):
        async with to_file(fd, budget) as written:
            with pytest.raises(ResourceExhausted):
                while True:
                    await written.writer.write(piece)
            raise ResourceExhausted
    assert budget.used == 0
    os.close(fd)


class Gate:
    """Holds up every write to a file until it's opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.fds: list[int] = []
        write_buffer = writers._write_buffer

        def held_up(fd: int, content: memoryview, offset: int) -> None:
            self.reached.set()
            self.open.wait(10)
            os.fstat(fd)
            self.fds.append(fd)
            write_buffer(fd, content, offset)

        monkeypatch.setattr(writers, "_write_buffer", held_up)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


@every_file
async def test_one_upload_takes_a_few_buffers_only(make: Make, gate: Gate, nursery: trio.Nursery) -> None:
    budget = Budget(64 << 20)
    async with make(0, budget) as written:
        nursery.start_soon(written.writer.write, memoryview(bytes(20 << 20)))
        await trio.testing.wait_all_tasks_blocked()
        assert budget.used == BUFFERS_AHEAD * BUFFER_BYTES
        gate.open.set()
        nursery.cancel_scope.cancel()


@every_file
async def test_cancelled_it_ends_when_no_thread_uses_the_file_any_more(
    make: Make, gate: Gate, nursery: trio.Nursery
) -> None:
    budget = Budget(64 << 20)
    ended = trio.Event()
    scope = trio.CancelScope()

    async def upload() -> None:
        with scope:
            async with make(0, budget) as written:
                await written.writer.write(memoryview(bytes(20 << 20)))
        ended.set()

    nursery.start_soon(upload)
    assert await trio.to_thread.run_sync(gate.reached.wait, 10)
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not ended.is_set()
    gate.open.set()
    await ended.wait()
    assert gate.fds
    assert budget.used == 0


@every_file
async def test_cancelled_it_does_not_write_what_is_left(make: Make, gate: Gate, nursery: trio.Nursery) -> None:
    async with make(0, Budget(64 << 20)) as written:
        with trio.CancelScope() as scope:
            nursery.start_soon(written.writer.write, memoryview(bytes(20 << 20)))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            gate.open.set()
        nursery.cancel_scope.cancel()
    assert len(gate.fds) <= 2 * BUFFERS_AHEAD


async def test_a_shielded_upload_is_whole_though_everything_around_it_is_cancelled() -> None:
    """A stage that ended early must never pass for one that has done its work."""
    content = pattern(LARGE)
    fd = os.memfd_create("test")
    budget = Budget(64 << 20)
    async with trio.open_nursery() as nursery:
        async with file_writer(fd, BufferPool(budget, nursery), Threads(silent_logger()), nursery) as writer:
            with trio.CancelScope(shield=True):
                await writer.write(memoryview(content)[:1_500_000])
                nursery.cancel_scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                await writer.write(memoryview(content)[1_500_000:])
                assert await writer.finish() == hashlib.sha256(content).digest()
    assert bytes_of(fd) == content
    assert budget.used == 0
    os.close(fd)


async def test_hundreds_of_uploads_share_a_small_budget(nursery: trio.Nursery) -> None:
    budget = Budget(4 << 20)
    pool = BufferPool(budget, nursery)
    threads = Threads(silent_logger())
    content = pattern(LARGE)
    done = 0

    async def upload() -> None:
        nonlocal done
        fd = os.memfd_create("test")
        async with file_writer(fd, pool, threads, nursery) as writer:
            for start in range(0, LARGE, 300_000):
                await writer.write(memoryview(content)[start : start + 300_000])
            assert await writer.finish() == hashlib.sha256(content).digest()
        os.close(fd)
        done += 1

    async with trio.open_nursery() as uploads:
        for _ in range(100):
            uploads.start_soon(upload)
    assert done == 100
    assert budget.used == 0


@pytest.mark.parametrize("direct", [False, True])
async def test_uploads_that_stall_keep_nobody_waiting(
    direct: bool, tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """They aren't harmed by it either: their bytes come in the end."""
    budget = Budget(2 * BUFFER_BYTES)
    pool = BufferPool(budget, nursery)
    threads = Threads(silent_logger())
    content = pattern(LARGE)
    stalled, go_on = 0, trio.Event()

    async def stalling(number: int) -> None:
        nonlocal stalled
        fd = os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT)
        if direct:
            writers.bypass_page_cache(fd)
        async with file_writer(fd, pool, threads, nursery) as writer:
            await writer.write(memoryview(content)[: number * 100_001])
            stalled += 1
            await go_on.wait()
            await writer.write(memoryview(content)[number * 100_001 :])
            assert await writer.finish() == hashlib.sha256(content).digest()
        os.close(fd)
        assert (tmp_path / str(number)).read_bytes() == content

    async with trio.open_nursery() as uploads:
        for number in range(1, 21):
            uploads.start_soon(stalling, number)
        await trio.testing.wait_all_tasks_blocked()
        assert stalled < 20
        async with memory_file(budget, pool) as written:
            await written.writer.write(memoryview(content))
            assert await written.writer.finish() == hashlib.sha256(content).digest()
            assert written.content() == content
        assert stalled == 20
        go_on.set()
    assert budget.used == 0


async def test_a_buffer_is_not_called_in_before_its_time(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    budget = Budget(2 * BUFFER_BYTES)
    pool = BufferPool(budget, nursery)
    async with (
        memory_file(budget, pool) as first,
        memory_file(budget, pool) as second,
        memory_file(budget, pool) as third,
    ):
        await first.writer.write(memoryview(b"1"))
        mock_clock.jump(1000)
        await second.writer.write(memoryview(b"2"))
        await trio.testing.wait_all_tasks_blocked()
        assert budget.used == 2 * BUFFER_BYTES, "nobody waits"
        nursery.start_soon(third.writer.write, memoryview(b"3"))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(FILLING_SECONDS * 0.9)
        await trio.testing.wait_all_tasks_blocked()
        assert (first.content(), second.content()) == (b"", b"")
        mock_clock.jump(FILLING_SECONDS * 0.11)
        while first.content() != b"1":
            await trio.to_thread.run_sync(lambda: None)


async def test_small_content_for_which_no_memory_is_left_is_not_gathered() -> None:
    budget = Budget(1000)
    with small_writer(budget, 600) as first, small_writer(budget, 401) as second, small_writer(budget, 400) as third:
        assert first is not None
        assert second is None
        assert third is not None
        assert budget.used == 1000
    assert budget.used == 0
    with small_writer(Budget(1 << 30), SMALL_BYTES + 1) as large:
        assert large is None


# Past the page cache


def direct_file(directory: Path) -> int:
    fd = os.open(directory / "content", os.O_RDWR | os.O_CREAT)
    writers.bypass_page_cache(fd)
    if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
        os.close(fd)
        pytest.skip("this file system has no O_DIRECT")
    return fd


@pytest.mark.parametrize("limit", [512, 1000, 4096, 100_000])
async def test_a_direct_write_that_is_cut_short_goes_on(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = direct_file(tmp_path)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:limit], offset))
    content = pattern(BUFFER_BYTES + 300_000)
    async with to_file(fd, Budget(8 << 20)) as written:
        await written.writer.write(memoryview(content))
        await written.writer.finish()
        assert (tmp_path / "content").read_bytes() == content
    os.close(fd)


async def test_blocks_go_past_the_page_cache_and_the_tail_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = direct_file(tmp_path)
    pwrite = os.pwrite
    direct = 0

    def counting(fd: int, data: memoryview, offset: int) -> int:
        nonlocal direct
        written = pwrite(fd, data, offset)
        direct += written if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT else 0
        return written

    monkeypatch.setattr(os, "pwrite", counting)
    async with to_file(fd, Budget(8 << 20)) as written:
        await written.writer.write(memoryview(pattern(2 * BUFFER_BYTES + 5000)))
        await written.writer.finish()
    assert direct == 2 * BUFFER_BYTES + 4096
    os.close(fd)
