"""The official Python SDK: its ModelRegistry does all it can do against `modelreg serve`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest

from tests.clients.calls import data_hash
from tests.support.server import PATIENCE, ServerProgram, StartServer

cogment = pytest.importorskip(
    "cogment",
    reason="the official SDK isn't installed: pip install --no-deps --ignore-requires-python cogment==2.10.1, beside prometheus-client",
)

MIB = 1 << 20

Scenario = Callable[[Any], Awaitable[None]]


@pytest.fixture(autouse=True)
def nothing_tracked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK keeps what it tracks in its module, together with tasks of the event loop that was running then."""
    from cogment import model_registry_v2

    monkeypatch.setattr(model_registry_v2, "_tracked_models", {})
    monkeypatch.setattr(model_registry_v2, "_tracked_models_removal_task", None)


def run(server: ServerProgram, scenario: Scenario) -> None:
    """Run a scenario with the SDK's ModelRegistry."""

    async def main() -> None:
        context = cogment.Context("tests", ModuleType("cog_settings"), prometheus_registry=None)
        registry = await context.get_model_registry_v2(cogment.Endpoint(f"grpc://{server.address}"))
        assert registry.has_specs()
        await asyncio.wait_for(scenario(registry), PATIENCE)

    asyncio.run(main())


def assert_info(info: Any, name: str, iteration: int, data: bytes, *, stored: bool, **properties: str) -> None:
    assert (info.model_name, info.iteration, info.stored) == (name, iteration, stored)
    assert (info.hash, info.size, dict(info.properties)) == (data_hash(data), len(data), properties)
    assert abs(time.time_ns() - info.timestamp) < 60 * 10**9


@pytest.mark.parametrize("stored", [True, False], ids=["store_model", "publish_model"])
@pytest.mark.parametrize("size", [1, 2 * MIB, 9 * MIB + 1])
def test_store_or_publish_then_retrieve(shared_server: ServerProgram, stored: bool, size: int) -> None:
    name, data = f"sdk {stored} {size}", b"d" * size

    async def scenario(registry: Any) -> None:
        send = registry.store_model if stored else registry.publish_model
        # The model needn't be there before.
        assert_info(await send(name, data), name, 1, data, stored=stored)
        assert_info(await send(name, b"second", {"accuracy": "0.9"}), name, 2, b"second", stored=stored, accuracy="0.9")
        assert await registry.retrieve_model(name, 1) == data
        assert await registry.retrieve_model(name) == b"second"
        assert await registry.retrieve_model(name, -2) == data
        # What isn't there is None, and a model that isn't there an error.
        assert await registry.retrieve_model(name, 3) is None
        with pytest.raises(cogment.CogmentError, match="Unknown model"):
            await registry.retrieve_model("never there")

    run(shared_server, scenario)


def test_list_iterations_and_get_iteration_info(shared_server: ServerProgram) -> None:
    async def scenario(registry: Any) -> None:
        await registry.update_model_info("list", {})
        assert await registry.list_iterations("list") == []
        assert await registry.get_iteration_info("list", -1) is None
        assert await registry.retrieve_model("list") is None
        for number in range(1, 22):
            await (registry.publish_model if number % 2 else registry.store_model)("list", b"%d" % number)
            # Whatever their number is of the SDK's pages, which have ten.
            iterations = await registry.list_iterations("list")
            assert [info.iteration for info in iterations] == list(range(1, number + 1))
        assert_info(await registry.get_iteration_info("list", 5), "list", 5, b"5", stored=False)
        assert_info(await registry.get_iteration_info("list", 4), "list", 4, b"4", stored=True)
        assert (await registry.get_iteration_info("list", -1)).iteration == 21
        assert (await registry.get_iteration_info("list", -21)).iteration == 1
        assert await registry.get_iteration_info("list", 22) is None
        assert await registry.get_iteration_info("list", -22) is None
        with pytest.raises(cogment.CogmentError, match="Unknown model"):
            await registry.get_iteration_info("never there", 1)
        with pytest.raises(cogment.CogmentError, match="iteration list"):
            await registry.list_iterations("never there")

    run(shared_server, scenario)


def test_list_models(start_server: StartServer) -> None:
    async def scenario(registry: Any) -> None:
        assert await registry.list_models() == []
        names: list[str] = []
        for number in range(1, 22):
            names.append(f"model {number:02}")
            await registry.update_model_info(names[-1], {"name": names[-1]})
            # Whatever their number is of the SDK's pages.
            found = [(model.name, dict(model.properties)) for model in await registry.list_models()]
            assert found == [(name, {"name": name}) for name in names]

    run(start_server(), scenario)


def test_update_and_get_model_info_and_remove_model(shared_server: ServerProgram) -> None:
    async def scenario(registry: Any) -> None:
        assert await registry.get_model_info("props") is None
        await registry.update_model_info("props", {"colour": "red", "shape": "round"})
        await registry.store_model("props", b"data")
        await registry.update_model_info("props", {"colour": "blue"})
        info = await registry.get_model_info("props")
        assert (info.name, dict(info.properties)) == ("props", {"colour": "blue"})
        assert await registry.retrieve_model("props") == b"data"
        await registry.remove_model("props")
        assert await registry.get_model_info("props") is None
        assert "props" not in [model.name for model in await registry.list_models()]
        assert (await registry.store_model("props", b"anew")).iteration == 1

    run(shared_server, scenario)


