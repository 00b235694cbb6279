"""How the server comes up and goes down; what it serves is tested in the rooms that do it."""

from __future__ import annotations

import errno
import gc
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import trio
import trio.testing

from modelreg import server
from modelreg.api import model_registry_pb2 as api
from modelreg.errors import AddressUnavailable
from modelreg.log import LineQuota, silent_logger
from modelreg.settings import Settings
from tests.clients.calls import Calls, Code, OpenRequest, connected, header, open_channel
from tests.support.server import PATIENCE, ServerProgram, StartServer, server_programs


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    with server_programs(tmp_path / "archive") as start:
        yield start


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        pytest.param("::", ["127.0.0.1", "[::1]"], marks=needs_ipv6),
        ("0.0.0.0", ["127.0.0.1"]),
        ("localhost", ["localhost"]),
    ],
)
def test_it_listens_on_every_address_of_its_host(start_server: StartServer, host: str, addresses: list[str]) -> None:
    program = start_server(f"--host={host}")
    for address in addresses:
        with connected(f"{address}:{program.port}") as calls:
            calls.create("policy")


async def test_an_address_that_is_found_twice_is_listened_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    getaddrinfo = trio.socket.getaddrinfo

    async def twice(host: Any, port: Any, **more: Any) -> Any:
        return await getaddrinfo(host, port, **more) * (2 if port is None else 1)

    monkeypatch.setattr(trio.socket, "getaddrinfo", twice)
    listeners = await server._listen("127.0.0.1", 0)
    assert len(listeners) == 1
    await listeners[0].aclose()


async def test_a_port_that_one_address_lacks_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    listen_on = server._listen_on

    async def taken_once(addresses: Any, port: int) -> Any:
        tried.append(port)
        if len(tried) == 1:
            raise OSError(errno.EADDRINUSE, "taken")
        return await listen_on(addresses, port)

    monkeypatch.setattr(server, "_listen_on", taken_once)
    (listener,) = await server._listen("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    tried.clear()
    with pytest.raises(AddressUnavailable, match="in use"):
        await server._listen("127.0.0.1", port)
    assert tried == [port]
    await listener.aclose()


@pytest.mark.parametrize("files", [100, 4000, resource.RLIM_INFINITY])
@pytest.mark.parametrize("given", [True, False])
def test_connections_leave_half_of_the_files_to_the_calls(
    monkeypatch: pytest.MonkeyPatch, files: int, given: bool
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    settings = Settings.read({"max_connections": "1024"} if given else {}, {})
    with structlog.testing.capture_logs() as log:
        limits = server._limits(settings, structlog.get_logger())
    assert limits.max_connections == (50 if files == 100 else 1024)
    assert bool(log) == (given and files == 100)


class HeldUp(ServerProgram):
    """A server that, once it has read its archive, calls the test, and waits until that hangs up."""

    def __init__(self, archive_dir: Path, *options: str) -> None:
        super().__init__(archive_dir, *options)
        self._listener = socket.create_server(("127.0.0.1", 0))
        script = """if True:
            import socket
            import sys
            from modelreg.cli import main
            from modelreg.storage import recovery

            port, recover = sys.argv.pop(1), recovery.recover

            def held_up(*arguments):
                found = recover(*arguments)
                with socket.create_connection(("127.0.0.1", int(port))) as test:
                    test.recv(1)
                return found

            recovery.recover = held_up
            sys.exit(main())
        """
        self.program = ("-c", script, str(self._listener.getsockname()[1]))

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Start it, and go on when it waits; at the end of the block it goes on, too, and serves."""
        self.launch()
        with self._listener:
            self._listener.settimeout(PATIENCE)
            call, _ = self._listener.accept()
        with call:
            yield
        self.wait_for_log("serving")


def test_nobody_can_connect_before_it_has_read_its_archive(start_server: StartServer) -> None:
    program = start_server()
    with connected(program.address) as calls:
        calls.create("policy")
        calls.store("policy", b"weights")
    program.stop()
    with socket.socket() as reserved:  # bound, but it never listens: the port is nobody else's
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()
        again = HeldUp(program.archive_dir, f"--port={address[1]}")
        try:
            with again.starting():
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(address)
                with open_channel(f"127.0.0.1:{address[1]}") as channel, pytest.raises(grpc.RpcError) as caught:
                    Calls(channel).RetrieveModels(api.RetrieveModelsRequest())
                assert caught.value.code() is Code.UNAVAILABLE
                assert not again.log
            with connected(f"127.0.0.1:{address[1]}") as calls:
                assert calls.numbers("policy") == [1]
            again.stop()
        finally:
            if again.running:
                again.kill()


async def test_a_stop_that_comes_while_it_starts_leaves_the_port_alone(tmp_path: Path) -> None:
    stop = trio.Event()
    stop.set()

    class Started:
        def started(self, value: object = None) -> None:
            pytest.fail("it began to serve")

    await server.serve(
        Settings(port=0, archive_dir=tmp_path / "archive"), silent_logger(), stop=stop, task_status=Started()
    )
    assert (tmp_path / "archive" / "FORMAT").exists()


def test_a_second_signal_ends_it_at_once(start_server: StartServer) -> None:
    program = start_server()
    with open_channel(program.address) as channel, OpenRequest(header("policy", data_size=1)) as request:
        calls = Calls(channel)
        calls.create("policy")
        upload = calls.CreateVersion.future(request)
        request.wait_sent()
        calls.status()
        program.signal(signal.SIGTERM)
        program.wait_for_log("stopping")
        assert not upload.done()
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert any(line["event"] == "stopping at once" for line in program.log)


@contextmanager
def full_collections() -> Iterator[list[float]]:
    """What is appended to by each full collection of garbage."""
    seen: list[float] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            seen.append(trio.current_time())

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(*server.COLLECTIONS)
    try:
        yield seen
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)


async def test_garbage_is_looked_for_while_few_calls_run(autojump_clock: trio.testing.MockClock) -> None:
    """A million objects, as those of 16,000 calls, are no reason to walk them all."""
    running = server.CALM + 1

    with full_collections() as seen:
        calls = [[number] for number in range(1_000_000)]
        assert not seen
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server._tidy, LineQuota(silent_logger()), lambda: running)
            await trio.sleep(150)
            assert not seen
            running = server.CALM
            await trio.sleep(60)
            assert seen == [180.0]
            running = server.CALM + 1
            await trio.sleep(server.COLLECT_AFTER)
            assert seen == [180.0, 180.0 + server.COLLECT_AFTER]
            nursery.cancel_scope.cancel()
    gc.unfreeze()
    del calls
