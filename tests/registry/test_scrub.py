"""The background scrub: what it hashes, how fast, and what it finds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from modelreg.registry import scrub as scrub_module
from modelreg.registry.records import UploadHeader
from modelreg.registry.registry import Registry, open_registry
from modelreg.registry.scrub import scrub
from modelreg.storage.archive import Archive
from modelreg.storage.layout import Layout
from tests.storage.surroundings import archive_at

FAST = 1 << 40


class Log:
    """What has been logged; *waiting* for a line of an event is for the tests."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._send, self._receive = trio.open_memory_channel[dict[str, Any]](math.inf)
        self.logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            None, processors=[self._add], wrapper_class=structlog.make_filtering_bound_logger(0)
        ).bind()

    def _add(self, _: object, level: str, event: Any) -> Any:
        self.lines.append({"level": level, **event})
        self._send.send_nowait(self.lines[-1])
        raise structlog.DropEvent

    async def next(self, event: str) -> dict[str, Any]:
        with trio.fail_after(30):
            while (line := await self._receive.receive())["event"] != event:
                pass
        return line


@asynccontextmanager
async def scrubbed(path: Path, bytes_per_second: int = FAST) -> AsyncIterator[tuple[Registry, Archive, Log]]:
    log = Log()
    async with (
        archive_at(path) as archive,
        open_registry(archive, cache_max_items=10, cache_max_bytes=1 << 20) as registry,
        trio.open_nursery() as nursery,
    ):
        await registry.create_or_update_model("m", {})
        for content in (b"one", b"two" * 1_000_000, b"one"):
            await store(registry, content)
        nursery.start_soon(scrub, registry, archive, bytes_per_second, log.logger)
        yield registry, archive, log
        nursery.cancel_scope.cancel()


async def store(registry: Registry, content: bytes, *, stored: bool = True) -> None:
    async with registry.upload(UploadHeader(model_id="m", stored=stored, size=len(content))) as upload:
        await upload.write(memoryview(content))
        await upload.commit()


def flip(path: Path, content: bytes) -> Path:
    blob = Layout(path).blob(hashlib.sha256(content).digest())
    blob.chmod(0o640)
    blob.write_bytes(b"x" + content[1:])
    return blob


async def test_all_that_is_stored_is_hashed_once(tmp_path: Path) -> None:
    async with scrubbed(tmp_path) as (registry, _, log):
        line = await log.next("scrubbed")
        assert (line["blobs"], line["bytes"], line["damaged"]) == (2, 3_000_003, 0)
        assert registry.statistics().damage_found == 0


@pytest.mark.parametrize("content", [b"one", b"two" * 1_000_000])
async def test_damage_shows(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "REST_SECONDS", 0)
    async with scrubbed(tmp_path) as (registry, archive, log):
        await log.next("scrubbed")
        blob = flip(tmp_path, content)
        while not (line := await log.next("scrubbed"))["damaged"]:
            pass
        assert line["damaged"] == 1
        statistics = registry.statistics()
        assert statistics.damage_found >= 1
        assert statistics.damaged == 1
        assert not archive.blobs.is_sound(bytes.fromhex(blob.name))
        await store(registry, content)
        assert registry.statistics().damaged == 0
        while (await log.next("scrubbed"))["damaged"]:
            pass


async def test_what_goes_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "REST_SECONDS", 0)
    async with scrubbed(tmp_path) as (registry, archive, log):
        await log.next("scrubbed")
        for _ in range(20):
            await registry.delete_model("m")
            await registry.create_or_update_model("m", {})
            await store(registry, b"one")
            await store(registry, b"transient", stored=False)
            await log.next("scrubbed")
        assert registry.statistics().damage_found == 0
        assert archive.blobs.bytes == 3


async def test_the_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds == scrub_module.REST_SECONDS:
            await trio.sleep_forever()

    monkeypatch.setattr(trio, "sleep", sleep)
    async with scrubbed(tmp_path, bytes_per_second=1_000) as (_, _, log):
        await log.next("scrubbed")
        await trio.testing.wait_all_tasks_blocked()
    expected = (3_000_003 + 2 * scrub_module.BYTES_FOR_A_VERSION) / 1_000
    assert sum(slept) == pytest.approx(expected + scrub_module.REST_SECONDS)
    assert max(slept[:-1]) <= (1 << 20) / 1_000  # it's spread evenly, too
