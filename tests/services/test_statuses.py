from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from purerpc.grpclib.exceptions import RpcFailedError
from purerpc.server import Service

from modelreg import errors
from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.api.model_registry_grpc import ModelRegistrySPServicer
from modelreg.errors import ModelregError
from modelreg.services.statuses import translated

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelregError)]


class Servicer(ModelRegistrySPServicer):
    """Raises what it's told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.closed = False

    async def Status(self, message: common_pb2.StatusRequest) -> common_pb2.StatusReply:
        if self.error is not None:
            raise self.error
        return common_pb2.StatusReply(statuses={"asked": ",".join(message.names)})

    async def VersionUpdate(self, message: api.VersionUpdateRequest) -> AsyncGenerator[api.VersionUpdateReply, None]:  # type: ignore[override]
        try:
            yield api.VersionUpdateReply(version_info=api.ModelVersionInfo(model_id=message.model_id))
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def method(service: Service, name: str) -> Any:
    return service.methods[name].method_fn


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not ModelregError])
async def test_each_of_the_domains_errors_becomes_its_status(kind: type[ModelregError]) -> None:
    servicer = Servicer()
    servicer.error = kind("what a person reads")
    service = translated(servicer.service)
    with pytest.raises(RpcFailedError) as caught:
        await method(service, "Status")(common_pb2.StatusRequest(), request=None)
    assert (caught.value.status.status_code, caught.value.status.status_message) == (kind.status, "what a person reads")
    stream = method(service, "VersionUpdate")(api.VersionUpdateRequest(model_id="m"), request=None)
    assert (await anext(stream)).version_info.model_id == "m"
    with pytest.raises(RpcFailedError) as caught:
        await anext(stream)
    assert (caught.value.status.status_code, caught.value.status.status_message) == (kind.status, "what a person reads")
    assert servicer.closed


async def test_any_other_exception_is_left_to_the_transport() -> None:
    servicer = Servicer()
    servicer.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        await method(translated(servicer.service), "Status")(common_pb2.StatusRequest(), request=None)


async def test_replies_pass_as_they_are() -> None:
    service = translated(Servicer().service)
    reply = await method(service, "Status")(common_pb2.StatusRequest(names=["a", "b"]), request=None)
    assert dict(reply.statuses) == {"asked": "a,b"}


async def test_stream_that_is_given_up_is_closed_at_once() -> None:
    servicer = Servicer()
    stream = method(translated(servicer.service), "VersionUpdate")(api.VersionUpdateRequest(), request=None)
    await anext(stream)
    assert not servicer.closed
    await stream.aclose()
    assert servicer.closed


def test_every_method_stays_with_its_signature() -> None:
    service = Servicer().service
    result = translated(service)
    assert result.name == service.name
    assert {name: bound.signature for name, bound in result.methods.items()} == {
        name: bound.signature for name, bound in service.methods.items()
    }
