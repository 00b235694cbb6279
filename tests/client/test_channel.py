"""Calls and connections over real sockets: what a server sees of cancellation, deadlines and limits."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trustme

import modelreg.client as cogment
import modelreg.client.transport.connection
from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.api.model_registry_grpc import ModelRegistrySPServicer
from modelreg.client.background import Background
from modelreg.client.transport.channel import Channel, encode
from modelreg.client.transport.connection import Connection, Timing
from modelreg.client.transport.status import CallFailed
from modelreg.client.transport.wire import Address
from modelreg.grpc.status import Code
from modelreg.transport.frames import END_HEADERS, HEADERS, PUSH_PROMISE, SETTINGS, frame_header, ping
from modelreg.transport.limits import Limits
from tests.client.conftest import Run
from tests.client.fakes import serving

SERVICE = "/cogmentAPI.ModelRegistrySP/"
EMPTY = common_pb2.VersionRequest().SerializeToString()


class Watched(ModelRegistrySPServicer):
    """A registry that never answers some calls, and says when they begin and end."""

    def __init__(self) -> None:
        self.running = 0
        self.began = threading.Event()
        self.ended = threading.Event()
        self.timeouts: list[float | None] = []

    async def _for_ever(self, request: Any) -> None:
        self.timeouts.append(request.timeout)
        self.running += 1
        self.began.set()
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1
            self.ended.set()

    async def Status(self, message: Any, request: Any) -> Any:  # type: ignore[override]
        await self._for_ever(request)

    async def CreateVersion(self, messages: Any, request: Any) -> Any:  # type: ignore[override]
        await self._for_ever(request)  # and takes nothing

    async def VersionUpdate(self, message: Any, request: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        yield api.VersionUpdateReply(version_info=api.ModelVersionInfo(version_number=1))
        await self._for_ever(request)

    async def RetrieveModels(self, message: Any) -> Any:
        return api.RetrieveModelsReply(
            model_infos=[api.ModelInfo(model_id=model_id) for model_id in message.model_ids], next_model_handle="0"
        )

    async def Version(self, message: Any) -> Any:
        return common_pb2.VersionInfo()


@pytest.fixture
def servicer() -> Watched:
    return Watched()


async def wait_for(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(event.wait, 30)


@contextlib.asynccontextmanager
async def channel_to(port: int, *, tls: ssl.SSLContext | None = None, **timing: float) -> AsyncIterator[Channel]:
    background = Background()

    async def where() -> Address:
        return Address("127.0.0.1", port, tls)

    made = Channel(where, timing=Timing(**timing), background=background)
    try:
        yield made
    finally:
        made.close()
        await background.close()


@contextlib.asynccontextmanager
async def registry_at(url: str, **options: Any) -> AsyncIterator[cogment.ModelRegistry]:
    async with cogment.Context("test") as context:
        yield await context.get_model_registry_v2(cogment.Endpoint(url), **options)


def test_a_call_given_up_ends_on_the_server(run: Run, servicer: Watched) -> None:
    async def main() -> None:
        async with registry_at(running.url) as registry:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(registry.status)
                await wait_for(servicer.began)
                tasks.cancel_scope.cancel()
            await wait_for(servicer.ended)
            assert servicer.running == 0
            # the connection is the same, and fine
            await registry.versions()
            assert running.server is not None
            assert running.server.statistics().connections_total == 1

    with serving(servicer) as running:
        run(main)


def test_an_upload_nobody_takes_can_be_given_up(run: Run, servicer: Watched) -> None:
    async def main() -> None:
        async with registry_at(running.url) as registry:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(registry.store_model, "policy", bytes(50_000_000))
                await wait_for(servicer.began)
                await registry.versions()  # isn't held up by it
                tasks.cancel_scope.cancel()
            await wait_for(servicer.ended)
            await registry.versions()

    with serving(servicer) as running:
        run(main)


def test_an_update_stream_nobody_wants_ends_on_the_server(run: Run, servicer: Watched) -> None:
    async def main() -> None:
        async with registry_at(running.url) as registry:
            updates = registry.iteration_updates("policy")
            assert (await anext(updates)).iteration == 1
            await wait_for(servicer.began)
            del updates
            await wait_for(servicer.ended)

    with serving(servicer) as running:
        run(main)


def test_the_server_is_told_of_the_deadline(run: Run, servicer: Watched) -> None:
    async def main() -> None:
        async with registry_at(running.url, timeout=5.5) as registry:
            with pytest.raises(cogment.DeadlineExceeded):
                await registry.status(timeout=0.2)
            async with anyio.create_task_group() as tasks:
                servicer.began.clear()
                tasks.start_soon(registry.status)
                await wait_for(servicer.began)
                tasks.cancel_scope.cancel()
        assert servicer.timeouts == pytest.approx([0.2, 5.5])

    with serving(servicer) as running:
        run(main)


def test_more_calls_than_a_connection_takes(run: Run, servicer: Watched) -> None:
    async def main() -> None:
        async with registry_at(running.url) as registry:
            updates = [registry.iteration_updates("policy") for _ in range(5)]
            for each in updates:
                await anext(each)
            await registry.versions()
            assert running.server is not None
            assert running.server.statistics().connections_total == 3
            for each in updates:
                await each.aclose()

    with serving(servicer, limits=Limits(max_concurrent_streams=2)) as running:
        run(main)


def test_many_calls_share_one_connection(run: Run, servicer: Watched) -> None:
    async def main() -> None:
        async with registry_at(running.url) as registry:
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(registry.versions)
            assert running.server is not None
            assert running.server.statistics().connections_total == 1

    with serving(servicer) as running:
        run(main)


def test_a_draining_server_lets_calls_finish_and_new_ones_go_elsewhere(run: Run) -> None:
    class Slow(Watched):
        go = trio.Event()

        async def Status(self, message: Any, request: Any) -> Any:  # type: ignore[override]
            self.began.set()
            await self.go.wait()
            return common_pb2.StatusReply(statuses={"done": "yes"})

    slow = Slow()

    async def main() -> None:
        found = []
        async with registry_at(running.url) as registry:

            async def ask() -> None:
                found.append(await registry.status())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await wait_for(slow.began)
                assert running.server is not None
                await anyio.to_thread.run_sync(running.do, running.server.drain, 30.0)
                await anyio.to_thread.run_sync(running.settle)  # the client is told before it gets its reply
                await anyio.to_thread.run_sync(running.do, slow.go.set)
            assert found == [{"done": "yes"}]
            with pytest.raises(CallFailed):
                await registry._rpc.once("Version", common_pb2.VersionRequest(), common_pb2.VersionInfo)

    with serving(slow) as running:
        run(main)


def test_a_silent_server_is_pinged_only_while_calls_run(
    run: Run, servicer: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with channel_to(running.port, keepalive=0.02, keepalive_timeout=30) as channel:
            await channel.unary(SERVICE + "Version", EMPTY)
            (connection, _), *_ = channel._connections
            core = connection._core
            pings: list[None] = []

            def ping(send: Callable[[], None] = core.ping) -> None:
                pings.append(None)
                send()

            monkeypatch.setattr(core, "ping", ping)
            with await channel.call(SERVICE + "Status") as call:
                call.send_last(EMPTY)
                while len(pings) < 4:  # each but the last was answered
                    await anyio.lowlevel.checkpoint()
            assert connection.usable

    with serving(servicer) as running:
        run(main)


def test_a_connection_that_nobody_answers(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nobody reads
        port = silent.getsockname()[1]

        async def main() -> None:
            async with channel_to(port, connect=0.05) as channel:
                with pytest.raises(CallFailed, match=r"no connection to .* within 0\.05 s") as failure:
                    await channel.unary(SERVICE + "Version", EMPTY)
                assert failure.value.code == Code.UNAVAILABLE
                assert not failure.value.delivered
                assert not channel.reached

        run(main)


def test_a_connection_that_goes_silent(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def greet() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(frame_header(0, SETTINGS, 0, 0))
                done.wait(30)

        thread = threading.Thread(target=greet)
        thread.start()

        async def main() -> None:
            async with channel_to(listener.getsockname()[1], keepalive=0.05, keepalive_timeout=0.05) as channel:
                with pytest.raises(CallFailed, match="doesn't answer") as failure:
                    await channel.unary(SERVICE + "Version", EMPTY)
                assert failure.value.code == Code.UNAVAILABLE
                assert channel.reached

        try:
            run(main)
        finally:
            done.set()
            thread.join()


@contextlib.contextmanager
def saying(*pieces: bytes, secure: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that says this to its first client, and waits until the client has gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def talk() -> None:
            sock, _ = listener.accept()
            with sock if secure is None else secure.wrap_socket(sock, server_side=True) as talking:
                talking.settimeout(30)
                talking.recv(100)
                for piece in pieces:
                    talking.sendall(piece)
                with contextlib.suppress(OSError):
                    while talking.recv(65536):
                        pass

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "HTTP status 400 Bad Request .*: gRPC needs HTTP/2"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "doesn't speak HTTP/2, which gRPC needs: is the endpoint right.* only with TLS"),
        (
            frame_header(0, SETTINGS, 0, 0) + frame_header(4, PUSH_PROMISE, END_HEADERS, 1) + b"\0\0\0\2",
            r"the server at 127\.0\.0\.1:\d+ doesn't keep to HTTP/2: PUSH_PROMISE, though push is disabled",
        ),
        (
            frame_header(0, SETTINGS, 0, 0) + frame_header(9, HEADERS, END_HEADERS, 1) + b"\xff" * 9,
            r"the server at 127\.0\.0\.1:\d+ doesn't keep to HTTP/2: integer too large",
        ),
    ],
    ids=["HTTP/1", "SSH", "push", "HPACK"],
)
def test_what_is_no_grpc_server(run: Run, said: bytes, message: str) -> None:
    async def main() -> None:
        async with channel_to(port) as channel:
            with pytest.raises(CallFailed, match=message):
                await channel.unary(SERVICE + "Version", EMPTY)

    with saying(said) as port:
        run(main)


@pytest.mark.parametrize("alpn", [[], ["http/1.1"]])
def test_a_tls_server_without_http2(run: Run, alpn: list[str]) -> None:
    ca = trustme.CA()
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(secure)
    if alpn:
        secure.set_alpn_protocols(alpn)

    async def main() -> None:
        tls = cogment.Endpoint("grpc://127.0.0.1:1", root_certificates=ca.cert_pem.bytes().decode()).tls_context()
        async with channel_to(port, tls=tls) as channel:
            with pytest.raises(CallFailed, match=r"HTTP status 505.*: gRPC needs HTTP/2: .* take HTTP/2\?$"):
                await channel.unary(SERVICE + "Version", EMPTY)

    with saying(b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n", secure=secure) as port:
        run(main)


def test_a_tls_server_that_refuses_http2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(address: Address) -> Any:
        error = ssl.SSLError(1, "[SSL] tlsv1 alert no application protocol (_ssl.c:1000)")
        error.reason = "TLSV1_ALERT_NO_APPLICATION_PROTOCOL"
        raise error

    async def main() -> None:
        async with channel_to(1) as channel:
            with pytest.raises(CallFailed, match="the server doesn't take HTTP/2, which gRPC needs"):
                await channel.unary(SERVICE + "Version", EMPTY)

    monkeypatch.setattr(modelreg.client.transport.connection, "connect", refused)
    run(main)


class Flood:
    """A wire whose server floods the client with PINGs, and takes nothing until `reading` is set."""

    def __init__(self, pings: int) -> None:
        self.left = pings
        self.taken = 0
        self.reading = anyio.Event()
        self.sending = anyio.Event()
        self.done = anyio.Event()
        self._data = memoryview(frame_header(0, SETTINGS, 0, 0) + ping(b"12345678") * pings)

    async def receive_into(self, memory: memoryview) -> int:
        if not self._data:
            await anyio.sleep_forever()
        piece = self._data[: len(memory)]
        self._data = self._data[len(piece) :]
        memory[: len(piece)] = piece
        return len(piece)

    async def send(self, pieces: Sequence[bytes | memoryview]) -> None:
        self.sending.set()
        await self.reading.wait()
        self.taken += sum(map(len, pieces))
        if self.taken >= self.left * 17:
            self.done.set()

    def close(self) -> None:
        pass


def test_a_server_that_floods_and_takes_nothing_is_read_no_further(run: Run) -> None:
    """200,000 PINGs left 3.4 MB unsent."""

    async def main() -> None:
        flood = Flood(20_000)
        connection = Connection(flood, Address("flood", 1), Timing())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await flood.sending.wait()
            await anyio.wait_all_tasks_blocked()
            assert len(connection._core._control) < 32 * 1024
            assert flood._data
            flood.reading.set()
            await flood.done.wait()
            connection.close()

    run(main)


class Large(Watched):
    """A registry whose answer has as many MiB as models are asked for."""

    async def RetrieveModels(self, message: Any) -> Any:
        info = api.ModelInfo(model_id="policy", user_data={"notes": "x" * (len(message.model_ids) << 20)})
        return api.RetrieveModelsReply(model_infos=[info])


def test_an_answer_larger_than_the_window(run: Run) -> None:
    """The server's window was given back once a message was complete: lists of more than 16 MiB never were."""

    async def main() -> None:
        async with channel_to(running.port) as channel:
            for size in (17, 33, 65):
                request = api.RetrieveModelsRequest(model_ids=["policy"] * size).SerializeToString()
                if size == 65:
                    with pytest.raises(CallFailed, match=r"a message of 6815\d+ bytes, .* 67108864 at most") as failure:
                        await channel.unary(SERVICE + "RetrieveModels", request, timeout=30)
                    assert failure.value.code == Code.RESOURCE_EXHAUSTED
                else:
                    answer = await channel.unary(SERVICE + "RetrieveModels", request, timeout=30)
                    assert len(answer) > size << 20
            with await channel.call(SERVICE + "RetrieveModels") as call:  # what wasn't received isn't given back
                call.send_last(api.RetrieveModelsRequest(model_ids=["policy"] * 17).SerializeToString())
                while call._stream.window:
                    await call.wait()
                assert len(await call.only()) > 17 << 20

    with serving(Large()) as running:
        run(main)


