"""One connection: the core, its socket, and the three tasks between them.

A task reads, one writes, one asks a silent server whether it's still there. Only the writer touches the socket's sending
side, so a call that is cancelled never leaves half a frame behind. The connection ends when any of them fails, when it's
closed, or when the server has said GOAWAY and the last call is over; then every call left on it ends UNAVAILABLE.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence

import anyio
import attrs

from modelreg.client.background import Background, BackgroundTask
from modelreg.client.transport.core import Core, Stream
from modelreg.client.transport.signals import Signal
from modelreg.client.transport.status import CallFailed
from modelreg.client.transport.wire import Address, Wire, connect
from modelreg.grpc.status import Code
from modelreg.transport.faults import ConnectionFault

RECEIVE_BYTES = 256 * 1024
"""The receive buffer: stays in a core's cache."""

GOODBYE_SECONDS = 1.0

# The alerts that are about certificates (RFC 8446, section 6.2), as OpenSSL names or writes them.
_ALERT = re.compile(r"alert[ _](.*certificate.*|unknown[ _]ca|access[ _]denied|decrypt[ _]error)", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Timing:
    """How long a client waits on a connection, in seconds."""

    connect: float = 10.0
    """For address lookup, TCP, TLS and the server's SETTINGS together."""

    keepalive: float = 20.0
    """A server that has sent nothing for so long while calls are running gets a PING."""

    keepalive_timeout: float = 15.0
    """A server that sends nothing for so long after it is taken for dead."""

    watch_keepalive: float = 20.0
    """A registry that has nothing new to tell to a watch is to send an empty message as often, so that proxies
    don't take it for idle; 0 for never. See `modelreg.client.updates`.
    """


class Connection:
    """An open connection. Made by `open_connection`."""

    def __init__(self, wire: Wire, address: Address, timing: Timing) -> None:
        self._wire = wire
        self._timing = timing
        self._core = Core()
        self._outgoing = Signal()
        self._planned = Signal()
        self._busy = Signal()
        self._news = Signal()
        self._heard = anyio.current_time()
        self._scope = anyio.CancelScope()
        self._sending = False
        self._address = address
        self._name = str(address)
        self._reason = f"the connection to {self._name} was closed"
        self._error: OSError | CallFailed | None = None
        self._task: BackgroundTask | None = None

    @property
    def usable(self) -> bool:
        """Whether another call can be made on it."""
        return self._core.going_away is None and not self._core.full

    @property
    def closing(self) -> bool:
        """Whether no further call will ever be made on it."""
        return self._core.going_away is not None

    @property
    def too_many_pings(self) -> bool:
        """Whether the server has complained about keepalive."""
        return self._core.too_many_pings

    def open(self, fields: Sequence[tuple[bytes, bytes]]) -> Stream:
        """Begin a call."""
        stream = self._core.open(fields)
        self._busy.set()
        self._outgoing.set()
        return stream

    def send(self, stream: Stream, pieces: Sequence[bytes | memoryview], *, end: bool = False) -> None:
        """Queue pieces of a request."""
        self._core.send(stream, pieces, end=end)
        self._outgoing.set()

    def consumed(self, stream: Stream, size: int) -> None:
        """Bytes of a response have been dealt with."""
        self._core.consumed(stream, size)
        if self._core.wants_to_send:
            self._outgoing.set()

    def cancel(self, stream: Stream) -> None:
        """Give up a call, if it hasn't ended."""
        self._core.cancel(stream)
        self._outgoing.set()

    def close(self) -> None:
        """End it; calls that still run end UNAVAILABLE."""
        self._scope.cancel()

    async def ready(self) -> None:
        """Until the server has sent its SETTINGS: only then is it known that it's one, and lets this client in.

        Raises:
            OSError: the connection was lost before. A kind of it is `ssl.SSLError`: in TLS 1.3 it's now that a server says that
                it doesn't take the client's certificate.
            CallFailed: the server ended it, or doesn't speak HTTP/2. An answer in HTTP/1 gives its status.
        """
        while not self.usable or not self._core.greeted:
            if self._error is not None:
                raise self._error
            if self._core.going_away is not None:
                raise _unavailable(self._core.going_away)
            await self._news.wait()

    async def run(self) -> None:
        """The connection's life, in the background."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    for task in (self._read, self._write, self._keep_alive):
                        tasks.start_soon(self._guard, task)
        finally:
            self._core.lost(self._reason)
            self._news.set()
            if not self._sending:  # else it would become part of what was being sent
                with anyio.CancelScope(shield=True), anyio.move_on_after(GOODBYE_SECONDS):
                    try:
                        await self._wire.send([*self._core.plan(), self._core.close()])
                    except OSError:
                        pass  # it's the usual reason for being here
            self._wire.close()

    async def _guard(self, task: object) -> None:
        """Run one of the tasks; its end is the connection's."""
        try:
            await task()  # type: ignore[operator]
        except ConnectionFault as fault:
            self._reason = f"the server at {self._name} doesn't keep to HTTP/2: {fault}"
            if (http1 := self._core.http1) is not None:
                self._reason = f"{self._name} answers with {http1.message}{_without_tls(self._address)}"
                self._error = CallFailed(http1.code, self._reason, delivered=False, connected=False, cut=http1.cut)
            elif not self._core.http2:
                self._reason = f"{self._name} doesn't speak HTTP/2, which gRPC needs: is the endpoint right?{_without_tls(self._address)}"
        except OSError as error:
            self._reason = f"the connection to {self._name} was lost: {error.strerror or error}"
            self._error = error
        self._core.lost(self._reason)
        self._scope.cancel()

    async def _read(self) -> None:
        memory = memoryview(bytearray(RECEIVE_BYTES))
        core = self._core
        turns = 0
        while True:
            size = await self._wire.receive_into(memory)
            if size == 0:
                self._reason = core.going_away or f"the server at {self._name} closed the connection"
                return
            await self._take_in(memory[:size])
            if core.going_away is not None and core.streams == 0:
                return
            turns += 1
            if turns % 16 == 0:  # a server that is faster than this must not keep other tasks out
                await anyio.lowlevel.checkpoint()

    async def _take_in(self, data: memoryview) -> None:
        core = self._core
        while True:
            data = data[core.receive(data) :]
            self._heard = anyio.current_time()
            self._news.set()
            if core.wants_to_send:
                self._outgoing.set()
            while core.congested:
                await self._planned.wait()
            if not data and not core.unfinished:
                return
            await anyio.lowlevel.checkpoint()

    async def _write(self) -> None:
        while True:
            pieces = self._core.plan()
            if pieces:
                self._planned.set()
                self._sending = True
                try:
                    await self._wire.send(pieces)
                except OSError:
                    await anyio.sleep(GOODBYE_SECONDS)  # `_read` may find why: what the server said before it closed
                    raise
                self._sending = False
                del pieces
            else:
                await self._outgoing.wait()

    async def _keep_alive(self) -> None:
        timing = self._timing
        while True:
            if self._core.streams == 0:
                await self._busy.wait()
                continue
            silent = anyio.current_time() - self._heard
            if silent < timing.keepalive:
                await anyio.sleep(timing.keepalive - silent)
                continue
            self._news = Signal()
            self._core.ping()
            self._outgoing.set()
            with anyio.move_on_after(timing.keepalive_timeout) as waiting:
                await self._news.wait()
            if waiting.cancelled_caught:
                self._reason = (
                    f"the server at {self._name} doesn't answer: nothing came for {timing.keepalive_timeout:g} s"
                )
                return


async def open_connection(address: Address, timing: Timing, background: Background) -> Connection:
    """Connect, and wait until the server has answered. Raises `CallFailed`, mostly UNAVAILABLE, as no call could have been sent."""
    try:
        with anyio.fail_after(timing.connect):
            connection = Connection(await connect(address), address, timing)
            connection._task = background.spawn(connection.run, f"modelreg connection to {address}")  # noqa: SLF001
            try:
                await connection.ready()
            except BaseException:
                connection.close()
                raise
    except TimeoutError:
        raise _unavailable(f"no connection to {address} within {timing.connect:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise _unauthenticated(f"the certificate of {address} isn't trusted: {error.verify_message}") from error
    except ssl.SSLError as error:
        text = error.reason or str(error)
        alert = _ALERT.search(text)
        if alert is None:
            if "NO_APPLICATION_PROTOCOL" in text:
                text = "the server doesn't take HTTP/2, which gRPC needs"
            reason = "it seems to speak none" if text == "WRONG_VERSION_NUMBER" else text
            raise _unavailable(f"no TLS with {address}: {reason}") from error
        said = alert[1].replace("_", " ").lower()
        if "required" in said:
            message = f"{address} wants a certificate of the client: give it a certificate_chain and a private_key"
        else:
            message = f"the certificate_chain isn't accepted by {address}: {said}"
        raise _unauthenticated(message) from error
    except OSError as error:
        raise _unavailable(f"no connection to {address}: {error.strerror or error}") from error
    return connection


def _without_tls(address: Address) -> str:
    """Advice for an endpoint that doesn't speak HTTP/2."""
    return " Many servers and proxies take HTTP/2 only with TLS." if address.tls is None else ""


def _unavailable(message: str) -> CallFailed:
    return CallFailed(Code.UNAVAILABLE, message, delivered=False, connected=False)


def _unauthenticated(message: str) -> CallFailed:
    return CallFailed(Code.UNAUTHENTICATED, message, delivered=False, connected=False)
