"""Asking a Cogment Directory where a service is."""

from __future__ import annotations

import ssl

from modelreg.api import directory_pb2 as api
from modelreg.client.background import Background
from modelreg.client.endpoint import Direct, Endpoint, Inquiry, parse_url, shown
from modelreg.client.transport.channel import Channel
from modelreg.client.transport.connection import Timing
from modelreg.client.transport.status import CallFailed
from modelreg.client.transport.wire import Address
from modelreg.grpc.status import Code

TOKEN = "authentication-token"  # noqa: S105  # a key of metadata
INQUIRE = "/cogmentAPI.DirectorySP/Inquire"

INQUIRE_SECONDS = 10.0


async def resolve(
    endpoint: Endpoint,
    tls: ssl.SSLContext | None,
    directory: Endpoint | None,
    token: str | None,
    *,
    timing: Timing,
    background: Background,
    wanted: api.ServiceType = api.ServiceType.MODEL_REGISTRY_SERVICE,
) -> Address:
    """The address that an endpoint stands for, now.

    Arguments:
        endpoint: the service.
        tls: what it's connected to with, from `Endpoint.tls_context`.
        directory: whom to ask, if the endpoint doesn't say where; its URL has to.
        token: for the Directory.
        timing: of the connection to it.
        background: where that runs.
        wanted: the type of service, where the endpoint doesn't say.

    Raises:
        CallFailed: the Directory doesn't answer, or has no such service.
        ValueError: the endpoint isn't one, or there is no Directory to ask.
    """
    target = parse_url(endpoint.url)
    if isinstance(target, Direct):
        return Address(target.host, target.port, tls)
    if directory is None:
        raise ValueError(
            f"{shown(endpoint.url)} needs a directory: give the Context a directory_endpoint, set COGMENT_DIRECTORY_ENDPOINT, "
            "or use an endpoint like grpc://host:9002"
        )
    address = directory_address(directory)

    async def there() -> Address:
        return address

    channel = Channel(there, metadata=[(TOKEN, token)] if token else [], timing=timing, background=background)
    try:
        found = await _inquire(channel, target, wanted)
    except CallFailed as failure:
        message = f"the directory at {address} can't be asked: {failure}"
        raise CallFailed(failure.code, message, delivered=False, connected=failure.connected) from failure
    finally:
        channel.close()
    protocol = api.ServiceEndpoint.GRPC_SSL if tls is not None else api.ServiceEndpoint.GRPC
    for service in found:
        if service.endpoint.protocol == protocol:
            return Address(service.endpoint.host, service.endpoint.port, tls)
    if found:
        hint = (
            "without TLS: leave out the endpoint's tls, keys and certificates"
            if tls is not None
            else "with TLS only: set the endpoint's tls, or its root_certificates"
        )
        raise CallFailed(
            Code.FAILED_PRECONDITION, f"what the directory has for {shown(endpoint.url)} is {hint}", delivered=False
        )
    raise CallFailed(
        Code.UNAVAILABLE,
        f"the directory at {address} has no service for {shown(endpoint.url)}, or none for this token",
        delivered=False,
    )


def directory_address(directory: Endpoint) -> Address:
    """Where a Directory is. Raises `ValueError`."""
    target = parse_url(directory.url)
    if isinstance(target, Inquiry):
        msg = f"a directory's endpoint has to be like grpc://host:9005, and not {shown(directory.url)!r}"
        raise ValueError(msg)  # noqa: TRY004  # of a text, not of a type
    return Address(target.host, target.port, directory.tls_context())


async def _inquire(channel: Channel, inquiry: Inquiry, wanted: api.ServiceType) -> list[api.FullServiceData]:
    if inquiry.service_id is not None:
        request = api.InquireRequest(service_id=inquiry.service_id)
    else:
        details = api.ServiceDetails(type=inquiry.type or wanted, properties=inquiry.properties)
        request = api.InquireRequest(details=details)
    found = []
    with await channel.call(INQUIRE, timeout=INQUIRE_SECONDS) as call:
        call.send_last(request.SerializeToString())
        while (message := await call.receive()) is not None:
            found.append(api.InquireReply.FromString(message).data)
    return found
