"""Where calls are made: finds the connection for each, and makes one where there is none.

Connections come and go: the server restarts, moves, or says GOAWAY. A call takes one that is usable; the first that finds
none connects, the others wait for it. The address is asked for each time, as discovery may give another one. Trying again
after a failure is the caller's decision, see `modelreg.client.retry`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

import anyio
import attrs

from modelreg import __version__
from modelreg.client.background import Background
from modelreg.client.transport.calls import Call, Metadata, grpc_timeout
from modelreg.client.transport.connection import Connection, Timing, open_connection
from modelreg.client.transport.status import CallFailed
from modelreg.client.transport.wire import Address
from modelreg.grpc.status import Code

_USER_AGENT = f"modelreg-client/{__version__}".encode()

MAX_VALUE_LENGTH = 4096
"""Of metadata: what is longer may be refused by servers and by what is between, and not always with an answer."""


class Channel:
    """Calls to one server.

    Arguments:
        resolve: gives the server's address. May raise `CallFailed`.
        metadata: sent with each call.
        timing: of its connections.
        background: where their tasks run.

    Attributes:
        timing: of its connections.
        reached: whether there has been a connection on which the server answered.
    """

    def __init__(
        self,
        resolve: Callable[[], Awaitable[Address]],
        *,
        metadata: Metadata = (),
        timing: Timing,
        background: Background,
    ) -> None:
        self._resolve = resolve
        self._metadata = encode(metadata)
        self.timing = timing
        self._background = background
        self._connections: list[tuple[Connection, Address]] = []
        self._connecting = anyio.Lock()
        self._closed = False
        self.reached = False

    async def call(
        self,
        path: str,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        sink: Callable[[memoryview], None] | None = None,
    ) -> Call:
        """Begin a call; to be entered at once. *timeout*, in seconds, is what the server is told: keeping it is up to the caller.

        Raises:
            CallFailed: there is no connection to be had.
            RuntimeError: the channel belongs to another event loop, or to another process.
        """
        self._background.check()
        connection, address = await self._connection()
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http" if address.tls is None else b"https"),
            (b":path", path.encode()),
            (b":authority", str(address).encode("idna" if not str(address).isascii() else "ascii")),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", _USER_AGENT),
            *([(b"grpc-timeout", grpc_timeout(timeout))] if timeout is not None else []),
            *self._metadata,
            *encode(metadata),
        ]
        return Call(connection, fields, sink)

    async def unary(self, path: str, request: bytes, *, timeout: float | None = None) -> bytes:
        """One message there, one back. Raises `CallFailed`."""
        with deadline(timeout):
            with await self.call(path, timeout=timeout) as call:
                call.send_last(request)
                return await call.only()

    def close(self) -> None:
        """Close all connections; calls that run end UNAVAILABLE, and new ones are refused."""
        self._closed = True
        for connection, _ in self._connections:
            connection.close()

    async def _connection(self) -> tuple[Connection, Address]:
        found = self._usable()
        if found is None:
            async with self._connecting:
                found = self._usable()
                if found is None:
                    try:
                        address = await self._resolve()
                    except CallFailed as failure:
                        failure.delivered = False  # of this call, whatever became of the question
                        raise
                    if self._closed:
                        raise CallFailed(Code.CANCELLED, "the client has been closed", delivered=False)
                    found = (await open_connection(address, self.timing, self._background), address)
                    self._connections.append(found)
                    self.reached = True
        return found

    def _usable(self) -> tuple[Connection, Address] | None:
        if self._closed:
            raise CallFailed(Code.CANCELLED, "the client has been closed", delivered=False)
        for connection, _ in self._connections:
            if connection.too_many_pings:  # a server that wants fewer gets half as many from now on
                self.timing = attrs.evolve(self.timing, keepalive=self.timing.keepalive * 2)
        self._connections = [found for found in self._connections if not found[0].closing]
        return next((found for found in self._connections if found[0].usable), None)


def encode(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """Metadata as header fields. Raises `ValueError` for what can't be one (PROTOCOL-HTTP2.md, "Custom-Metadata")."""
    fields = []
    for name, value in metadata:
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"the value of {name} may hold printable ASCII characters only")
        if len(value) > MAX_VALUE_LENGTH:
            raise ValueError(
                f"the value of {name} has {len(value)} characters, and no more than {MAX_VALUE_LENGTH} are sent"
            )
        fields.append((name.encode("ascii"), value.encode("ascii")))
    return fields


class deadline:  # noqa: N801  # used as a statement
    """End what is inside after so many seconds (None: never), with the status that says so."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._scope = anyio.CancelScope()

    def __enter__(self) -> None:
        if self._seconds is not None:
            self._scope.deadline = anyio.current_time() + self._seconds
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise CallFailed(Code.DEADLINE_EXCEEDED, f"not done within {self._seconds:g} s") from None
