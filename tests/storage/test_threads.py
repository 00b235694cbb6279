from __future__ import annotations

import errno
import os
import threading

import pytest
import trio
import trio.testing

from modelreg.errors import ResourceExhausted, StorageFailed, Unavailable
from modelreg.log import silent_logger
from modelreg.storage.durable import DirectorySyncError
from modelreg.storage.threads import FILE_THREADS, Threads


@pytest.fixture
def threads() -> Threads:
    return Threads(silent_logger())


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("run", ["file", "hash", "memory"])
async def test_work_runs_in_a_thread(run: str, threads: Threads) -> None:
    def work(*, end: int) -> tuple[int, int]:
        return end, threading.get_ident()

    result, thread = await getattr(threads, run)(work, end=3)
    assert result == 3
    assert thread != threading.get_ident()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_no_space(number: int, threads: Threads) -> None:
    with pytest.raises(ResourceExhausted, match="--archive_dir"):
        await threads.file(fail, OSError(number, os.strerror(number), "/the/archive/tmp/secret"))


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EDQUOT])
async def test_no_memory(number: int, threads: Threads) -> None:
    with pytest.raises(ResourceExhausted, match="no memory left for transient versions: lower --cache_max_bytes"):
        await threads.memory(fail, OSError(number, os.strerror(number)))


async def test_memory_that_can_not_be_used(threads: Threads) -> None:
    with pytest.raises(StorageFailed, match="the memory for transient versions could not be used"):
        await threads.memory(fail, OSError(errno.EIO, os.strerror(errno.EIO)))


@pytest.mark.parametrize("run", ["file", "memory"])
@pytest.mark.parametrize(("number", "limit"), [(errno.EMFILE, "-n"), (errno.ENFILE, "-n"), (errno.EFBIG, "-f")])
async def test_limits_of_files(run: str, number: int, limit: str, threads: Threads) -> None:
    with pytest.raises(ResourceExhausted, match=f"ulimit {limit}"):
        await getattr(threads, run)(fail, OSError(number, os.strerror(number), "/the/archive/tmp/secret"))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS, errno.ENOENT])
async def test_any_other_error_names_no_path(number: int, threads: Threads) -> None:
    with pytest.raises(StorageFailed) as caught:
        await threads.file(fail, OSError(number, os.strerror(number), "/the/archive/tmp/secret"))
    assert os.strerror(number) in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_an_error_without_a_number(threads: Threads) -> None:
    with pytest.raises(StorageFailed):
        await threads.file(fail, OSError("strange"))


async def test_what_is_no_error_of_the_system_passes(threads: Threads) -> None:
    with pytest.raises(ZeroDivisionError):
        await threads.file(fail, ZeroDivisionError())


async def test_after_a_failed_directory_nothing_runs_any_more(threads: Threads) -> None:
    with pytest.raises(Unavailable):
        await threads.file(fail, DirectorySyncError("the directory 'versions' could not be synced"))
    await threads.failed.wait()
    ran: list[int] = []
    for run in (threads.file, threads.hash):
        with pytest.raises(Unavailable):
            await run(ran.append, 1)
    assert ran == []


async def test_a_cancelled_caller_waits_for_its_thread(threads: Threads, nursery: trio.Nursery) -> None:
    go_on = threading.Event()
    ended = trio.Event()
    scope = trio.CancelScope()

    async def call() -> None:
        with scope:
            assert await threads.file(go_on.wait, 10)
        ended.set()

    nursery.start_soon(call)
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not ended.is_set()
    go_on.set()
    await ended.wait()


async def test_hashing_does_not_wait_for_the_disk(threads: Threads, nursery: trio.Nursery) -> None:
    go_on = threading.Event()
    for _ in range(FILE_THREADS + 1):
        nursery.start_soon(threads.file, go_on.wait, 10)
    await trio.testing.wait_all_tasks_blocked()
    assert await threads.hash(int) == 0
    go_on.set()
