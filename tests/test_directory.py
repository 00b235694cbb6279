"""Registration with a Directory: real sockets, and a Directory of the test suite's own."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from modelreg import __version__, directory
from modelreg.api import directory_pb2 as api
from modelreg.client.transport.wire import Address
from modelreg.directory import Pace, own_address, stay_registered
from modelreg.settings import Settings
from tests.support.directory import RegisteringDirectory, directory_here
from tests.support.server import LogLine, _capture, server_here

# As fast as it goes: what a test waits for, it waits for by name.
FAST = Pace(look=0.001, first_pause=0.001, longest_pause=0.002)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Registered:
    """A registration that a test looks at, without the server that it's about."""

    def __init__(self) -> None:
        self.stop = trio.Event()
        self.log: list[LogLine] = []

    def logged(self, event: str) -> list[LogLine]:
        return [line for line in self.log if event in line["event"]]


@contextlib.asynccontextmanager
async def registered(url: str, port: int = 1, pace: Pace = FAST, **settings: Any) -> AsyncIterator[Registered]:
    it = Registered()
    logger = structlog.wrap_logger(
        None,
        processors=[functools.partial(_capture, it.log)],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        context_class=dict,
    )
    stay = functools.partial(stay_registered, pace=pace)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay, Settings(directory_endpoint=url, **settings), port, it.stop, logger)
            yield it
            it.stop.set()


async def test_it_registers_what_serves_and_deregisters_it(tmp_path: Path) -> None:
    servicer = RegisteringDirectory()
    properties = (("Sim", "20"), ("hpp", ""), ("mem", "HIGH"))
    async with directory_here(servicer) as url:
        options = {"directory_endpoint": url, "directory_registration_properties": properties}
        async with server_here(tmp_path, **options) as server:
            await servicer.until(lambda: servicer.services)
            data = servicer.only
            assert f"{data.endpoint.host}:{data.endpoint.port}" == server.address
            assert data.endpoint.protocol == api.ServiceEndpoint.GRPC
            assert data.details.type == api.MODEL_REGISTRY_SERVICE
            assert not data.permanent
            assert dict(data.details.properties) == {
                "Sim": "20",
                "hpp": "",
                "mem": "HIGH",
                "__registration_source": "Self-Implicit",
                "__version": __version__,
            }
            await servicer.check_health()
            assert servicer.services, "it's answering, so it stays"
        assert servicer.services == {}
        assert servicer.deregistrations == 1