def test_unknown_hosts_and_closed_clients(run: Run, servicer: Watched) -> None:
    async def main() -> None:
        async with registry_at("grpc://nowhere.invalid:1", patience=0) as registry:
            with pytest.raises(cogment.Unavailable, match=r"nowhere\.invalid"):
                await registry.versions()
        async with registry_at(running.url) as registry:
            await registry.versions()
            await registry.close()
            with pytest.raises(cogment.Unavailable, match="closed"):
                await registry.versions()

    with serving(servicer) as running:
        run(main)


def test_a_look_up_that_takes_too_long(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    original = socket.getaddrinfo

    def slow(host: Any, *args: Any, **more: Any) -> Any:
        if more.get("flags") != socket.AI_NUMERICHOST:
            answered.wait(30)
        return original(host, *args, **more)

    async def main() -> None:
        timing = Timing(connect=0.1)
        async with registry_at("grpc://localhost:1", patience=0, timing=timing) as registry:
            with pytest.raises(cogment.Unavailable, match=r"within 0\.1 s"):
                await registry.versions()

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        run(main)
    finally:
        answered.set()


@pytest.mark.parametrize("host", ["ä" * 70, "ä..b", "a..b", "x" * 70])
def test_hosts_that_can_not_be(run: Run, host: str) -> None:
    async def main() -> None:
        async with registry_at(f"grpc://{host}:1", patience=0) as registry:
            with pytest.raises(cogment.Unavailable, match="no connection"):
                await registry.versions()

    run(main)


def test_metadata_that_can_not_be_sent() -> None:
    assert encode([("name", "value")]) == [(b"name", b"value")]
    for value in ("ä", "line\nbreak"):
        with pytest.raises(ValueError, match="ASCII"):
            encode([("name", value)])
    assert encode([("name", "x" * 4096)])
    with pytest.raises(ValueError, match="4097 characters"):
        encode([("name", "x" * 4097)])


def test_a_name_with_two_addresses(run: Run, servicer: Watched) -> None:
    """localhost is both ::1 and 127.0.0.1 on most machines, and the server listens on one of them."""

    async def main() -> None:
        async with registry_at(f"grpc://localhost:{running.port}") as registry:
            assert await registry.versions() == {}

    with serving(servicer) as running:
        run(main)
