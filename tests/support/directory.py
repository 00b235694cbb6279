"""A Cogment Directory for tests: registrations, inquiries, and the health checks by which it drops what doesn't answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import trio

from modelreg.api import common_pb2
from modelreg.api import directory_pb2 as api
from modelreg.client.background import Background
from modelreg.client.transport.channel import Channel
from modelreg.client.transport.connection import Timing
from modelreg.client.transport.status import CallFailed
from modelreg.client.transport.wire import Address
from modelreg.transport.server import Server
from tests.client.fakes import TOKEN, Directory


class RegisteringDirectory(Directory):
    """A Directory with all of its calls.

    Attributes:
        registrations: how many there have been.
        refusal: the reason for refusing them, if it does.
        changed: rung at every call, for `until`.
    """

    def __init__(self, first_id: int = 1) -> None:
        super().__init__()
        self.secrets: dict[int, str] = {}
        self.registrations = 0
        self.deregistrations = 0
        self.refusal: str | None = None
        self.stuck = False
        self._next_id = first_id
        self._changed = trio.Condition()

    async def until(self, predicate: Any) -> None:
        """Wait until something is so, after a call."""
        async with self._changed:
            while not predicate():
                await self._changed.wait()

    @property
    def only(self) -> api.FullServiceData:
        """What is registered, where it's one service."""
        ((data, _),) = self.services.values()
        return data

    def forget(self) -> None:
        """Lose all registrations, as a restart does."""
        self.services.clear()
        self.secrets.clear()

    async def Register(self, messages: Any, request: Any) -> Any:  # type: ignore[override]
        async for message in messages:
            if self.stuck:
                await trio.sleep_forever()
            self.registrations += 1
            if self.refusal is not None:
                reply = api.RegisterReply(status=api.RegisterReply.FAILED, error_msg=self.refusal)
            else:
                number, self._next_id = self._next_id, self._next_id + 1
                data = api.FullServiceData(
                    endpoint=message.endpoint, service_id=number, details=message.details, permanent=message.permanent
                )
                self.services[number] = data, _token(request)
                self.secrets[number] = f"secret of {number}"
                reply = api.RegisterReply(status=api.RegisterReply.OK, service_id=number, secret=self.secrets[number])
            await self._ring()
            yield reply

    async def Deregister(self, messages: Any, request: Any) -> Any:  # type: ignore[override]
        async for message in messages:
            if self.stuck:
                await trio.sleep_forever()
            self.deregistrations += 1
            reply = api.DeregisterReply(status=api.DeregisterReply.OK)
            if self.secrets.get(message.service_id) != message.secret:
                reply = api.DeregisterReply(
                    status=api.DeregisterReply.FAILED, error_msg="unknown service or wrong secret"
                )
            else:
                del self.services[message.service_id], self.secrets[message.service_id]
            await self._ring()
            yield reply

    async def Inquire(self, message: api.InquireRequest, request: Any) -> Any:  # type: ignore[override]
        async with contextlib.aclosing(super().Inquire(message, request)) as replies:
            async for reply in replies:
                yield reply
        await self._ring()

    async def _ring(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def check_health(self) -> None:
        """Call every registered service that isn't permanent, and drop those that don't answer as they should."""
        for number, (data, _) in list(self.services.items()):
            if not data.permanent and not await _answers(data.endpoint):
                del self.services[number], self.secrets[number]


def _token(request: Any) -> str:
    return next((str(value) for name, value in request.custom_metadata if name == TOKEN), "")


async def _answers(endpoint: api.ServiceEndpoint) -> bool:
    async def there() -> Address:
        return Address(endpoint.host, endpoint.port)

    background = Background()
    channel = Channel(there, timing=Timing(), background=background)
    try:
        service = "/cogmentAPI.ModelRegistrySP/"
        versions = await channel.unary(service + "Version", common_pb2.VersionRequest().SerializeToString())
        await channel.unary(service + "Status", common_pb2.StatusRequest().SerializeToString())
    except CallFailed:
        return False
    finally:
        channel.close()
        await background.close()
    return {"cogment-api", "grpc"} <= {version.name for version in common_pb2.VersionInfo.FromString(versions).versions}


@contextlib.asynccontextmanager
async def directory_here(directory: Directory, port: int = 0) -> AsyncIterator[str]:
    """Serve a Directory on this event loop; its endpoint."""
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(Server([directory.service]).serve, listeners)
        yield f"grpc://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
