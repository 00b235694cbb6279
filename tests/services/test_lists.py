"""Lists while they are made: what changes meanwhile, and how much one call may ask for."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelreg.api import model_registry_pb2 as api
from modelreg.errors import InvalidArgument, NotFound
from modelreg.log import silent_logger
from modelreg.registry.records import UploadHeader
from modelreg.registry.registry import Registry, open_registry
from modelreg.services import lists
from modelreg.storage.archive import open_archive
from modelreg.transport.pieces import PiecewiseMessage

MOST = 120


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with (
        open_archive(tmp_path, silent_logger()) as archive,
        open_registry(archive, cache_max_items=MOST, cache_max_bytes=1000) as registry,
    ):
        yield registry


async def publish(registry: Registry) -> None:
    header = UploadHeader(model_id="m", stored=False, size=0, digest=hashlib.sha256().digest())
    async with registry.upload(header) as upload:
        await upload.commit()


def versions(message: PiecewiseMessage) -> api.RetrieveVersionInfosReply:
    return api.RetrieveVersionInfosReply.FromString(message.SerializeToString())


def models(message: PiecewiseMessage) -> api.RetrieveModelsReply:
    return api.RetrieveModelsReply.FromString(message.SerializeToString())


async def test_a_page_is_whole_though_versions_go_while_it_is_made(registry: Registry) -> None:
    await registry.create_or_update_model("m", {})
    for _ in range(MOST):
        await publish(registry)
    made = lists.versions(registry, api.RetrieveVersionInfosRequest(model_id="m", versions_count=110)).pieces()
    pieces = [next(made)]
    for _ in range(50):  # each evicts the oldest
        await publish(registry)
    pieces += made
    reply = api.RetrieveVersionInfosReply.FromString(b"".join(pieces))
    numbers = [info.version_number for info in reply.version_infos]
    assert len(numbers) == 110
    assert numbers == sorted(set(numbers))
    assert set(range(51, numbers[-1] + 1)) <= set(numbers)
    assert reply.next_version_handle == str(numbers[-1] + 1)


async def test_a_page_is_whole_though_models_come_and_go_while_it_is_made(registry: Registry) -> None:
    names = [f"m{number:03}" for number in range(150)]
    for name in names:
        await registry.create_or_update_model(name, {})
    made = lists.models(registry, api.RetrieveModelsRequest(models_count=130)).pieces()
    pieces = [next(made)]
    await registry.delete_model("m001")
    await registry.delete_model("m110")
    await registry.create_or_update_model("a", {})
    pieces += made
    found = [info.model_id for info in api.RetrieveModelsReply.FromString(b"".join(pieces)).model_infos]
    assert found == [name for name in names if name != "m110"][:130]


async def test_a_list_of_a_model_that_is_deleted_while_the_call_waits(registry: Registry) -> None:
    await registry.create_or_update_model("m", {})
    message = lists.versions(registry, api.RetrieveVersionInfosRequest(model_id="m"))
    await registry.delete_model("m")
    with pytest.raises(NotFound):
        list(message.pieces())


async def test_a_call_names_so_many_at_most(registry: Registry) -> None:
    await registry.create_or_update_model("m", {})
    await publish(registry)
    most = lists.MOST_ASKED
    reply = versions(
        lists.versions(registry, api.RetrieveVersionInfosRequest(model_id="m", version_numbers=[-1] * most))
    )
    assert len(reply.version_infos) == most
    assert len(models(lists.models(registry, api.RetrieveModelsRequest(model_ids=["m"] * most))).model_infos) == most
    with pytest.raises(InvalidArgument, match=f"{most + 1} versions.*{most} at once"):
        lists.versions(registry, api.RetrieveVersionInfosRequest(model_id="m", version_numbers=[-1] * (most + 1)))
    with pytest.raises(InvalidArgument, match=f"{most + 1} models.*{most} at once"):
        lists.models(registry, api.RetrieveModelsRequest(model_ids=["m"] * (most + 1)))
