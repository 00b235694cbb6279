from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from modelreg.api import reflection_v1_pb2, reflection_v1alpha_pb2
from modelreg.services.reflection import reflection_servicers

SERVICES = ["cogmentAPI.ModelRegistrySP", "grpc.health.v1.Health"]
REGISTRY_FILE = "cogment/api/model_registry.proto"
INVALID_ARGUMENT, NOT_FOUND = 3, 5

Ask = Callable[..., Any]


@pytest.fixture(params=["v1", "v1alpha"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Asks one question of a version of the service, and returns the answer."""
    api: Any = {"v1": reflection_v1_pb2, "v1alpha": reflection_v1alpha_pb2}[request.param]
    servicers = {servicer.service.name: servicer for servicer in reflection_servicers(SERVICES)}
    servicer: Any = servicers[f"grpc.reflection.{request.param}.ServerReflection"]

    async def ask(**question: object) -> Any:
        asked = api.ServerReflectionRequest(host="here", **question)

        async def questions() -> AsyncIterator[Any]:
            yield asked
            yield asked

        first, second = [answer async for answer in servicer.ServerReflectionInfo(questions())]
        assert first == second
        assert isinstance(first, api.ServerReflectionResponse)
        assert first.original_request == asked
        assert first.valid_host == "here"
        return first

    return ask


def files(answer: Any) -> dict[str, FileDescriptorProto]:
    found = map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
    return {file.name: file for file in found}


async def test_list_has_what_is_served_and_reflection_itself(ask: Ask) -> None:
    answer = await ask(list_services="*")
    assert [service.name for service in answer.list_services_response.service] == [
        *SERVICES,
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


async def test_every_service_can_be_built_from_what_is_told_of_it(ask: Ask) -> None:
    for listed in (await ask(list_services="")).list_services_response.service:
        pool = DescriptorPool()
        # In the order that they come in, reversed: a file comes after what it imports.
        for file in reversed(files(await ask(file_containing_symbol=listed.name)).values()):
            pool.Add(file)
        assert pool.FindServiceByName(listed.name).methods


async def test_file_by_name_comes_with_its_imports(ask: Ask) -> None:
    found = files(await ask(file_by_filename=REGISTRY_FILE))
    assert list(found) == [REGISTRY_FILE, "cogment/api/common.proto"]


async def test_fields_have_the_names_that_json_has_for_them(ask: Ask) -> None:
    (file, _) = files(await ask(file_by_filename=REGISTRY_FILE)).values()
    message = next(message for message in file.message_type if message.name == "ModelVersionInfo")
    assert {field.name: field.json_name for field in message.field}["creation_timestamp"] == "creationTimestamp"
    (entry,) = message.nested_type
    assert [field.json_name for field in entry.field] == ["key", "value"]


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("cogmentAPI.ModelRegistrySP", REGISTRY_FILE),
        ("cogmentAPI.ModelRegistrySP.CreateVersion", REGISTRY_FILE),
        ("cogmentAPI.ModelInfo", REGISTRY_FILE),
        ("cogmentAPI.ModelInfo.model_id", REGISTRY_FILE),
        ("cogmentAPI.CreateVersionRequestChunk.Header", REGISTRY_FILE),
        ("cogmentAPI.CreateVersionRequestChunk.Header.version_info", REGISTRY_FILE),
        ("cogmentAPI.StatusReply", "cogment/api/common.proto"),
        ("grpc.health.v1.Health.Watch", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.SERVING", "grpc/health/v1/health.proto"),
    ],
)
async def test_file_of_a_symbol(ask: Ask, symbol: str, file: str) -> None:
    assert next(iter(files(await ask(file_containing_symbol=symbol)))) == file


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "cogment/api/nonsense.proto"},
        {"file_by_filename": ""},
        {"file_containing_symbol": "cogmentAPI.Nonsense"},
        {"file_containing_symbol": "cogmentAPI.ModelRegistrySP.Nonsense"},
        {"file_containing_symbol": "cogmentAPI.ModelInfo.nonsense"},
        {"file_containing_symbol": "cogmentAPI"},
        {"file_containing_symbol": "cogment.ModelRegistrySP"},
        {"file_containing_symbol": ""},
        {"file_containing_symbol": "."},
        {"file_containing_extension": {"containing_type": "cogmentAPI.ModelInfo", "extension_number": 100}},
        {"all_extension_numbers_of_type": "cogmentAPI.Nonsense"},
    ],
    ids=str,
)
async def test_what_is_not_known_is_not_found(ask: Ask, question: dict[str, object]) -> None:
    error = (await ask(**question)).error_response
    assert error.error_code == NOT_FOUND
    assert error.error_message


async def test_no_question_is_invalid(ask: Ask) -> None:
    assert (await ask()).error_response.error_code == INVALID_ARGUMENT


async def test_no_message_has_extensions(ask: Ask) -> None:
    response = (await ask(all_extension_numbers_of_type="cogmentAPI.ModelInfo")).all_extension_numbers_response
    assert response.base_type_name == "cogmentAPI.ModelInfo"
    assert list(response.extension_number) == []
