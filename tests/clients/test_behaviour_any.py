"""Version, Status, health, reflection, and what holds for any call."""

from __future__ import annotations

import signal
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

import modelreg
from modelreg.api import common_pb2, health_pb2
from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import (
    SERVICE,
    Calls,
    Code,
    OpenRequest,
    body,
    connected,
    fails,
    header,
    health,
    open_channel,
)
from tests.support.server import StartServer, server_here

MIB = 1 << 20
Health = health_pb2.HealthCheckResponse

# Version


def test_version_names_the_interface_the_implementation_and_the_product(calls: Calls) -> None:
    reply = calls.Version(common_pb2.VersionRequest())
    versions = {version.name: version.version for version in reply.versions}
    assert versions["cogment-api"] == "2.22.0"
    assert metadata.version("purerpc") in versions["grpc"]
    assert versions["modelreg"] == modelreg.__version__


# Status

COUNTED = {"models", "versions", "stored_bytes", "transient_bytes", "evicted", "watchers", "damaged"}
STANDARD = COUNTED | {"overall_load", "damaged_versions"}


def test_status_without_names_is_empty(calls: Calls) -> None:
    assert calls.status() == {}


def test_status_of_a_star_is_every_standard_one(calls: Calls) -> None:
    assert calls.status("*").keys() == STANDARD
    assert calls.status("models", "*", "nonsense").keys() == STANDARD


def test_status_ignores_unknown_names(calls: Calls) -> None:
    assert calls.status("nonsense", "", "MODELS") == {}
    assert calls.status("nonsense", "models").keys() == {"models"}


def test_status_overall_load_is_a_whole_number_up_to_254(calls: Calls) -> None:
    load = calls.status("overall_load")["overall_load"]
    assert str(int(load)) == load
    assert 0 <= int(load) <= 254


def test_status_counts_models_versions_bytes_and_watchers(start_server: StartServer) -> None:
    with connected(start_server().address) as calls:
        assert calls.status(*COUNTED) == dict.fromkeys(COUNTED, "0")
        for model_id in ("a", "b"):
            calls.create(model_id)
            calls.store(model_id, b"12345")  # each content counts once
        calls.store("a", b"123")
        calls.publish("a", b"1234567")
        with calls.watch("a") as watch, calls.watch("a") as other:
            watch.next()
            other.next()
            assert calls.status(*COUNTED) == {
                "models": "2",
                "versions": "4",
                "stored_bytes": "8",
                "transient_bytes": "7",
                "evicted": "0",
                "watchers": "2",
                "damaged": "0",
            }


# before the index is loaded, or while stopping (see tests/services/ for the former: there is no port yet)


def test_while_stopping_calls_are_unavailable_and_what_runs_may_finish(start_server: StartServer) -> None:
    server = start_server()
    with open_channel(server.address) as channel, OpenRequest(header("m", data_size=2 * MIB)) as request:
        calls = Calls(channel)
        calls.create("m")
        states = health(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(states).status == Health.SERVING
        running = calls.CreateVersion.future(request)
        calls.wait_until(lambda: list((server.archive_dir / "tmp").iterdir()) != [])
        server.signal(signal.SIGTERM)
        assert next(states).status == Health.NOT_SERVING
        with fails(Code.UNAVAILABLE):
            calls.status()
        with connected(server.address) as others, fails(Code.UNAVAILABLE):
            others.status()
        request.send(body(b"a" * 2 * MIB))
        request.close()
        assert running.result().version_info.version_number == 1
        with fails(Code.UNAVAILABLE):
            next(states)
    assert server.wait() == 0
    server.start()
    with connected(server.address) as calls:
        assert calls.data("m", 1) == b"a" * 2 * MIB


# unknown method or service


@pytest.mark.parametrize(
    "path",
    [
        f"/{SERVICE}/Nonsense",
        f"/{SERVICE}/createversion",
        f"/{SERVICE}/",
        "/cogment.ModelRegistrySP/RetrieveVersionData",
        "/cogmentAPI.DirectorySP/Version",
        "/grpc.health.v1.Health/Nonsense",
        "/x/y/z",
    ],
)
def test_unknown_method_or_service_is_unimplemented(channel: Any, path: str) -> None:
    for call in (channel.unary_unary(path), channel.stream_unary(path)):
        with fails(Code.UNIMPLEMENTED):
            call(b"" if isinstance(call, grpc.UnaryUnaryMultiCallable) else iter([b""]), timeout=10)
    assert Calls(channel).status() == {}


# bytes that are no valid message

UNARY_REQUESTS = [
    "CreateOrUpdateModel",
    "DeleteModel",
    "RetrieveModels",
    "RetrieveVersionInfos",
    "RetrieveVersionData",
    "VersionUpdate",
    "Status",
]


@pytest.mark.parametrize("name", UNARY_REQUESTS)
@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\x0a\x05x", b"\x0a\x02\xff\xfe"], ids=["nonsense", "cut short", "no UTF-8"]
)
def test_bytes_that_are_no_valid_message_are_invalid(calls: Calls, name: str, data: bytes) -> None:
    with fails(Code.INVALID_ARGUMENT):
        reply = calls.method(name, raw=True)(data)
        next(iter(reply))  # streams say so at the first message
    assert calls.status() == {}


# deadline over


def test_deadline_over_ends_a_watch_at_the_server_too(calls: Calls, model: str) -> None:
    watch = calls.VersionUpdate(api.VersionUpdateRequest(model_id=model), timeout=0.5)
    with fails(Code.DEADLINE_EXCEEDED):
        next(watch)
    calls.wait_for_status(watchers=0)


# a bug


async def test_bug_is_an_internal_error_with_the_details_in_the_log_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("modelreg.registry.registry.Registry.models", broken)
    monkeypatch.setattr("modelreg.registry.registry.Registry.watch", broken)

    def call(address: str) -> None:
        with connected(address) as calls:
            calls.create("m")
            with fails(Code.INTERNAL, "internal error"):
                calls.RetrieveModels(api.RetrieveModelsRequest())
            with fails(Code.INTERNAL, "internal error"):
                next(calls.VersionUpdate(api.VersionUpdateRequest(model_id="m")))
            assert calls.status() == {}

    async with server_here(tmp_path) as server:
        await trio.to_thread.run_sync(call, server.address)
    errors = [line["exc_info"] for line in server.log if line["level"] == "error"]
    assert [str(error) for error in errors] == ["a secret detail"] * 2


# Health


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_of_the_server_and_of_the_registry(channel: Any, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    assert health(channel).Check(request).status == Health.SERVING
    assert next(health(channel).Watch(request)).status == Health.SERVING


def test_health_of_an_unknown_service(channel: Any) -> None:
    request = health_pb2.HealthCheckRequest(service="x")
    with fails(Code.NOT_FOUND):
        health(channel).Check(request)
    assert next(health(channel).Watch(request)).status == Health.SERVICE_UNKNOWN


def test_health_list(channel: Any) -> None:
    statuses = health(channel).List(health_pb2.HealthListRequest()).statuses
    assert {name: response.status for name, response in statuses.items()} == {
        "": Health.SERVING,
        SERVICE: Health.SERVING,
        "modelreg.Archive": Health.SERVING,
    }


# Reflection: see test_grpcurl.py and test_ccore.py for what it tells.


def test_reflection_is_there_only_when_asked_for(start_server: StartServer) -> None:
    with open_channel(start_server().address) as channel:
        for version in ("v1", "v1alpha"):
            call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
            with fails(Code.UNIMPLEMENTED):
                next(call(iter([b"\x3a\x00"]), timeout=10))
