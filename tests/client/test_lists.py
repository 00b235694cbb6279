"""Lists that are larger than a reply may be come in smaller pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import modelreg.client as cogment
from tests.client.conftest import Run
from tests.client.test_transfer import registry_at
from tests.support.server import ServerProgram, server_program

NOTES = {"notes": "x" * 900}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProgram]:
    with server_program(tmp_path_factory.mktemp("archive"), "--max_reply_bytes=10000") as program:
        yield program


def test_lists_are_complete_however_large(run: Run, url: str, name: str) -> None:
    async def main() -> None:
        async with registry_at(url) as registry:
            for number in range(30):
                await registry.update_model_info(f"{name} {number:02}", NOTES)
                await registry.publish_model(name, b"", NOTES)
            models = [info.name for info in await registry.list_models()]
            assert [f"{name} {number:02}" for number in range(30)] == [m for m in models if m.startswith(f"{name} ")]
            assert len(set(models)) == len(models)
            assert [info.iteration for info in await registry.list_iterations(name)] == list(range(1, 31))
            updates = registry.iteration_updates(name, after=2)
            assert [(await anext(updates)).iteration for _ in range(28)] == list(range(3, 31))

    run(main)


def test_one_entry_that_is_too_large_is_an_error(run: Run, url: str, name: str) -> None:
    async def main() -> None:
        async with registry_at(url) as registry:
            await registry.update_model_info(name, {})
            await registry.publish_model(name, b"", {"notes": "x" * 20_000})
            with pytest.raises(cogment.Exhausted, match="--max_reply_bytes"):
                await registry.list_iterations(name)

    run(main)
