"""The ordinary gRPC client (C-core), from threads and from asyncio: large data both ways, watches, and its own packages' services."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from modelreg.api import health_pb2, reflection_v1_pb2, reflection_v1alpha_pb2
from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import (
    CHANNEL_OPTIONS,
    SERVICE,
    Calls,
    Code,
    body,
    connected,
    data_hash,
    fails,
    header,
    model_info,
    open_channel,
)
from tests.support.server import PATIENCE, ServerProgram, StartServer

KIB = 1 << 10
MIB = 1 << 20

# Content of which no two pieces are alike, so that none can be lost, doubled or swapped unnoticed.
DATA = hashlib.shake_128(b"modelreg").digest(32 * MIB)


def messages(model_id: str, data: bytes, chunk: int, *, archived: bool) -> Iterator[api.CreateVersionRequestChunk]:
    yield header(model_id, data_size=len(data), archived=archived, data_hash=data_hash(data))
    for start in range(0, len(data), chunk):
        yield body(data[start : start + chunk])


# Threads


@pytest.mark.parametrize("archived", [True, False], ids=["stored", "transient"])
@pytest.mark.parametrize("chunk", [16 * KIB, 100_000, MIB, 4 * MIB - 100])
def test_large_version_up_and_down_in_chunks(calls: Calls, model: str, chunk: int, archived: bool) -> None:
    data = DATA if chunk > 16 * KIB else DATA[: 8 * MIB]
    version = calls.CreateVersion(messages(model, data, chunk, archived=archived)).version_info
    assert version.data_hash == data_hash(data)
    received = hashlib.sha256()
    for reply in calls.download(model, version.version_number):
        received.update(reply.data_chunk)
    assert received.digest() == hashlib.sha256(data).digest()
    calls.DeleteModel(api.DeleteModelRequest(model_id=model))


def test_versions_up_and_down_at_once_on_one_channel(calls: Calls, model: str) -> None:
    # Each of its own content, of sizes that end up in memory and in files.
    contents = [DATA[number * 1000 : number * 1000 + size] for number, size in enumerate([1, 100 * KIB, 5 * MIB] * 6)]
    with concurrent.futures.ThreadPoolExecutor(len(contents)) as pool:

        def up(number: int) -> int:
            data, archived = contents[number], number % 2 == 0
            version: int = calls.CreateVersion(
                messages(model, data, 300_000, archived=archived)
            ).version_info.version_number
            return version

        versions = list(pool.map(up, range(len(contents))))
        assert sorted(versions) == list(range(1, len(contents) + 1))
        assert list(pool.map(lambda version: calls.data(model, version), versions)) == contents


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=["gzip", "deflate"])
def test_client_that_compresses(shared_server: ServerProgram, model: str, compression: object) -> None:
    data = b"a" * 3 * MIB + DATA[:MIB]
    with connected(shared_server.address, compression=compression) as calls:
        calls.create(model, colour="red" * 1000)
        for archived in (True, False):
            for chunk in (1000, MIB, 4 * MIB - 100):
                part = data if chunk > 1000 else data[-100 * KIB :]
                version = calls.CreateVersion(messages(model, part, chunk, archived=archived)).version_info
                assert calls.data(model, version.version_number) == part


def test_client_that_compresses_some_calls_only(calls: Calls, model: str) -> None:
    for compression in (grpc.Compression.Gzip, grpc.Compression.NoCompression, grpc.Compression.Deflate):
        calls.CreateOrUpdateModel(model_info(model, how=str(compression)), compression=compression)
        (found,) = calls.RetrieveModels(
            api.RetrieveModelsRequest(model_ids=[model]), compression=compression
        ).model_infos
        assert found.user_data["how"] == str(compression)


def test_message_over_four_mebibytes_is_refused_and_costs_nothing_else(calls: Calls, model: str) -> None:
    with calls.watch(model) as watch:
        with fails(Code.RESOURCE_EXHAUSTED):
            calls.create("large", text="a" * 5 * MIB)
        calls.publish(model, b"data")
        assert watch.next().version_number == 1


def test_body_over_four_mebibytes_is_none_of_the_servers_concern(calls: Calls, model: str) -> None:
    version = calls.store(model, DATA[: 20 * MIB])
    assert calls.data(model, version.version_number) == DATA[: 20 * MIB]


def test_many_channels_at_once(shared_server: ServerProgram, model: str) -> None:
    channels = [open_channel(shared_server.address) for _ in range(30)]
    watches = [Calls(channel).watch(model) for channel in channels]
    Calls(channels[0]).wait_for_status(watchers=len(channels))
    for number, channel in enumerate(channels, 1):
        assert Calls(channel).publish(model, b"%d" % number).version_number == number
    assert [watch.next_numbers(len(channels)) for watch in watches] == [list(range(1, len(channels) + 1))] * 30
    for channel in channels:
        channel.close()


# asyncio


def aio_call(channel: Any, name: str) -> Any:
    method = api.DESCRIPTOR.services_by_name["ModelRegistrySP"].methods_by_name[name]
    kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
    request: Any = method.input_type
    reply: Any = method.output_type
    return getattr(channel, "_".join(kind))(
        f"/{SERVICE}/{name}",
        request_serializer=request._concrete_class.SerializeToString,
        response_deserializer=reply._concrete_class.FromString,
    )


def aio(server: ServerProgram, scenario: Any) -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            await asyncio.wait_for(scenario(channel), PATIENCE)

    asyncio.run(main())


def test_aio_up_and_down_and_watch_at_once(shared_server: ServerProgram, model: str) -> None:
    contents = [DATA[number : number + size] for number, size in enumerate([0, 1, 100 * KIB, 5 * MIB, 9 * MIB])]

    async def scenario(channel: Any) -> None:
        async def chunks(data: bytes) -> AsyncIterator[object]:
            for message in messages(model, data, MIB, archived=len(data) % 2 == 0):
                yield message

        watch = aio_call(channel, "VersionUpdate")(api.VersionUpdateRequest(model_id=model))
        create_version = aio_call(channel, "CreateVersion")
        replies = await asyncio.gather(*(create_version(chunks(data)) for data in contents))
        numbers = [reply.version_info.version_number for reply in replies]
        assert sorted(numbers) == list(range(1, len(contents) + 1))
        # It may have begun after some of them.
        told = [(await watch.read()).version_info.version_number]
        while told[-1] < len(contents):
            told.append((await watch.read()).version_info.version_number)
        assert told == list(range(told[0], len(contents) + 1))
        watch.cancel()

        async def down(number: int) -> bytes:
            request = api.RetrieveVersionDataRequest(model_id=model, version_number=number)
            return b"".join([reply.data_chunk async for reply in aio_call(channel, "RetrieveVersionData")(request)])

        assert await asyncio.gather(*map(down, numbers)) == contents

    aio(shared_server, scenario)


def test_aio_client_that_writes_piece_by_piece(shared_server: ServerProgram, model: str) -> None:
    async def scenario(channel: Any) -> None:
        call = aio_call(channel, "CreateVersion")()
        for message in messages(model, DATA[: 3 * MIB], 500_000, archived=True):
            await call.write(message)
        await call.done_writing()
        assert (await call).version_info.version_number == 1

    aio(shared_server, scenario)


def test_aio_errors(shared_server: ServerProgram, model: str) -> None:
    async def scenario(channel: Any) -> None:
        with fails(Code.NOT_FOUND, 'no model "x" found'):
            await aio_call(channel, "DeleteModel")(api.DeleteModelRequest(model_id="x"))
        with fails(Code.DEADLINE_EXCEEDED):
            await aio_call(channel, "VersionUpdate")(api.VersionUpdateRequest(model_id=model), timeout=0.3).read()
        call = aio_call(channel, "CreateVersion")()
        await call.write(header(model, data_size=1))
        await call.write(body(b"too much"))
        with fails(Code.INVALID_ARGUMENT):
            await call

    aio(shared_server, scenario)


# The packages of grpcio, whose messages are in protobuf's own pool beside modelreg's in another


def test_health_by_the_package_of_grpcio(channel: Any, start_server: StartServer) -> None:
    theirs = pytest.importorskip("grpc_health.v1.health_pb2", reason="grpcio-health-checking isn't installed")
    from grpc_health.v1 import health_pb2_grpc

    assert theirs.DESCRIPTOR is not health_pb2.DESCRIPTOR
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        reply = stub.Check(theirs.HealthCheckRequest(service=service), timeout=PATIENCE)
        assert reply.status == theirs.HealthCheckResponse.SERVING
    server = start_server()
    with open_channel(server.address) as other:
        states = health_pb2_grpc.HealthStub(other).Watch(theirs.HealthCheckRequest(service=SERVICE), timeout=PATIENCE)
        assert next(states).status == theirs.HealthCheckResponse.SERVING
        server.stop()
        assert next(states).status == theirs.HealthCheckResponse.NOT_SERVING
        with fails(Code.UNAVAILABLE):
            next(states)


def test_reflection_by_the_package_of_grpcio(channel: Any) -> None:
    database = pytest.importorskip(
        "grpc_reflection.v1alpha.proto_reflection_descriptor_database", reason="grpcio-reflection isn't installed"
    ).ProtoReflectionDescriptorDatabase(channel)
    from google.protobuf.descriptor_pool import DescriptorPool

    assert set(database.get_services()) >= {SERVICE, "grpc.health.v1.Health"}
    pool = DescriptorPool(database)
    ours = api.DESCRIPTOR.services_by_name["ModelRegistrySP"]
    found = pool.FindServiceByName(SERVICE)
    assert {method.name: method.input_type.full_name for method in found.methods} == {
        method.name: method.input_type.full_name for method in ours.methods
    }


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_in_both_versions(channel: Any, version: str) -> None:
    module: Any = {"v1": reflection_v1_pb2, "v1alpha": reflection_v1alpha_pb2}[version]
    questions = [
        module.ServerReflectionRequest(list_services="*"),
        module.ServerReflectionRequest(file_containing_symbol=SERVICE),
        module.ServerReflectionRequest(file_containing_symbol="nonsense"),
        module.ServerReflectionRequest(file_by_filename="cogment/api/common.proto"),
    ]
    ask = Calls(channel, module.DESCRIPTOR.services_by_name["ServerReflection"]).ServerReflectionInfo
    listed, of_symbol, of_nonsense, by_name = ask(iter(questions))
    assert SERVICE in [service.name for service in listed.list_services_response.service]
    assert len(of_symbol.file_descriptor_response.file_descriptor_proto) == 2
    assert of_nonsense.error_response.error_code == Code.NOT_FOUND.value[0]
    assert len(by_name.file_descriptor_response.file_descriptor_proto) == 1
