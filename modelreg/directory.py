"""Registration with a Cogment Directory, so that clients find this registry by asking for what it is.

    register → look every few seconds whether the Directory still knows → … → deregister
        ↑                                     │ no: it came back without memory, or its health check failed
        └─────────────────────────────────────┘

Whatever the Directory does, or doesn't, costs the registry no more than a line in the log: it serves before it
registers, and goes on serving while it can't. A failure is tried again with pauses that double.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator

import attrs
import trio
from google.protobuf.message import DecodeError

from modelreg import __version__
from modelreg.api import directory_pb2 as api
from modelreg.client.background import Background
from modelreg.client.directory import INQUIRE, TOKEN, directory_address
from modelreg.client.endpoint import Endpoint
from modelreg.client.retry import Backoff
from modelreg.client.transport.calls import Call
from modelreg.client.transport.channel import Channel, deadline
from modelreg.client.transport.connection import Timing
from modelreg.client.transport.status import CallFailed
from modelreg.client.transport.wire import Address
from modelreg.grpc.status import Code
from modelreg.log import Logger
from modelreg.settings import Settings

REGISTER = "/cogmentAPI.DirectorySP/Register"
DEREGISTER = "/cogmentAPI.DirectorySP/Deregister"

# The properties that a service adds when it registers itself, and what the first may be.
SOURCE = "__registration_source"
VERSION = "__version"
HOST_FOUND = "Self-Implicit"
HOST_GIVEN = "Self-Command_Line"

# How long the end of the registry waits for the Directory, in seconds.
DEREGISTER_SECONDS = 5.0

# Addresses for documentation (RFC 5737, RFC 3849): what leads there leads to everybody beyond the local networks.
_BEYOND = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


@attrs.frozen(kw_only=True)
class Pace:
    """How often the Directory is asked, in seconds.

    Attributes:
        look: from one look whether it still knows to the next.
        first_pause: after the first failure. Pauses double up to *longest_pause*.
        reply: how long it may take to answer.
    """

    look: float = 10.0
    first_pause: float = 0.5
    longest_pause: float = 30.0
    reply: float = 5.0


@attrs.frozen
class _Registered:
    service_id: int
    secret: str = attrs.field(repr=False)
    endpoint: api.ServiceEndpoint


async def stay_registered(
    settings: Settings,
    port: int,
    stop: trio.Event,
    logger: Logger,
    *,
    pace: Pace = Pace(),
) -> None:
    """Be registered as what serves on *port*, until *stop* is set; return when that is undone, or couldn't be in 5
    seconds.

    Without a directory in *settings* there is nothing to do. Raises nothing.
    """
    if settings.directory_endpoint is None:
        return
    registration = Registration(settings, port, logger, pace=pace)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registration.keep)
        await stop.wait()
        await registration.undo()
        nursery.cancel_scope.cancel()


class Registration:
    """What one directory knows of this registry."""

    def __init__(self, settings: Settings, port: int, logger: Logger, *, pace: Pace) -> None:
        assert settings.directory_endpoint is not None
        self._settings = settings
        self._port = port
        self._pace = pace
        self._directory = directory_address(Endpoint(settings.directory_endpoint))
        self._logger = logger.bind(directory=settings.directory_endpoint)
        self._registered: _Registered | None = None
        self._complained = False
        self._registering = trio.Lock()
        self._over = False

    async def keep(self) -> None:
        """Register, and again whenever that's gone. To be cancelled after `undo`."""
        backoff = Backoff(self._pace.first_pause, self._pace.longest_pause)
        while True:
            try:
                async with self._registering:
                    if self._registered is None and not self._over:
                        await self._register()
                await trio.sleep(self._pace.look)
                if await self._is_known():
                    backoff.reset()
                    self._complained = False
                    continue
                if self._over:
                    return
                self._registered = None
                self._complain(
                    "the directory has dropped the registration: has it restarted, or can't it reach this host?"
                )
            except CallFailed as failure:
                self._complain("the directory can't be used", error=str(failure))
            except DecodeError:
                self._complain("the directory can't be used", error="it sends bytes that are no message")
            except Exception:
                self._logger.exception("registering with the directory failed")
            await trio.sleep(backoff.pause())

    async def undo(self) -> None:
        """Register no more, and deregister, unless that takes too long.

        What is just being registered is waited for, to be undone, too.
        """
        self._over = True
        with trio.move_on_after(DEREGISTER_SECONDS) as limited:
            async with self._registering:
                if self._registered is not None:
                    await self._deregister(self._registered)
                    self._registered = None
        if limited.cancelled_caught:
            self._logger.warning("not deregistered from the directory", error="it took too long")

    async def _deregister(self, registered: _Registered) -> None:
        request = api.DeregisterRequest(service_id=registered.service_id, secret=registered.secret)
        try:
            reply = api.DeregisterReply.FromString(await self._only(DEREGISTER, request.SerializeToString()))
            if reply.status != api.DeregisterReply.OK:
                raise CallFailed(Code.FAILED_PRECONDITION, reply.error_msg)
        except (CallFailed, DecodeError) as failure:
            self._logger.warning("not deregistered from the directory", error=str(failure))
        except Exception:
            self._logger.exception("deregistering from the directory failed")
        else:
            self._logger.info("deregistered from the directory", service_id=registered.service_id)

    def _complain(self, event: str, **details: object) -> None:
        """Warn once of each row of failures."""
        log = self._logger.debug if self._complained else self._logger.warning
        log(event, **details)
        self._complained = True

    async def _register(self) -> None:
        settings = self._settings
        given = settings.directory_registration_host
        host = given or await own_address(settings.host, self._directory)
        protocol = api.ServiceEndpoint.GRPC if settings.tls_certificate is None else api.ServiceEndpoint.GRPC_SSL
        endpoint = api.ServiceEndpoint(protocol=protocol, host=host, port=self._port)
        properties = {
            **dict(settings.directory_registration_properties),
            SOURCE: HOST_FOUND if given is None else HOST_GIVEN,
            VERSION: __version__,
        }
        details = api.ServiceDetails(type=api.MODEL_REGISTRY_SERVICE, properties=properties)
        request = api.RegisterRequest(endpoint=endpoint, details=details, permanent=False)
        reply = api.RegisterReply.FromString(await self._only(REGISTER, request.SerializeToString()))
        if reply.status != api.RegisterReply.OK:
            raise CallFailed(Code.FAILED_PRECONDITION, f"it refuses the registration: {reply.error_msg}")
        self._registered = _Registered(reply.service_id, reply.secret, endpoint)
        self._logger.info("registered with the directory", service_id=reply.service_id, host=host, port=self._port)

    async def _is_known(self) -> bool:
        """Whether the Directory has what was registered.

        After a restart, another service may have got the same number.
        """
        registered = self._registered
        if registered is None:
            return False
        request = api.InquireRequest(service_id=registered.service_id).SerializeToString()
        try:
            async with self._call(INQUIRE, request) as call:
                while (message := await call.receive()) is not None:
                    if api.InquireReply.FromString(message).data.endpoint == registered.endpoint:
                        return True
        except CallFailed as failure:
            if failure.code != Code.NOT_FOUND:
                raise
        return False

    async def _only(self, path: str, request: bytes) -> bytes:
        """Send the only request of a stream, and return its reply."""
        async with self._call(path, request) as call:
            return await call.only()

    @contextlib.asynccontextmanager
    async def _call(self, path: str, request: bytes) -> AsyncIterator[Call]:
        """A call on a connection of its own: one that is kept may be dead by the next time, and nobody would notice."""

        async def there() -> Address:
            return self._directory

        token = self._settings.directory_authentication_token
        background = Background()
        timing = Timing(connect=self._pace.reply)
        metadata = [(TOKEN, token)] if token else []
        channel = Channel(there, metadata=metadata, timing=timing, background=background)
        try:
            with deadline(self._pace.reply), await channel.call(path, timeout=self._pace.reply) as call:
                call.send_last(request)
                yield call
        finally:
            channel.close()
            await background.close()


async def own_address(listens_on: str, directory: Address) -> str:
    """The address at which others reach what listens on *listens_on*, as far as this machine can tell.

    Where that is one address, or a name, it's that. Where it's all addresses, it's the one from which the way leads to
    the Directory; or, where that's on this machine too, to the rest of the world.
    """
    try:
        listened = ipaddress.ip_address(listens_on)
    except ValueError:
        return listens_on
    if not listened.is_unspecified:
        return listens_on
    family = socket.AF_INET if listened.version == 4 else socket.AF_INET6
    for host in (directory.host, _BEYOND[family]):
        found = await _address_towards(family, host, directory.port)
        if found is not None and not ipaddress.ip_address(found).is_loopback:
            return found
    return "127.0.0.1" if listened.version == 4 else "::1"


async def _address_towards(family: socket.AddressFamily, host: str, port: int) -> str | None:
    """The own address that packets to a host carry; connecting a datagram socket sends none."""
    try:
        found = await trio.socket.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM)
        with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
            await sock.connect(found[0][4])
            return str(sock.getsockname()[0]).partition("%")[0]
    except OSError:
        return None
