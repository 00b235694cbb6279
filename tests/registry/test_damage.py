from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from modelreg.bell import Bell
from modelreg.errors import DataLoss, NotFound
from modelreg.registry import damage
from modelreg.registry.damage import damaged_versions, tell_damage
from modelreg.registry.registry import Registry
from modelreg.services import status
from modelreg.services.status import statuses
from tests.registry.test_registry import add, archive_of, registry_at


def lose(registry: Registry, content: bytes) -> str:
    digest = hashlib.sha256(content).digest()
    archive_of(registry)._layout.blob(digest).unlink()
    return digest.hex()


async def meet(registry: Registry, model_id: str, number: int) -> None:
    """Read a version whose data is lost."""
    with pytest.raises(DataLoss):
        async with registry.read(model_id, number) as reader:
            await reader.load()


async def names(registry: Registry, model_id: str | None = None) -> list[tuple[str, int]]:
    return [(version.model_id, version.number) for version in await damaged_versions(registry, model_id)]


@pytest.mark.parametrize("page", [1, 2, 1000])
async def test_every_version_of_lost_content_is_found_until_it_is_healed(
    tmp_path: Path, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "PAGE", page)
    async with registry_at(tmp_path) as registry:
        for model_id in ("a", "b", "c"):
            await registry.create_or_update_model(model_id, {})
        for model_id in ("a", "b"):
            for content in (b"lost", b"kept", b"lost"):
                await add(registry, content, model_id=model_id)
        await add(registry, b"lost", model_id="b", stored=False)  # it takes no memory
        assert await names(registry) == []
        lose(registry, b"lost")
        await meet(registry, "a", 1)
        assert await names(registry) == [("a", 1), ("a", 3), ("b", 1), ("b", 3), ("b", 4)]
        assert await names(registry, "b") == [("b", 1), ("b", 3), ("b", 4)]
        assert await names(registry, "c") == []
        with pytest.raises(NotFound):
            await names(registry, "d")
        await registry.delete_model("a")
        assert await names(registry) == [("b", 1), ("b", 3), ("b", 4)]
        await add(registry, b"lost", model_id="c")
        assert await names(registry) == []


async def test_a_transient_version_that_is_in_memory_is_sound(tmp_path: Path) -> None:
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("a", {})
        await add(registry, b"lost", model_id="a", stored=False)
        await add(registry, b"lost", model_id="a")
        lose(registry, b"lost")
        await meet(registry, "a", 2)
        assert await names(registry) == [("a", 2)]


async def test_each_damaged_version_is_logged_once_and_no_more_than_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "MOST_TOLD", 2)
    changed = Bell()
    with structlog.testing.capture_logs() as log:
        async with registry_at(tmp_path) as registry, trio.open_nursery() as nursery:
            nursery.start_soon(tell_damage, registry, changed, structlog.get_logger())
            await registry.create_or_update_model("a", {})
            for content in (b"one", b"two", b"two", b"two"):
                await add(registry, content, model_id="a")
            for number, content in ((1, b"one"), (2, b"two")):
                sha256 = lose(registry, content)
                await meet(registry, "a", number)
                changed.ring()
                await trio.testing.wait_all_tasks_blocked()
                told: list[Any] = log[:]
                log.clear()
                assert [(line["model"], line["version"], line["sha256"]) for line in told if "model" in line] == (
                    [("a", 1, sha256)] if number == 1 else [("a", 2, sha256), ("a", 3, sha256)]
                )
                assert [line["versions"] for line in told if "versions" in line] == ([] if number == 1 else [1])
                assert {line["log_level"] for line in told} == {"error"}
            changed.ring()
            await trio.testing.wait_all_tasks_blocked()
            assert not log
            nursery.cancel_scope.cancel()


async def test_status_names_so_many_damaged_versions_and_all_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "MOST_LINES", 2)
    async with registry_at(tmp_path) as registry:
        await registry.create_or_update_model("a b", {})
        for _ in range(3):
            await add(registry, b"lost", model_id="a b")
        sha256 = lose(registry, b"lost")
        await meet(registry, "a b", 1)
        assert (await statuses(registry, ["*"]))["damaged_versions"] == (
            f"a b\t1\t{sha256}\na b\t2\t{sha256}\nand 1 more"
        )
        asked = ["damaged_versions:a b", "damaged_versions:b", "damaged_versions:", "damaged"]
        assert await statuses(registry, asked) == {"damaged_versions:a b": "1 2 3", "damaged": "1"}
