"""Row 34: everything at once in a container of 256 MiB, with the defaults: the kernel has no reason to kill the server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

import modelreg.client as cogment
from modelreg.api import model_registry_pb2 as api
from tests.faults.abuse import LARGEST_WINDOW, begin, encoded, until
from tests.support.control_group import control_group
from tests.support.h2client import SETTINGS_INITIAL_WINDOW_SIZE, connected
from tests.support.server import ServerProgram

MIB = 1 << 20

LIMIT = 256 * MIB

STALLED = 100

JOIN = """
import os, sys
with open({procs!r}, "w") as procs:
    procs.write(str(os.getpid()))
from modelreg.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProgram]:
    """A server in a control group. At the end it's stopped, and has to be there still."""
    with control_group(LIMIT) as group:
        program = ServerProgram(tmp_path / "archive")
        program.program = ("-c", JOIN.format(procs=str(group / "cgroup.procs")))
        program.start()
        try:
            yield program
        except BaseException:
            program.kill()
            raise
        program.stop()


async def test_uploads_transient_versions_downloads_and_lists(server: ServerProgram) -> None:
    waiting = 0

    async def stalls() -> AsyncIterator[bytes]:
        nonlocal waiting
        yield os.urandom(2 * MIB - 4096)  # nearly a buffer
        waiting += 1
        await trio.sleep_forever()

    async def store(registry: cogment.ModelRegistry) -> None:
        await registry.store_model("stalled", stalls(), size=64 * MIB)

    async def publish(registry: cogment.ModelRegistry) -> None:
        for _ in range(5):
            with contextlib.suppress(cogment.Exhausted):  # uploads under way may have it all
                await registry.publish_model("transient", os.urandom(4 * MIB))

    async with cogment.Context("test") as context:
        registry = await context.get_model_registry_v2(cogment.Endpoint(f"grpc://{server.address}"))
        content = os.urandom(20 * MIB)
        await registry.store_model("m", content)
        await registry.update_model_info("m", {"notes": "x" * 100_000})
        await registry.update_model_info("stalled", {})
        async with (
            connected(server.port, {SETTINGS_INITIAL_WINDOW_SIZE: 0}) as blind,
            connected(server.port, {SETTINGS_INITIAL_WINDOW_SIZE: LARGEST_WINDOW}, credit=False) as deaf,
            trio.open_nursery() as nursery,
        ):
            for _ in range(STALLED):
                nursery.start_soon(store, registry)
            await until(lambda: waiting == STALLED)
            for _ in range(100):
                await begin(blind, "RetrieveModels", encoded(api.RetrieveModelsRequest(model_ids=["m"] * 20)))
                await begin(
                    deaf, "RetrieveVersionData", encoded(api.RetrieveVersionDataRequest(model_id="m", version_number=1))
                )
            async with trio.open_nursery() as publishers:
                for _ in range(4):
                    publishers.start_soon(publish, registry)
            for _ in range(2):
                await registry.store_model("m", content)
                assert await registry.retrieve_model("m") == content
            nursery.cancel_scope.cancel()
