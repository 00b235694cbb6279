"""The cache of downloads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import modelreg.client as cogment
from tests.client.conftest import Run


@contextlib.asynccontextmanager
async def registry_at(url: str, cache: cogment.Cache) -> AsyncIterator[Any]:
    async with cogment.Context("test") as context:
        yield await context.get_model_registry_v2(cogment.Endpoint(url), cache=cache)


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    return cogment.Cache(tmp_path / "cache", max_bytes=1000)


def files(cache: cogment.Cache) -> Any:
    return sorted(cache.directory.glob("*/*"), key=lambda path: path.stat().st_mtime_ns)


def test_the_same_data_is_downloaded_once(
    run: Run, url: str, name: str, cache: cogment.Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        async with registry_at(url, cache) as registry:
            await registry.store_model(name, b"data")
            await registry.store_model(f"{name} 2", b"data")
            assert await registry.retrieve_model(name) == b"data"
            monkeypatch.delattr("modelreg.client.download.Download.run")
            told = []
            assert await registry.retrieve_model(f"{name} 2", progress=lambda *args: told.append(args)) == b"data"
            assert told == [(4, 4)]
            await registry.download_model(name, tmp_path / "file")
            assert (tmp_path / "file").read_bytes() == b"data"
            buffer = bytearray(10)
            await registry.download_model(name, buffer)
            assert buffer[:4] == b"data"

    run(main)
    assert len(files(cache)) == 1


def test_it_is_filled_by_files_and_buffers_too(
    run: Run, url: str, name: str, cache: cogment.Cache, tmp_path: Path
) -> None:
    async def main() -> None:
        async with registry_at(url, cache) as registry:
            await registry.store_model(name, b"one")
            await registry.download_model(name, tmp_path / "file")
            assert [path.read_bytes() for path in files(cache)] == [b"one"]
            await registry.store_model(name, b"two")
            await registry.download_model(name, bytearray(10))
            assert [path.read_bytes() for path in files(cache)] == [b"one", b"two"]

    run(main)


def test_damaged_data_is_dropped(
    run: Run, url: str, name: str, cache: cogment.Cache, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with registry_at(url, cache) as registry:
            await registry.store_model(name, b"data")
            await registry.retrieve_model(name)
            for wrong in (b"DATA", b"too long", b""):
                (path,) = files(cache)
                path.write_bytes(wrong)
                assert await registry.retrieve_model(name) == b"data"
                assert path.read_bytes() == b"data"

    run(main)
    assert "damaged" in caplog.text


def test_it_holds_no_more_than_allowed(run: Run, url: str, name: str, cache: cogment.Cache) -> None:
    async def main() -> None:
        async with registry_at(url, cache) as registry:
            for number in range(3):
                await registry.store_model(name, bytes([number]) * 400)
                await registry.retrieve_model(name)
                for age, path in enumerate(reversed(files(cache))):
                    os.utime(path, (1000 - age, 1000 - age))
            assert [path.read_bytes()[0] for path in files(cache)] == [1, 2]
            await registry.retrieve_model(name, 2)  # used
            await registry.retrieve_model(name, 1)
            assert {path.read_bytes()[0] for path in files(cache)} == {1, 0}
            await registry.store_model(name, bytes(1001))
            await registry.retrieve_model(name)
            assert len(files(cache)) == 2

    run(main)


def test_one_that_can_not_be_written_is_no_reason_to_fail(
    run: Run, url: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = cogment.Cache(tmp_path / "file" / "cache")

    async def main() -> None:
        async with registry_at(url, cache) as registry:
            await registry.store_model(name, b"data")
            assert await registry.retrieve_model(name) == b"data"

    run(main)
    assert "can't write to the cache" in caplog.text


def test_its_place_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cogment.Cache().directory == tmp_path / "modelreg" / "models"
