"""Endpoints: directly, and through a Directory."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import modelreg.client as cogment
from modelreg.api import directory_pb2 as api
from modelreg.client.endpoint import TYPES, Direct, Inquiry, parse_url
from tests.client.conftest import Run
from tests.client.fakes import Directory, serving
from tests.support.server import ServerProgram


@pytest.fixture
def directory() -> Iterator[Any]:
    servicer = Directory()
    with serving(servicer) as running:
        servicer.url = running.url
        yield servicer


def connects(run: Run, url: str, **context: Any) -> Any:
    async def main() -> Any:
        async with cogment.Context("me", **context) as made:
            registry = await made.get_model_registry_v2(cogment.Endpoint(url), patience=0.1)
            return "modelreg" in await registry.versions()

    return run(main)


@pytest.mark.parametrize(
    ("url", "meaning"),
    [
        ("grpc://host:9002", Direct(host="host", port=9002)),
        ("grpc://[::1]:9002", Direct(host="::1", port=9002)),
        ("grpc://10.0.0.1:1/", Direct(host="10.0.0.1", port=1)),
        ("cogment://discover", Inquiry()),
        ("cogment://discover/", Inquiry()),
        ("cogment://discover/modelregistry", Inquiry(type=api.MODEL_REGISTRY_SERVICE)),
        ("cogment://discover/actor?a=1&b=", Inquiry(type=api.ACTOR_SERVICE, properties={"a": "1", "b": ""})),
        ("cogment://discover?a=%20x", Inquiry(properties={"a": " x"})),
        ("cogment://discover/service?__id=42", Inquiry(service_id=42)),
    ],
)
def test_urls(url: str, meaning: Any) -> None:
    assert parse_url(url) == meaning


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:9002",
        "http://host:9002",
        "grpc://host",
        "grpc://:9002",
        "grpc://host:0",
        "grpc://host:99999",
        "grpc://host:9002/path",
        "grpc://me@host:9002",
        "cogment://client",
        "cogment://discover/nothing",
        "cogment://discover/service",
        "cogment://discover/service?__id=x",
        "cogment://discover/service?__id=99999999999999999999",
        "cogment://discover?x",
        "cogment://discover?=x",
        "cogment://discover?x=1&x=2",
    ],
)
def test_what_is_no_url_is_said_to_be_none(run: Run, url: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="is no endpoint"):
            await cogment.Context("me").get_model_registry_v2(cogment.Endpoint(url))

    run(main)


@pytest.mark.parametrize(
    "url",
    [
        "grpc://user:SECRET@host:9002",
        "grpc://user:SE/CR?SECRET@host:9002",
        "grpc://user:SECRET@host:port",
        "grpc://user:SECRET@\u2100:9002",
        "user:SECRET@host:9002",
        "grpc://host:9002?token=SECRET",
        "grpc://host:9002?a=b&SECRET",
        "grpc://host:9002#SECRET",
        "cogment://discover?SECRET",
        "cogment://discover/service?__id=SECRET",
        "cogment://discover?stage=SECRET",  # which needs a directory
    ],
)
def test_no_secrets_of_a_url_are_said(run: Run, url: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"endpoint|directory") as refused:
            await cogment.Context("me").get_model_registry_v2(cogment.Endpoint(url))
        with pytest.raises(ValueError, match="endpoint") as refused_directory:
            cogment.Context("me", directory_endpoint=cogment.Endpoint(url))
        for error in (refused.value, refused_directory.value):
            assert "SECRET" not in "".join(traceback.format_exception(error))

    run(main)


def test_types_are_those_of_the_interface() -> None:
    paths = "lifecycle actservice actor environment prehook datalog datastore modelregistry directory"
    assert list(map(int, map(TYPES.__getitem__, paths.split()))) == list(range(1, 10))
    assert len(TYPES) == 9


@pytest.mark.parametrize(
    "url",
    [
        "cogment://discover",
        "cogment://discover/modelregistry",
        "cogment://discover/modelregistry?stage=test",
        "cogment://discover?stage=test",
        "cogment://discover/service?__id=2",
    ],
)
def test_every_form(run: Run, directory: Directory, server: ServerProgram, url: str) -> None:
    directory.add(1, kind=api.ACTOR_SERVICE, stage="test")
    directory.add(server.port, stage="test")
    directory.add(2, ssl=True, stage="test")
    assert connects(run, url, directory_endpoint=cogment.Endpoint(directory.url))


def test_the_first_with_the_wanted_protocol_is_used(run: Run, directory: Directory, server: ServerProgram) -> None:
    directory.add(1, ssl=True)
    directory.add(server.port)
    directory.add(1)
    assert connects(run, "cogment://discover", directory_endpoint=cogment.Endpoint(directory.url))


def test_only_with_tls_is_said(run: Run, directory: Directory) -> None:
    directory.add(1, ssl=True)
    with pytest.raises(cogment.Refused, match="with TLS only"):
        connects(run, "cogment://discover", directory_endpoint=cogment.Endpoint(directory.url))


def test_the_token_has_to_match(run: Run, directory: Directory, server: ServerProgram) -> None:
    directory.add(server.port, token="secret")
    with pytest.raises(cogment.Unavailable, match="none for this token"):
        connects(run, "cogment://discover", directory_endpoint=cogment.Endpoint(directory.url))
    endpoint = cogment.Endpoint(directory.url)
    assert connects(run, "cogment://discover", directory_endpoint=endpoint, directory_auth_token="secret")


def test_directory_and_token_come_from_the_environment(
    run: Run, directory: Directory, server: ServerProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.add(server.port, token="secret")
    monkeypatch.setenv("COGMENT_DIRECTORY_ENDPOINT", directory.url)
    monkeypatch.setenv("COGMENT_DIRECTORY_AUTHENTICATION_TOKEN", "secret")
    assert connects(run, "cogment://discover")
    # what is given has precedence
    with pytest.raises(cogment.Unavailable):
        connects(run, "cogment://discover", directory_auth_token="another")


def test_a_direct_endpoint_asks_no_directory(run: Run, directory: Directory, url: str) -> None:
    assert connects(run, url, directory_endpoint=cogment.Endpoint(directory.url))
    assert directory.inquiries == []


def test_without_a_directory_there_is_no_discovery(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="COGMENT_DIRECTORY_ENDPOINT"):
            await cogment.Context("me").get_model_registry_v2()

    run(main)


def test_a_directory_that_can_not_be_one() -> None:
    with pytest.raises(ValueError, match="grpc://"):
        cogment.Context("me", directory_endpoint=cogment.Endpoint("cogment://discover"))
    with pytest.raises(ValueError, match="ASCII"):
        cogment.Context("me", directory_auth_token="with\nnewline")


def test_a_directory_that_is_not_there(run: Run) -> None:
    with pytest.raises(cogment.Unavailable, match=r"127\.0\.0\.1:1"):
        connects(run, "cogment://discover", directory_endpoint=cogment.Endpoint("grpc://127.0.0.1:1"))


def test_a_service_that_moves_is_found_again(run: Run, directory: Directory, archive_dir: Path) -> None:
    from tests.support.server import server_program

    with server_program(archive_dir) as program:
        directory.add(program.port)

        async def main() -> None:
            async with cogment.Context("me", directory_endpoint=cogment.Endpoint(directory.url)) as context:
                registry = await context.get_model_registry_v2()
                await registry.store_model("policy", b"data")
                before = program.port
                await anyio.to_thread.run_sync(program.restart)
                assert program.port != before
                directory.services.clear()
                directory.add(program.port)
                assert await registry.retrieve_model("policy") == b"data"

        run(main)
