"""An upload that names itself, by metadata: sent again, it isn't stored again."""

from __future__ import annotations

from typing import Any

import pytest

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import Calls, Code, OpenRequest, body, connected, fails, header, upload
from tests.support.server import StartServer

MIB = 1 << 20

STORED_AND_TRANSIENT = pytest.mark.parametrize("archived", [True, False], ids=["stored", "transient"])


def send(calls: Calls, model_id: str, data: bytes, request_id: str, **info: Any) -> api.ModelVersionInfo:
    metadata = (("modelreg-request-id", request_id),)
    version: api.ModelVersionInfo = calls.CreateVersion(
        iter(upload(model_id, data, **info)), metadata=metadata
    ).version_info
    return version


@STORED_AND_TRANSIENT
def test_same_request_again_gives_the_version_that_came_of_it(calls: Calls, model: str, archived: bool) -> None:
    first = send(calls, model, b"data", "one", archived=archived)
    assert send(calls, model, b"data", "two", archived=archived).version_number == 2
    assert send(calls, model, b"data", "one", archived=archived) == first
    assert calls.numbers(model) == [1, 2]


def test_same_request_again_is_answered_before_any_body(calls: Calls, model: str) -> None:
    first = send(calls, model, b"a" * 2 * MIB, "one")
    with OpenRequest(header(model, data_size=2 * MIB)) as request:
        reply = calls.CreateVersion(request, metadata=(("modelreg-request-id", "one"),))
    assert reply.version_info == first


def test_same_request_of_another_model_is_another_request(calls: Calls, model: str) -> None:
    calls.create(f"{model} too")
    send(calls, model, b"data", "one")
    assert send(calls, f"{model} too", b"data", "one").model_id == f"{model} too"


def test_same_request_twice_at_once_is_stored_once(calls: Calls, model: str) -> None:
    metadata = (("modelreg-request-id", "one"),)
    with OpenRequest(header(model, data_size=4)) as first, OpenRequest(header(model, data_size=4)) as second:
        running = [calls.CreateVersion.future(request, metadata=metadata) for request in (first, second)]
        for request in (first, second):
            request.wait_sent()
        calls.status()  # both have begun
        for request in (first, second):
            request.send(body(b"data"))
            request.close()
        versions = [call.result().version_info for call in running]
    assert versions[0] == versions[1]
    assert calls.numbers(model) == [1]


def test_request_that_failed_may_be_sent_again(calls: Calls, model: str) -> None:
    with fails(Code.INVALID_ARGUMENT):
        send(calls, model, b"data", "one", data_size=5)
    assert send(calls, model, b"data", "one").version_number == 1


def test_stored_version_is_known_by_its_request_after_a_restart(start_server: StartServer) -> None:
    server = start_server()
    with connected(server.address) as calls:
        calls.create("m")
        stored = send(calls, "m", b"data", "one")
        send(calls, "m", b"data", "two", archived=False)
    server.kill()
    server.start()
    with connected(server.address) as calls:
        assert send(calls, "m", b"data", "one") == stored
        # The transient one is gone: it's right to publish it again.
        assert send(calls, "m", b"data", "two", archived=False).version_number > 2


@pytest.mark.parametrize("request_id", ["", "x" * 129])
def test_request_id_that_is_empty_or_too_long_is_invalid(calls: Calls, model: str, request_id: str) -> None:
    with fails(Code.INVALID_ARGUMENT) as caught:
        send(calls, model, b"data", request_id)
    assert "modelreg-request-id" in caught.value.details()


def test_version_that_is_gone_is_published_again(start_server: StartServer) -> None:
    with connected(start_server("--cache_max_items=1").address) as calls:
        calls.create("m")
        assert send(calls, "m", b"data", "one", archived=False).version_number == 1
        assert send(calls, "m", b"other", "two", archived=False).version_number == 2
        assert send(calls, "m", b"data", "one", archived=False).version_number == 3
        assert send(calls, "m", b"data", "one", archived=False).version_number == 3
        assert calls.numbers("m") == [3]
