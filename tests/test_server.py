"""How the server comes up and goes down; what it serves is tested in the rooms that do it."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from modelreg import server
from modelreg.errors import AddressUnavailable
from modelreg.log import silent_logger
from modelreg.settings import Settings
from tests.clients.calls import Calls, OpenRequest, connected, header, open_channel
from tests.support.server import StartServer, server_programs


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