def test_iteration_updates(shared_server: ServerProgram) -> None:
    async def scenario(registry: Any) -> None:
        await registry.store_model("updates", b"1")
        await registry.store_model("updates", b"2")
        updates = registry.iteration_updates("updates")
        assert_info(await anext(updates), "updates", 2, b"2", stored=True)
        for number in range(3, 30):
            await (registry.publish_model if number % 2 else registry.store_model)("updates", b"data")
        assert [(await anext(updates)).iteration for _ in range(3, 30)] == list(range(3, 30))
        await updates.aclose()

    run(shared_server, scenario)


def test_iteration_updates_end_when_the_server_stops(start_server: StartServer) -> None:
    server = start_server()

    async def scenario(registry: Any) -> None:
        await registry.store_model("updates", b"1")
        updates = registry.iteration_updates("updates")
        assert (await anext(updates)).iteration == 1
        await asyncio.get_running_loop().run_in_executor(None, server.stop)
        # UNAVAILABLE is what the SDK takes for an end.
        with pytest.raises(StopAsyncIteration):
            await anext(updates)

    run(server, scenario)


def deserialize(data: bytes) -> object:
    return json.loads(data)


def test_track_latest_model(shared_server: ServerProgram) -> None:
    async def scenario(registry: Any) -> None:
        await registry.update_model_info("tracked", {})
        latest = await registry.track_latest_model("tracked", deserialize_func=deserialize)
        assert latest.name == "tracked"
        assert not latest.is_available()
        await registry.publish_model("tracked", b'{"weights": [1]}')
        await latest.wait_for_available()
        model, info = await latest.get()
        assert (model, info.iteration) == ({"weights": [1]}, 1)
        for number in range(2, 8):
            await (registry.publish_model if number % 2 else registry.store_model)(
                "tracked", b'{"weights": [%d]}' % number
            )
            await latest.wait_for_newer(number - 1)
            model, info = await latest.get()
            assert (model, info.iteration) == ({"weights": [number]}, number)
        # A second one shares the work.
        again = await registry.track_latest_model("tracked", deserialize_func=deserialize)
        assert (await again.get())[0] == {"weights": [7]}

    run(shared_server, scenario)


def test_track_latest_model_without_deserialize_func(shared_server: ServerProgram) -> None:
    async def scenario(registry: Any) -> None:
        await registry.store_model("bytes", b"d" * 9 * MIB)
        latest = await registry.track_latest_model("bytes")
        model, info = await latest.get()
        assert (model, info.iteration) == (b"d" * 9 * MIB, 1)

    run(shared_server, scenario)


def test_track_latest_model_that_is_not_there(shared_server: ServerProgram) -> None:
    async def scenario(registry: Any) -> None:
        with pytest.raises(cogment.CogmentError, match="not found"):
            await registry.track_latest_model("never there")

    run(shared_server, scenario)


# In one process

EXCHANGE = """
from modelreg.api import model_registry_pb2 as ours
from cogment.api import model_registry_pb2 as theirs

info = theirs.ModelVersionInfo(
    model_id="m", version_number=7, creation_timestamp=1633119005107454620, archived=True, data_hash="h", data_size=14,
    user_data={"a": "b"},
)
copy = ours.ModelVersionInfo.FromString(info.SerializeToString())
assert (copy.model_id, copy.version_number, copy.creation_timestamp) == ("m", 7, 1633119005107454620)
assert (copy.archived, copy.data_hash, copy.data_size, dict(copy.user_data)) == (True, "h", 14, {"a": "b"})
assert theirs.ModelVersionInfo.FromString(copy.SerializeToString()) == info

# Every message there is here has the same fields there.
for file, other in ((ours.DESCRIPTOR, theirs.DESCRIPTOR), *zip(ours.DESCRIPTOR.dependencies, theirs.DESCRIPTOR.dependencies)):
    assert file is not other
    for name, message in file.message_types_by_name.items():
        fields = {field.name: (field.number, field.type) for field in message.fields}
        assert fields == {field.name: (field.number, field.type) for field in other.message_types_by_name[name].fields}
for ours_of_it, theirs_of_it in zip(
    ours.DESCRIPTOR.services_by_name["ModelRegistrySP"].methods, theirs.DESCRIPTOR.services_by_name["ModelRegistrySP"].methods
):
    assert (ours_of_it.name, ours_of_it.input_type.full_name) == (theirs_of_it.name, theirs_of_it.input_type.full_name)
    assert ours_of_it.client_streaming == theirs_of_it.client_streaming
"""


@pytest.mark.parametrize(
    "imports",
    ["import cogment\nimport modelreg.server\n", "import modelreg.server\nimport cogment\n"],
    ids=["the SDK first", "modelreg first"],
)
def test_both_in_one_process_exchange_messages(imports: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", imports + EXCHANGE], check=True, timeout=PATIENCE)
