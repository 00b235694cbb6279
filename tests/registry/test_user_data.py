from __future__ import annotations

import gc
import itertools
import tracemalloc
from pathlib import Path

import pytest

from modelreg.errors import ResourceExhausted
from modelreg.registry.records import UploadHeader
from modelreg.registry.registry import Registry, open_registry
from modelreg.registry.requests import REMEMBERED, RequestMemory
from modelreg.registry.user_data import UserDataLimits, memory_of
from tests.registry.test_registry import registry_at
from tests.storage.surroundings import archive_at

MIB = 1 << 20


def entries(count: int) -> dict[str, str]:
    return {f"{number:04}": "x" for number in range(count)}


_requests = itertools.count()


async def publish(registry: Registry, user_data: dict[str, str], *, stored: bool = False) -> int:
    header = UploadHeader(model_id="m", stored=stored, size=1, user_data=user_data, request_id=f"{next(_requests)}")
    async with registry.upload(header) as upload:
        await upload.write(memoryview(b"x"))
        return (await upload.commit()).number


def test_limits_are_what_they_say_and_name_their_options() -> None:
    limits = UserDataLimits(entries=2, size=10)
    for fine in ({}, {"a": "b", "c": "d"}, {"a": "x" * 9}, {"é": "é" * 4}):
        assert limits.checked(fine) == fine
    with pytest.raises(ResourceExhausted, match=r"3 entries.*--max_user_data_entries allows 2"):
        limits.checked({"a": "", "b": "", "c": ""})
    for large in ({"a": "x" * 10}, {"é": "é" * 5}, {"x" * 11: ""}):
        with pytest.raises(ResourceExhausted, match=r"1[12] bytes.*--max_user_data_bytes allows 10"):
            limits.checked(large)


@pytest.mark.parametrize(
    "user_data", [entries(10_000), {"a": "x" * MIB}, {"a": "é" * MIB}, {"a": "x" * MIB + "😀"}], ids=len
)
def test_memory_is_what_it_is(user_data: dict[str, str]) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        copy = {key.encode().decode(): value.encode().decode() for key, value in user_data.items()}
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert memory_of(copy) >= taken * 0.9


def test_little_user_data_is_not_counted() -> None:
    assert memory_of({}) == memory_of({"step": "1000", "name": "policy"}) == 0


async def test_user_data_of_transient_versions_counts_until_they_are_gone(tmp_path: Path) -> None:
    user_data = entries(1000)
    size = memory_of(user_data) + 1
    async with registry_at(tmp_path, max_bytes=3 * size) as registry:
        await registry.create_or_update_model("m", {})
        for _ in range(5):
            await publish(registry, dict(user_data))
        assert registry.statistics().transient_bytes == 3 * size
        assert [version.number for version in registry.versions("m")] == [3, 4, 5]
        with pytest.raises(ResourceExhausted, match="--cache_max_bytes"):
            await publish(registry, entries(4000))
        await registry.delete_model("m")
        assert registry.statistics().transient_bytes == 0


async def test_what_is_gone_leaves_no_user_data_behind(tmp_path: Path) -> None:
    async with registry_at(tmp_path, max_items=1) as registry:
        await registry.create_or_update_model("m", {})
        await publish(registry, {"a": "y" * (MIB // 2)})
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(10):
                await publish(registry, {"a": f"{number}" * (MIB // 2)})
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 2 * MIB  # of 5


@pytest.mark.parametrize("stored", [True, False])
async def test_what_is_too_much_is_refused_before_any_data(tmp_path: Path, stored: bool) -> None:
    async with registry_at(tmp_path) as registry:
        with pytest.raises(ResourceExhausted, match="--max_user_data_bytes"):
            await registry.create_or_update_model("m", {"a": "x" * MIB})
        assert list(registry.models()) == []
        await registry.create_or_update_model("m", {})
        with pytest.raises(ResourceExhausted, match="--max_user_data_entries"):
            await publish(registry, entries(10_001), stored=stored)
        assert await publish(registry, entries(10_000), stored=stored) == 1


async def test_uploads_with_much_user_data_have_so_much_memory_together(
    tmp_path: Path,
) -> None:
    header = UploadHeader(model_id="m", stored=True, size=1, user_data={"a": "x" * (MIB - 1)})
    limits = UserDataLimits(arriving=3 * MIB)
    async with (
        archive_at(tmp_path) as archive,
        open_registry(archive, cache_max_items=10, cache_max_bytes=MIB, user_data_limits=limits) as registry,
    ):
        await registry.create_or_update_model("m", {})
        async with registry.upload(header), registry.upload(header):
            with pytest.raises(ResourceExhausted, match="try again"):
                async with registry.upload(header):
                    pass
            assert await publish(registry, {"a": "b"}, stored=True) == 1
        assert await publish(registry, {"a": "x" * (MIB - 1)}, stored=True) == 2


def test_a_request_that_is_made_again_is_the_last_one() -> None:
    memory = RequestMemory((str(number), number) for number in range(REMEMBERED))
    memory.remember("0", 5000)
    memory.remember("new", 5001)
    assert (memory.find("0"), memory.find("1"), memory.find("new")) == (5000, None, 5001)
