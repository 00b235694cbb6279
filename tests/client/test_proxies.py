"""What the client makes of proxies: streams that are cut off in every way, error pages, idle watches."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import modelreg.client as cogment
from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.api.model_registry_grpc import ModelRegistrySPServicer
from modelreg.client import updates as updates_module
from modelreg.client.transport.connection import Timing
from modelreg.transport.faults import ErrorCode
from tests.client.conftest import Run
from tests.client.fakes import serving
from tests.client.meddler import Meddler, end_of_stream, goaway, meddling_with, page, reset
from tests.support.server import ServerProgram

CODES = ("NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "REFUSED_STREAM", "CANCEL", "ENHANCE_YOUR_CALM")
CUTS = {name: reset(ErrorCode[name]) for name in CODES}
CUTS |= {"no trailers": end_of_stream, "GOAWAY": goaway}
PAGES = {str(status): page(status) for status in (408, 429, 500, 503)}

by_cut = pytest.mark.parametrize("end", [pytest.param(end, id=name) for name, end in CUTS.items()])
by_cut_or_page = pytest.mark.parametrize("end", [pytest.param(end, id=name) for name, end in (CUTS | PAGES).items()])

End = Callable[[int], bytes]


@pytest.fixture
def proxy(server: ServerProgram) -> Iterator[Meddler]:
    with meddling_with(server.port) as made:
        yield made


@contextlib.asynccontextmanager
async def registry_at(url: str, **options: Any) -> AsyncIterator[Any]:
    async with cogment.Context("test") as context:
        yield await context.get_model_registry_v2(cogment.Endpoint(url), **options)


@by_cut_or_page
def test_what_can_be_repeated_is_repeated(run: Run, proxy: Meddler, name: str, end: End) -> None:
    async def main() -> None:
        async with registry_at(proxy.url) as registry:
            proxy.cut_off("CreateOrUpdateModel", end)
            await registry.update_model_info(name, {"a": "b"})
            proxy.cut_off("RetrieveModels", end)
            found = await registry.get_model_info(name)
            assert found is not None
            assert found.properties == {"a": "b"}
            proxy.cut_off("CreateVersion", end)
            stored = await registry.store_model(name, b"weights")
            proxy.cut_off("RetrieveVersionInfos", end)
            assert await registry.list_iterations(name) == [stored]
            proxy.cut_off("RetrieveVersionData", end)
            assert await registry.retrieve_model(name) == b"weights"

    run(main)
    for method in ("CreateOrUpdateModel", "CreateVersion", "RetrieveVersionData"):
        assert proxy.asked.count(method) == 2


@by_cut
def test_watches_go_on_and_miss_nothing(run: Run, proxy: Meddler, url: str, name: str, end: End) -> None:
    async def main() -> None:
        async with registry_at(proxy.url) as registry, registry_at(url) as other:
            sent = [await other.publish_model(name, b"1")]
            proxy.cut_off("VersionUpdate", end, after=10, times=3)
            latest = await registry.track_latest_model(name)
            updates = registry.iteration_updates(name)
            assert await anext(updates) == sent[0]
            sent += [await other.publish_model(name, b"%d" % number) for number in (2, 3)]
            assert [await anext(updates) for _ in range(2)] == sent[1:]
            await latest.wait_for_newer(2)
            assert await latest.get() == (b"3", sent[-1])
            await updates.aclose()

    run(main)


def test_a_download_goes_on_where_it_was(run: Run, proxy: Meddler, url: str, name: str, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    done: list[int] = []

    async def main() -> None:
        async with registry_at(url) as other, registry_at(proxy.url, patience=1) as registry:
            await other.publish_model(name, data)
            for after in (1_000_000, 2_500_000, 1_500_000):
                proxy.cut_off("RetrieveVersionData", end_of_stream, after=after)
                assert await registry.retrieve_model(name, progress=lambda *now: done.append(now[0])) == data
                assert done == sorted(done)
                assert done[-1] == len(data)
                assert proxy.payload < 1.1 * len(data)
                done.clear()
                proxy.payload = 0
            proxy.cut_off("RetrieveVersionData", reset(ErrorCode.INTERNAL_ERROR), after=1_000_000)
            await registry.download_model(name, tmp_path / "file")
            assert (tmp_path / "file").read_bytes() == data

    run(main)


class Old(ModelRegistrySPServicer):
    """A registry that sends all of a version, wherever the client is."""

    data = os.urandom(1000)

    async def RetrieveVersionInfos(self, message: Any) -> Any:
        digest = base64.b64encode(hashlib.sha256(self.data).digest()).decode()
        info = api.ModelVersionInfo(model_id="m", version_number=1, data_size=len(self.data), data_hash=digest)
        return api.RetrieveVersionInfosReply(version_infos=[info])

    async def RetrieveVersionData(self, message: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        for start in range(0, len(self.data), 100):
            yield api.RetrieveVersionDataReplyChunk(data_chunk=self.data[start : start + 100])


@pytest.mark.parametrize("after", [3, 107, 500, 1060])
def test_a_download_from_a_registry_that_starts_over(run: Run, after: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with registry_at(between.url) as registry:
            between.cut_off("RetrieveVersionData", end_of_stream, after=after, times=2)
            assert await registry.retrieve_model("m") == Old.data
            between.cut_off("RetrieveVersionData", end_of_stream, after=after)
            await registry.download_model("m", tmp_path / "file")
            assert (tmp_path / "file").read_bytes() == Old.data

    with serving(Old()) as running, meddling_with(running.port) as between:
        run(main)


def test_patience_begins_anew_with_what_a_download_has_got(run: Run, proxy: Meddler, url: str, name: str) -> None:
    """Each attempt gets a little further, and all of them take longer than patience lasts."""
    data = bytes(1_000_000)
    places = [100_000] * 9

    def cut_and_again(stream: int) -> bytes:
        if places:
            proxy.cut_off("RetrieveVersionData", cut_and_again, after=places.pop())
        return end_of_stream(stream)

    async def main() -> None:
        async with registry_at(url) as other, registry_at(proxy.url, patience=0.1) as registry:
            await other.publish_model(name, data)
            cut_and_again(0)
            assert await registry.retrieve_model(name) == data

    run(main)
    assert not places
    assert proxy.asked.count("RetrieveVersionData") == 10


def test_what_never_gets_further_is_given_up(run: Run) -> None:
    async def main() -> None:
        async with registry_at(between.url, patience=0.2) as registry:
            between.cut_off("RetrieveVersionData", end_of_stream, after=500, times=1000)
            with pytest.raises(cogment.Unavailable, match="cut off"):
                await registry.retrieve_model("m")

    with serving(Old()) as running, meddling_with(running.port) as between:
        run(main)


@pytest.mark.parametrize(
    "end", [reset(ErrorCode.INTERNAL_ERROR), end_of_stream, page(504)], ids=["reset", "end", "504"]
)
def test_a_deletion_is_not_repeated_when_it_may_have_been_done(
    run: Run, proxy: Meddler, url: str, name: str, end: End
) -> None:
    async def main() -> None:
        async with registry_at(proxy.url) as registry, registry_at(url) as other:
            await registry.publish_model(name, b"1")
            proxy.cut_off("DeleteModel", end)
            with pytest.raises(cogment.OutcomeUnknown, match="DeleteModel"):
                await registry.remove_model(name)
            assert await other.get_model_info(name) is None

    run(main)
    assert proxy.asked.count("DeleteModel") == 1


class Forgetful(ModelRegistrySPServicer):
    """A registry as the original is: it remembers no requests."""

    def __init__(self) -> None:
        self.uploads = 0

    async def RetrieveModels(self, message: Any) -> Any:
        return api.RetrieveModelsReply(model_infos=[api.ModelInfo(model_id="policy")], next_model_handle="1")

    async def CreateVersion(self, messages: Any) -> Any:
        async for _ in messages:
            pass
        self.uploads += 1
        return api.CreateVersionReply()

    async def Version(self, message: Any) -> Any:
        return common_pb2.VersionInfo(versions=[common_pb2.VersionInfo.Version(name="cogment-api", version="2.22.0")])


@pytest.mark.parametrize("end", [CUTS[name] for name in ("INTERNAL_ERROR", "CANCEL", "no trailers")])
def test_a_store_that_was_cut_off_is_not_repeated_where_requests_are_not_remembered(run: Run, end: End) -> None:
    servicer = Forgetful()

    async def main() -> None:
        async with registry_at(between.url, patience=5) as registry:
            between.cut_off("CreateVersion", end)
            with pytest.raises(cogment.OutcomeUnknown, match="list_iterations"):
                await registry.store_model("policy", b"data")

    with serving(servicer) as running, meddling_with(running.port) as between:
        run(main)
    assert servicer.uploads == 1


# Pages


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (503, cogment.Unavailable, r"HTTP status 503 Service Unavailable .* \(503 Not Now\)$"),
        (401, cogment.Denied, r"HTTP status 401 Unauthorized .* \(401 Not Now\).* token"),
        (403, cogment.Denied, r"HTTP status 403 Forbidden .*endpoint"),
        (404, cogment.Refused, r"HTTP status 404 Not Found .*endpoint"),
        (400, cogment.Failed, r"HTTP status 400 Bad Request .*endpoint"),
        (413, cogment.Failed, r"HTTP status 413 .*client_max_body_size"),
        (200, cogment.Failed, r"HTTP status 200 OK .* \(200 Not Now\).*endpoint"),
        (302, cogment.Failed, r"HTTP status 302 Found .*endpoint"),
    ],
)
def test_the_page_of_a_proxy_is_told_of(run: Run, proxy: Meddler, status: int, error: Any, text: str) -> None:
    async def main() -> None:
        async with registry_at(proxy.url, patience=0.1) as registry:
            proxy.cut_off("RetrieveModels", page(status), times=100)
            with pytest.raises(error, match=text):
                await registry.list_models()

    run(main)
    assert (proxy.asked.count("RetrieveModels") > 1) is (status == 503)


def test_a_tracked_model_that_has_given_up_says_so(run: Run, proxy: Meddler, url: str, name: str) -> None:
    async def main() -> None:
        async with registry_at(proxy.url) as registry, registry_at(url) as other:
            await other.publish_model(name, b"1")
            proxy.cut_off("VersionUpdate", end_of_stream, after=10)
            latest = await registry.track_latest_model(name)
            proxy.cut_off("VersionUpdate", page(401))  # the token is no longer valid, says a proxy
            with pytest.raises(cogment.Denied):
                await latest.wait_for_newer(1)
            for _ in range(2):
                for ended in (latest.is_available, latest.now):
                    with pytest.raises(cogment.Denied):
                        ended()
                with pytest.raises(cogment.Denied):
                    await latest.get()
            again = await registry.track_latest_model(name)
            assert (await again.get())[0] == b"1"

    run(main)


@contextlib.contextmanager
def answering(text: bytes) -> Iterator[str]:
    """The URL of what answers every connection with this."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(text)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<html>\r\n<head><title>400 Bad Request</title>",
            cogment.Refused,
            r"127\.0\.0\.1:\d+ answers with HTTP status 400 Bad Request .* \(400 Bad Request\), in HTTP/1\.1: gRPC needs HTTP/2",
        ),
        (b"HTTP/1.0 503 no\r\n\r\n", cogment.Unavailable, "HTTP status 503 Service Unavailable .* HTTP/1.0"),
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", cogment.Denied, "HTTP status 401"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", cogment.Unavailable, "doesn't speak HTTP/2"),
    ],
)
def test_what_does_not_speak_http2(run: Run, text: bytes, error: Any, match: str) -> None:
    async def main() -> None:
        async with registry_at(there, patience=0.1) as registry:
            with pytest.raises(error, match=match):
                await registry.list_models()

    with answering(text) as there:
        run(main)