async def test_where_calls_need_a_token_the_directorys_health_check_passes_without(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("read-write some-token\n")
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        options = {"directory_endpoint": url, "authentication_token_file": tokens}
        async with server_here(tmp_path / "archive", **options) as server:
            await servicer.until(lambda: servicer.services)
            await servicer.check_health()
            assert servicer.services, "it's answering, so it stays"
    assert not [line for line in server.log if "token" in line["event"]]
    assert servicer.registrations == 1


async def test_a_host_that_is_given_is_registered() -> None:
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        async with registered(url, port=4711, directory_registration_host="foo.bar"):
            await servicer.until(lambda: servicer.services)
            data = servicer.only
            assert (data.endpoint.host, data.endpoint.port) == ("foo.bar", 4711)
            assert data.details.properties["__registration_source"] == "Self-Command_Line"


async def test_with_a_certificate_it_registers_as_tls(tmp_path: Path) -> None:
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        async with registered(url, tls_certificate=tmp_path / "c", tls_key=tmp_path / "k"):
            await servicer.until(lambda: servicer.services)
            assert servicer.only.endpoint.protocol == api.ServiceEndpoint.GRPC_SSL


async def test_the_token_goes_along_and_into_no_log() -> None:
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        async with registered(url, directory_authentication_token="GH670ploT") as registration:
            await servicer.until(lambda: servicer.services and servicer.inquiries)
            assert [token for _, token in servicer.services.values()] == ["GH670ploT"]
    assert servicer.services == {}
    assert registration.logged("deregistered")
    assert "GH670ploT" not in str(registration.log)
    assert "secret" not in str(registration.log)


async def test_it_registers_again_when_the_directory_forgot_it() -> None:
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        async with registered(url) as registration:
            await servicer.until(lambda: servicer.services and servicer.inquiries)
            servicer.forget()
            await servicer.until(lambda: servicer.services)
            assert servicer.registrations == 2
        assert servicer.services == {}
    assert len(registration.logged("dropped")) == 1


async def test_a_number_that_another_service_has_now_is_not_taken_for_its_own() -> None:
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        async with registered(url, port=1):
            await servicer.until(lambda: servicer.services and servicer.inquiries)
            servicer.forget()
            servicer.add(port=2)
            await servicer.until(lambda: len(servicer.services) == 2)
        assert [data.endpoint.port for data, _ in servicer.services.values()] == [2]


async def test_it_waits_for_a_directory_that_is_not_there_and_complains_once() -> None:
    port = free_port()
    async with registered(f"grpc://127.0.0.1:{port}") as registration:
        while len(registration.logged("can't be used")) < 3:
            await trio.lowlevel.checkpoint()
        servicer = RegisteringDirectory()
        async with directory_here(servicer, port):
            await servicer.until(lambda: servicer.services)
            registration.stop.set()
            await servicer.until(lambda: not servicer.services)
    levels = [line["level"] for line in registration.logged("can't be used")]
    assert levels[0] == "warning"
    assert set(levels[1:]) == {"debug"}


async def test_it_registers_again_with_a_directory_that_came_back() -> None:
    first, second = RegisteringDirectory(), RegisteringDirectory(first_id=100)
    port = free_port()
    async with registered(f"grpc://127.0.0.1:{port}") as registration:
        async with directory_here(first, port):
            await first.until(lambda: first.services and first.inquiries)
        async with directory_here(second, port):
            await second.until(lambda: second.services)
            assert list(second.services) == [100]
            registration.stop.set()
            await second.until(lambda: not second.services)


async def test_a_registration_that_is_refused_is_tried_again() -> None:
    servicer = RegisteringDirectory()
    servicer.refusal = "not today"
    async with directory_here(servicer) as url:
        async with registered(url) as registration:
            await servicer.until(lambda: servicer.registrations == 2)
            servicer.refusal = None
            await servicer.until(lambda: servicer.services)
    assert "not today" in registration.logged("can't be used")[0]["error"]


async def test_what_can_not_be_reached_is_dropped_and_registers_again(tmp_path: Path) -> None:
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        async with registered(url, port=free_port()) as registration:
            await servicer.until(lambda: servicer.services)
            await servicer.check_health()
            assert servicer.services == {}
            await servicer.until(lambda: servicer.services)
    assert registration.logged("dropped")


async def test_a_directory_that_does_not_answer_holds_up_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "DEREGISTER_SECONDS", 0.01)
    servicer = RegisteringDirectory()
    servicer.stuck = True
    async with directory_here(servicer) as url:
        async with server_here(tmp_path, directory_endpoint=url) as server:
            host, _, port = server.address.rpartition(":")
            await (await trio.open_tcp_stream(host, int(port))).aclose()
    assert servicer.registrations == 0


async def test_the_end_waits_five_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert directory.DEREGISTER_SECONDS == 5
    monkeypatch.setattr(directory, "DEREGISTER_SECONDS", 0.01)
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        async with registered(url) as registration:
            await servicer.until(lambda: servicer.services and servicer.inquiries)
            servicer.stuck = True
        assert registration.log[-1].get("error") == "it took too long", registration.log


async def test_what_nobody_expected_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> str:
        await trio.lowlevel.checkpoint()
        monkeypatch.undo()
        raise RuntimeError("a bug")

    monkeypatch.setattr(directory, "own_address", broken)
    servicer = RegisteringDirectory()
    async with directory_here(servicer) as url:
        async with registered(url) as registration:
            await servicer.until(lambda: servicer.services)
    assert registration.logged("failed")[0]["exc_info"]


async def test_without_a_directory_there_is_nothing_to_do() -> None:
    await stay_registered(Settings(), 1, trio.Event(), structlog.get_logger())


HERE = Address("127.0.0.1", 9005)


@pytest.mark.parametrize("listens_on", ["127.0.0.1", "::1", "10.1.2.3", "localhost", "registry.example"])
async def test_what_listens_on_one_address_has_that(listens_on: str) -> None:
    assert await own_address(listens_on, HERE) == listens_on


@pytest.mark.parametrize(("listens_on", "version"), [("0.0.0.0", 4), ("::", 6)])
@pytest.mark.parametrize("asked", ["127.0.0.1", "::1", "localhost", "no.such.host.invalid"])
async def test_what_listens_on_all_addresses_has_one_of_them(listens_on: str, version: int, asked: str) -> None:
    own = await own_address(listens_on, Address(asked, 9005))
    address = ipaddress.ip_address(own)
    assert address.version == version
    assert not address.is_unspecified
    if address.version == 4 or own != "::1":
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        socket.create_server((own, 0), family=family).close()  # raises where it isn't this machine's
