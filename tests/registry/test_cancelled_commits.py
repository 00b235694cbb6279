"""A commit, or a deletion, that has begun is finished, at whichever of its checkpoints it's cancelled.

Beside each there is a commit of a lower number, which the disk holds up: what comes later waits for it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import trio

from modelreg.registry.model import Model
from modelreg.registry.numbers import VersionNumbers
from modelreg.registry.records import UploadHeader
from modelreg.registry.registry import Registry, open_registry
from modelreg.storage import sidecars
from modelreg.storage.layout import Layout
from modelreg.storage.sidecars import VersionRecord
from tests.storage.surroundings import LARGE, archive_at, blobs_below, pattern

HELD_UP = b"held up"
OTHERS = {"small": b"small", "large": pattern(LARGE)}

# More than any commit waits.
MANY = 50


class CancelAtCheckpoint(trio.abc.Instrument):
    """Cancels a task when it waits for the *number*-th time since it has begun."""

    def __init__(self, number: int) -> None:
        self.scope = trio.CancelScope()
        self._left = number
        self._inside: trio.lowlevel.Task | None = None
        self._task: trio.lowlevel.Task | None = None

    def begin(self) -> None:
        """Count from now on how often the task that runs waits, if it's inside the scope."""
        if trio.lowlevel.current_task() is self._inside:
            self._task = self._inside

    def __enter__(self) -> None:
        self._inside = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(self)
        self.scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        trio.lowlevel.remove_instrument(self)
        return self.scope.__exit__(kind, error, traceback)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self.scope.cancel()


class Rehearsal:
    """A registry in which one commit is held up, and another piece of work is cancelled."""

    def __init__(self, registry: Registry, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.registry = registry
        self.layout = Layout(path)
        self._cancel = CancelAtCheckpoint(0)
        self._writing = threading.Event()
        self._go_on = threading.Event()
        self._waits = trio.Event()
        write_version, turn, wait_idle = sidecars.write_version, VersionNumbers.turn, Model.wait_idle
        commit, delete = Model.commit, Registry._delete

        def hold_up(layout: Layout, record: VersionRecord) -> None:
            if record.sha256 == hashlib.sha256(HELD_UP).hexdigest():
                self._writing.set()
                assert self._go_on.wait(10)
            write_version(layout, record)

        async def watched_turn(numbers: VersionNumbers, number: int) -> None:
            if next(iter(numbers._under_way)) != number:
                self._waits.set()
            await turn(numbers, number)

        async def watched_wait_idle(model: Model) -> None:
            self._waits.set()
            await wait_idle(model)

        def begun_commit(model: Model) -> Any:
            self._cancel.begin()
            return commit(model)

        async def begun_delete(registry: Registry, model: Model) -> None:
            self._cancel.begin()
            await delete(registry, model)

        monkeypatch.setattr(sidecars, "write_version", hold_up)
        monkeypatch.setattr(VersionNumbers, "turn", watched_turn)
        monkeypatch.setattr(Model, "wait_idle", watched_wait_idle)
        monkeypatch.setattr(Model, "commit", begun_commit)
        monkeypatch.setattr(Registry, "_delete", begun_delete)

    async def add(self, content: bytes, *, stored: bool) -> None:
        digest = hashlib.sha256(content).digest()
        header = UploadHeader(model_id="m", stored=stored, size=len(content), digest=digest)
        async with self.registry.upload(header) as upload:
            await upload.write(memoryview(content))
            await upload.commit()

    async def cancelled(self, number: int, work: Callable[[], Awaitable[object]]) -> bool:
        """Whether some work on a new model waited often enough to be cancelled when it did so for the *number*-th time."""
        await self.registry.create_or_update_model("m", {})
        self._writing.clear()
        self._go_on.clear()
        self._waits = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: self.add(HELD_UP, stored=True))
            assert await trio.to_thread.run_sync(self._writing.wait, 10)
            nursery.start_soon(self._go_on_when_it_waits)
            self._cancel = CancelAtCheckpoint(number)
            with self._cancel:
                await work()
            self._waits.set()
        return self._cancel.scope.cancel_called

    async def _go_on_when_it_waits(self) -> None:
        await self._waits.wait()
        self._go_on.set()


@pytest.fixture
async def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rehearsal]:
    async with archive_at(tmp_path) as archive:
        async with open_registry(archive, cache_max_items=10, cache_max_bytes=100 << 20) as registry:
            yield Rehearsal(registry, tmp_path, monkeypatch)


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "transient"])
async def test_a_commit(stored: bool, content: bytes, rehearsal: Rehearsal) -> None:
    registry = rehearsal.registry
    for number in range(1, MANY):
        cancelled = await rehearsal.cancelled(number, lambda: rehearsal.add(content, stored=stored))
        versions = list(registry.versions("m"))
        assert [version.number for version in versions] == [1, 2]
        assert [version.stored for version in versions] == [True, stored]
        there = [path.name for path in rehearsal.layout.versions("m").iterdir()]
        assert len(there) == sum(version.stored for version in versions)
        await registry.delete_model("m")
        assert blobs_below(rehearsal.layout.root) == set()
        if not cancelled:
            assert number > 1
            return
    raise AssertionError("it waits too often")


async def test_a_deletion(rehearsal: Rehearsal) -> None:
    registry = rehearsal.registry
    for number in range(1, MANY):
        cancelled = await rehearsal.cancelled(number, lambda: registry.delete_model("m"))
        assert not list(registry.models())
        assert not rehearsal.layout.model("m").exists()
        assert blobs_below(rehearsal.layout.root) == set()
        assert registry.statistics().stored_bytes == 0
        if not cancelled:
            assert number > 2
            return
    raise AssertionError("it waits too often")
