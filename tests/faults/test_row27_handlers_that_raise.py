"""Row 27: a handler that raises: INTERNAL without details, and it costs its stream only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.registry.registry import Registry
from tests.clients.calls import body, header, model_info
from tests.faults.abuse import begin, call, create, encoded, publish, watch
from tests.support.h2client import connected
from tests.support.server import server_here
from tests.transport.memory import value
from tests.transport.service import Pieces, path, serving

SECRET = "a secret in /etc/modelreg"


def raises(*_: object, **__: object) -> Any:
    raise RuntimeError(SECRET)


# A method, what it asks of the registry, and a request.
CALLS: dict[str, tuple[str, list[Message]]] = {
    "CreateOrUpdateModel": ("create_or_update_model", [model_info("m")]),
    "DeleteModel": ("delete_model", [api.DeleteModelRequest(model_id="m")]),
    "RetrieveModels": ("models", [api.RetrieveModelsRequest()]),
    "CreateVersion": ("upload", [header("m", data_size=4), body(b"data")]),
    "RetrieveVersionInfos": ("versions", [api.RetrieveVersionInfosRequest(model_id="m")]),
    "RetrieveVersionData": ("read", [api.RetrieveVersionDataRequest(model_id="m", version_number=1)]),
    "VersionUpdate": ("watch", [api.VersionUpdateRequest(model_id="m")]),
    "Status": ("statistics", [common_pb2.StatusRequest(names=["models"])]),
}


@pytest.mark.parametrize("method", CALLS)
async def test_a_bug_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    name, messages = CALLS[method]
    async with server_here(tmp_path / "archive") as server, connected(int(server.address.split(":")[1])) as client:
        await create(client)
        watching = await begin(client, "VersionUpdate", watch())
        await publish(client)
        with monkeypatch.context() as patch:
            patch.setattr(Registry, name, raises)
            for _ in range(10):
                reply = await client.finished(await begin(client, method, encoded(*messages)))
                assert (reply.status, reply.text) == (13, "internal error")
                assert SECRET not in str(reply)
                assert not reply.body
        await call(client, method, *messages) if method not in ("RetrieveVersionData", "VersionUpdate") else None
        if method != "DeleteModel":
            await publish(client)
            await client.until(lambda: len(client.reply(watching).messages) >= 2)
    bugs = [line for line in server.log if line["level"] == "error"]
    assert len(bugs) == 10
    assert all(str(line["exc_info"]) == SECRET for line in bugs)


# At the transport's test service: from every place that a handler has.


@pytest.mark.parametrize(
    ("method", "status", "text"),
    [
        ("Fail", 5, 'no "%E2%9C%93" 100%25'),
        ("FailInGroup", 5, 'no "%E2%9C%93" 100%25'),
        ("Bug", 13, "internal error"),
        ("BugInGroup", 13, "internal error"),
        ("Nothing", 12, "there is no method test.Service/Nothing"),
    ],
)
async def test_failures_are_trailers_only(
    method: str, status: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        async with serving() as serve, connected(serve.port) as client:
            reply = await client.call(path(method), value('no "✓" 100%'.encode()))
            assert (reply.status, reply.text) == (status, text)
            assert reply.trailers is None
            assert not reply.body
            assert (await client.call(path("Echo"), value(b"x"))).status == 0


async def test_a_bug_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as serve, connected(serve.port) as client:
        await client.call(path("Bug"), value(b""))
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


async def test_a_decoder_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as serve, connected(serve.port) as client:

        def broken() -> Pieces:
            raise ValueError("a secret")

        serve.server._shared.streamed = {path("Upload"): broken}
        reply = await client.call(path("Upload"), b"x")
        assert (reply.status, reply.text) == (13, "internal error")
        assert (await client.call(path("Echo"), value(b"x"))).status == 0
