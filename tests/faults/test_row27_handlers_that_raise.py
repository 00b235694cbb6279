"""Row 27: a handler that raises: INTERNAL without details, and it costs its stream only."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from google.protobuf.message import Message

from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.transport.requests import Request
from tests.clients.calls import body, header, model_info
from tests.faults.abuse import back_at, begin, call, create, encoded, publish, settled, watch
from tests.faults.crash import Launcher, Server
from tests.support.h2client import H2Client, connected
from tests.support.measures import memory_bytes
from tests.support.server import server_here
from tests.transport.memory import value
from tests.transport.service import Pieces, path, serving

MIB = 1 << 20
TIMES = 50
LARGE = 40 * MIB  # goes to a file at once

SECRET = "a secret in /etc/modelreg"


def raises(*_: object, **__: object) -> Any:
    raise RuntimeError(SECRET)


# A method, what it asks of the registry's package, and a request.
CALLS: dict[str, tuple[str, list[Message]]] = {
    "CreateOrUpdateModel": ("registry.Registry.create_or_update_model", [model_info("m")]),
    "DeleteModel": ("registry.Registry.delete_model", [api.DeleteModelRequest(model_id="m")]),
    "RetrieveModels": ("registry.Registry.models", [api.RetrieveModelsRequest()]),
    "CreateVersion": ("registry.Registry.upload", [header("m", data_size=4), body(b"data")]),
    "CreateVersion, amidst": ("transfer.Upload.write", [header("m", data_size=LARGE), body(b"data")]),
    "RetrieveVersionInfos": ("registry.Registry.versions", [api.RetrieveVersionInfosRequest(model_id="m")]),
    "RetrieveVersionData": ("registry.Registry.read", [api.RetrieveVersionDataRequest(model_id="m", version_number=1)]),
    "VersionUpdate": ("registry.Registry.watch", [api.VersionUpdateRequest(model_id="m")]),
    "Status": ("registry.Registry.statistics", [common_pb2.StatusRequest(names=["models"])]),
}


@attrs.frozen
class Here:
    """What canaries and counts want of a `Server`, of the one in the test's own process."""

    archive_dir: Path
    port: int
    pid: int = attrs.field(factory=os.getpid)

    @property
    def tasks(self) -> int:
        return trio.lowlevel.current_statistics().tasks_living


@asynccontextmanager
async def canary(launcher: Launcher, server: Server) -> AsyncIterator[None]:
    """The canary of other tests, which is waited for in a thread: this one serves it."""
    singing = launcher.canary(server)
    gc.collect()
    gc.freeze()  # what the tests have made is none of the server's, and takes long to look through
    try:
        await trio.to_thread.run_sync(singing.__enter__)
        try:
            yield
        finally:
            await trio.to_thread.run_sync(singing.__exit__, None, None, None)
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("what", CALLS)
async def test_a_bug_of_the_registry(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    name, messages = CALLS[what]
    method = what.removesuffix(", amidst")
    async with server_here(tmp_path / "archive") as server:
        here = cast(Server, Here(tmp_path / "archive", int(server.address.split(":")[1])))
        async with connected(here.port) as client:
            await create(client)
            watching = await begin(client, "VersionUpdate", watch())
            await publish(client)
            request = encoded(*messages)
            # The canary's calls are of Status, and would fail, too.
            singing = canary(launcher, here) if method != "Status" else nullcontext()
            with monkeypatch.context() as patch:
                patch.setattr(f"modelreg.registry.{name}", raises)
                await fails(client, method, request)
                before, memory = await settled(here), memory_bytes(here.pid)
                async with singing:
                    for _ in range(TIMES - 1):
                        await fails(client, method, request)
                await back_at(here, before)
                assert memory_bytes(here.pid) - memory < 8 * MIB
            if what not in ("CreateVersion, amidst", "RetrieveVersionData", "VersionUpdate"):
                await call(client, method, *messages)
            if method != "DeleteModel":
                await publish(client)
                await client.until(lambda: len(client.reply(watching).messages) >= 2)
    bugs = [line for line in server.log if line["level"] == "error"]
    assert len(bugs) == TIMES
    assert all(str(line["exc_info"]) == SECRET for line in bugs)


async def fails(client: H2Client, method: str, request: bytes) -> None:
    reply = await client.finished(await begin(client, method, request))
    assert (reply.status, reply.text) == (13, "internal error")
    assert SECRET not in str(reply)
    assert not reply.body


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


async def test_an_admission_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as serve, connected(serve.port) as client:

        def broken(request: Request) -> None:
            raise ValueError("a secret")

        serve.server._shared.admit = broken
        reply = await client.call(path("Echo"), value(b"x"))
        assert (reply.status, reply.text) == (13, "internal error")
        serve.server._shared.admit = None
        assert (await client.call(path("Echo"), value(b"x"))).status == 0
    (record,) = caplog.records
    assert record.exc_info is not None


async def test_a_decoder_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as serve, connected(serve.port) as client:

        def broken() -> Pieces:
            raise ValueError("a secret")

        serve.server._shared.streamed = {path("Upload"): broken}
        reply = await client.call(path("Upload"), b"x")
        assert (reply.status, reply.text) == (13, "internal error")
        assert (await client.call(path("Echo"), value(b"x"))).status == 0
