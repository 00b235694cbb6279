from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
import trio.testing

from modelreg.api.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from modelreg.errors import NotFound, Unavailable
from modelreg.services.health import HealthServicer, Readiness

SERVICE = "cogmentAPI.ModelRegistrySP"
ARCHIVE = "modelreg.Archive"
KNOWN = pytest.mark.parametrize("service", ["", SERVICE, ARCHIVE])

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def damage() -> set[str]:
    """What is known to be damaged."""
    return set()


@pytest.fixture
def servicer(readiness: Readiness, damage: set[str]) -> HealthServicer:
    return HealthServicer(readiness, [SERVICE], lambda: bool(damage))


@asynccontextmanager
async def watch(servicer: HealthServicer, service: str) -> AsyncIterator[AsyncGenerator[HealthCheckResponse, None]]:
    """A watch, which is never waited for in vain."""
    with trio.fail_after(10):
        async with aclosing(servicer.Watch(HealthCheckRequest(service=service))) as states:
            yield states


@KNOWN
async def test_check_follows_readiness(servicer: HealthServicer, readiness: Readiness, service: str) -> None:
    request = HealthCheckRequest(service=service)
    assert (await servicer.Check(request)).status == NOT_SERVING
    readiness.start()
    assert (await servicer.Check(request)).status == SERVING
    readiness.stop()
    assert (await servicer.Check(request)).status == NOT_SERVING


async def test_check_of_an_unknown_service(servicer: HealthServicer) -> None:
    with pytest.raises(NotFound, match="'x'"):
        await servicer.Check(HealthCheckRequest(service="x"))


async def test_list_has_the_server_and_each_service(servicer: HealthServicer, readiness: Readiness) -> None:
    for expected in (NOT_SERVING, SERVING):
        statuses = (await servicer.List(HealthListRequest())).statuses
        assert {name: each.status for name, each in statuses.items()} == {
            "": expected,
            SERVICE: expected,
            ARCHIVE: expected,
        }
        readiness.start()


async def test_damage_is_the_archives_alone(
    servicer: HealthServicer, readiness: Readiness, damage: set[str], autojump_clock: trio.testing.MockClock
) -> None:
    readiness.start()
    async with watch(servicer, ARCHIVE) as archive, watch(servicer, SERVICE) as service:
        assert (await anext(archive)).status == (await anext(service)).status == SERVING
        damage.add("a blob")
        readiness.changed.ring()
        assert (await anext(archive)).status == NOT_SERVING
        for name, expected in (("", SERVING), (SERVICE, SERVING), (ARCHIVE, NOT_SERVING)):
            assert (await servicer.Check(HealthCheckRequest(service=name))).status == expected
        damage.clear()
        readiness.changed.ring()
        assert (await anext(archive)).status == SERVING
        readiness.stop()
        assert (await anext(archive)).status == (await anext(service)).status == NOT_SERVING


@KNOWN
async def test_watch_tells_each_change_also_one_that_comes_while_the_last_is_being_sent(
    servicer: HealthServicer, readiness: Readiness, autojump_clock: trio.testing.MockClock, service: str
) -> None:
    async with watch(servicer, service) as states:
        assert (await anext(states)).status == NOT_SERVING
        readiness.start()
        assert (await anext(states)).status == SERVING
        readiness.stop()
        assert (await anext(states)).status == NOT_SERVING
        with pytest.raises(Unavailable):
            await anext(states)


async def test_watch_of_an_unknown_service_ends_with_the_server_too(
    servicer: HealthServicer, readiness: Readiness, autojump_clock: trio.testing.MockClock
) -> None:
    async with watch(servicer, "x") as states:
        assert (await anext(states)).status == HealthCheckResponse.SERVICE_UNKNOWN
        readiness.start()
        readiness.stop()
        with pytest.raises(Unavailable):
            await anext(states)


@pytest.mark.parametrize("service", ["", SERVICE, "x"])
async def test_watch_waits_while_nothing_changes(
    servicer: HealthServicer, readiness: Readiness, autojump_clock: trio.testing.MockClock, service: str
) -> None:
    readiness.start()
    async with watch(servicer, service) as states:
        await anext(states)
        async with trio.open_nursery() as nursery:

            async def stop_later() -> None:
                await trio.testing.wait_all_tasks_blocked()
                readiness.stop()

            nursery.start_soon(stop_later)
            if service == "x":
                with pytest.raises(Unavailable):
                    await anext(states)
            else:
                assert (await anext(states)).status == NOT_SERVING


@pytest.mark.parametrize(("state", "words"), [("starting", "starting"), ("stopping", "stopping")])
def test_calls_are_unavailable_until_it_is_ready_and_when_it_stops(
    readiness: Readiness, state: str, words: str
) -> None:
    if state == "stopping":
        readiness.start()
        readiness.check()
        readiness.stop()
    with pytest.raises(Unavailable, match=words):
        readiness.check()