# Idle watches


class Quiet(ModelRegistrySPServicer):
    """A registry with one version, that tells each watch of it, and keeps some of them alive."""

    def __init__(self, *replies: api.VersionUpdateReply) -> None:
        self.replies = replies
        self.asked: list[dict[str, str]] = []

    async def VersionUpdate(self, message: Any, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        self.asked.append(dict(request.custom_metadata))
        for reply in self.replies:
            yield reply
        await trio.sleep_forever()


EMPTY = api.VersionUpdateReply()


def update(number: int) -> api.VersionUpdateReply:
    return api.VersionUpdateReply(version_info=api.ModelVersionInfo(model_id="m", version_number=number))


def test_empty_messages_are_no_versions_and_are_asked_for(run: Run) -> None:
    servicer = Quiet(EMPTY, EMPTY, update(1), EMPTY, update(2))

    async def main() -> None:
        async with registry_at(running.url) as registry:
            updates = registry.iteration_updates("m")
            assert [(await anext(updates)).iteration for _ in range(2)] == [1, 2]
            await updates.aclose()
        async with registry_at(running.url, timing=Timing(watch_keepalive=0)) as registry:
            updates = registry.iteration_updates("m")
            assert (await anext(updates)).iteration == 1
            await updates.aclose()

    with serving(servicer) as running:
        run(main)
    first, second = servicer.asked
    assert first["modelreg-watch-keepalive"] == "20.000"
    assert "modelreg-watch-keepalive" not in second


def test_a_watch_that_falls_silent_behind_a_proxy_is_begun_again(run: Run) -> None:
    """Where empty messages have come, there have to be more of them; elsewhere silence is nothing unusual."""
    servicer = Quiet(update(1), EMPTY)

    async def main() -> None:
        async with registry_at(running.url, timing=Timing(watch_keepalive=0.02)) as registry:
            updates = registry.iteration_updates("m")
            assert (await anext(updates)).iteration == 1
            with anyio.move_on_after(0) as scope:
                await anext(updates)
            assert scope.cancelled_caught
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, updates)
                while len(servicer.asked) < 3:  # noqa: ASYNC110  # the server is another thread
                    await anyio.sleep(0.005)
                tasks.cancel_scope.cancel()
            await updates.aclose()

    with serving(servicer) as running:
        run(main)


def test_a_watch_of_a_model_without_versions_outlives_its_proxys_limit(
    run: Run, proxy: Meddler, url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has come when it's cut off, and it isn't the registry that is missing: patience begins then."""
    monkeypatch.setattr(updates_module, "HELD_SECONDS", 0.0)

    async def main() -> None:
        async with registry_at(proxy.url, patience=0.0) as registry, registry_at(url) as other:
            await other.update_model_info(name, {})
            updates = registry.iteration_updates(name)
            async with anyio.create_task_group() as tasks:
                got: list[Any] = []

                async def follow() -> None:
                    got.append(await anext(updates))

                tasks.start_soon(follow)
                sent = await other.publish_model(name, b"")
            assert got == [sent]
            await updates.aclose()

    run(main)
