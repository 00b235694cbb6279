"""Nothing that a call does touches the disk on the event loop: it would hold up all others for as long as the disk takes."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.storage.writers import SMALL_BYTES
from tests.clients.calls import body, header
from tests.faults.abuse import begin, call, create, download, encoded, publish
from tests.support.h2client import H2Client, connected
from tests.support.server import server_here

SMALL = b"small"
LARGE = bytes(SMALL_BYTES + 1)

# Audit events of everything that goes to a file system, by their beginning
# (https://docs.python.org/3/library/audit_events.html), and functions that have none.
DISK = (
    *("open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir"),
    *("os.symlink", "os.utime", "shutil.", "tempfile.", "glob.", "pathlib."),
)
UNAUDITED = ("stat", "lstat", "fsync", "fdatasync", "statvfs", "access")


class Watcher:
    """Notes what one thread does to the disk. Audit hooks stay for the life of the process, so there is one, and it's switched on."""

    def __init__(self) -> None:
        self.thread: int | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.thread is not None and event.startswith(DISK):
            self.note(f"{event} {arguments}")

    def note(self, what: str) -> None:
        thread = threading.get_ident()
        if self.thread == thread:
            self.thread = None  # looking for the source of the stack's lines reads files
            self.seen.append(f"{what}\n{''.join(traceback.format_stack(limit=12))}")
            self.thread = thread


@pytest.fixture(scope="module")
def _watcher() -> Watcher:
    return Watcher()


def noting(watcher: Watcher, name: str) -> Callable[..., object]:
    real: Callable[..., object] = getattr(os, name)

    def noted(*arguments: object, **more: object) -> object:
        watcher.note(f"os.{name} {arguments}")
        return real(*arguments, **more)

    return noted


@pytest.fixture
def watcher(_watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    for name in UNAUDITED:
        monkeypatch.setattr(os, name, noting(_watcher, name))
    _watcher.seen.clear()
    yield _watcher
    _watcher.thread = None


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    watcher.thread = threading.get_ident()
    try:
        yield
    finally:
        watcher.thread = None


async def every_call(client: H2Client, model_id: str) -> None:
    """All there are, in all their ways."""
    await create(client, model_id)
    watching = await begin(client, "VersionUpdate", encoded(api.VersionUpdateRequest(model_id=model_id)))
    for content in (SMALL, LARGE):
        await publish(client, content, model_id)
        await call(client, "CreateVersion", header(model_id, data_size=len(content), archived=True), body(content))
    for number in (1, 2, 3, 4):
        request = api.RetrieveVersionDataRequest(model_id=model_id, version_number=number)
        reply = await client.finished(await begin(client, "RetrieveVersionData", encoded(request)))
        assert reply.status == 0
    await call(client, "RetrieveModels", api.RetrieveModelsRequest())
    await call(client, "RetrieveVersionInfos", api.RetrieveVersionInfosRequest(model_id=model_id))
    await call(client, "Version", common_pb2.VersionRequest())
    await call(client, "Status", common_pb2.StatusRequest(names=["*"]))
    for path, request_body in (
        ("/grpc.health.v1.Health/Check", b""),
        ("/grpc.health.v1.Health/List", b""),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"\x22\x0bcogmentAPI."),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"\x3a\x00"),
    ):
        assert (await client.call(path, request_body)).status == 0
    assert (await client.call("/no.such/Call", b"")).status == 12
    assert (await client.finished(await begin(client, "RetrieveVersionData", download(99)))).status == 5
    await call(client, "DeleteModel", api.DeleteModelRequest(model_id=model_id))
    assert (await client.finished(watching)).status == 5


async def test_no_call_touches_the_disk(watcher: Watcher, tmp_path: Path) -> None:
    async with server_here(tmp_path / "archive", grpc_reflection=True) as server:
        async with connected(int(server.address.rpartition(":")[2])) as client:
            with watched(watcher):
                await every_call(client, "m")
    assert not watcher.seen, "\n".join(watcher.seen)


async def test_it_would_be_noted(watcher: Watcher, tmp_path: Path) -> None:
    """In this thread, and in no other."""
    with watched(watcher):
        os.stat(tmp_path)
        (tmp_path / "file").open("w").close()
        await trio.to_thread.run_sync(os.listdir, tmp_path)
    assert [line.partition(" ")[0] for line in watcher.seen if "tmp" in line] == ["os.stat", "open"]
