"""The socket of a connection: a plain one, or with TLS on it.

Both are non-blocking sockets of the operating system, waited for through anyio, so that the bytes take the same way on asyncio
and on Trio: `recv_into` one buffer, `sendmsg` a list of pieces, neither copied on the way. (anyio's own streams take and
give `bytes`, which costs a copy of every byte each way.) Lost connections are `OSError`.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Sequence
from typing import Protocol

import anyio
import attrs

from modelreg.client.workers import in_thread

MAX_PIECES = 512
"""Pieces given to one sendmsg; Linux takes up to 1,024 (IOV_MAX)."""

NEXT_ADDRESS_DELAY = 0.25
"""Seconds before the next of a host's addresses is tried beside the one before (RFC 8305, section 5)."""

_TLS_CHUNK = 64 * 1024

Piece = bytes | memoryview


@attrs.frozen
class Address:
    """Where a server is, and whether TLS is spoken there."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Wire(Protocol):
    """A connected socket. One task may receive while another sends."""

    async def receive_into(self, memory: memoryview) -> int:
        """Receive at least one byte; 0 at the end."""

    async def send(self, pieces: Sequence[Piece]) -> None:
        """Send all of it."""

    def close(self) -> None:
        """Close at once."""


class SocketWire:
    """TCP."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def receive_into(self, memory: memoryview) -> int:
        while True:
            try:
                return self._socket.recv_into(memory)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)

    async def send(self, pieces: Sequence[Piece]) -> None:
        sock = self._socket
        left = list(pieces)
        start = 0
        while start < len(left):
            try:
                sent = sock.sendmsg(left[start : start + MAX_PIECES])
            except BlockingIOError:
                await anyio.wait_writable(sock)
                continue
            while start < len(left) and sent >= len(left[start]):
                sent -= len(left[start])
                left[start] = b""  # a caller's memory isn't held on to longer than needed
                start += 1
            if sent:
                left[start] = memoryview(left[start])[sent:]

    def close(self) -> None:
        self._socket.close()


class TlsWire:
    """TLS, its records made and read in memory."""

    def __init__(self, wire: SocketWire, context: ssl.SSLContext, host: str) -> None:
        self._wire = wire
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._received = memoryview(bytearray(4 * _TLS_CHUNK))
        self._sending = anyio.Lock()

    async def handshake(self) -> None:
        """Raises `ssl.SSLError` where the two don't come to terms, among that a certificate that isn't trusted."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fetch():
                    raise ConnectionResetError("closed during the TLS handshake") from None
            except ssl.SSLError:
                await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return

    async def receive_into(self, memory: memoryview) -> int:
        while True:
            try:
                return self._tls.read(len(memory), memory)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                if self._outgoing.pending:
                    await self._flush()
                if not await self._fetch():
                    return 0
            except ssl.SSLZeroReturnError:
                return 0

    async def send(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), _TLS_CHUNK):
                self._tls.write(view[start : start + _TLS_CHUNK])
                if self._outgoing.pending >= 4 * _TLS_CHUNK:
                    await self._flush()
        await self._flush()

    def close(self) -> None:
        self._wire.close()

    async def _flush(self) -> None:
        async with self._sending:
            records = self._outgoing.read()
            if records:
                await self._wire.send([records])

    async def _fetch(self) -> bool:
        size = await self._wire.receive_into(self._received)
        if size:
            self._incoming.write(self._received[:size])
        else:
            self._incoming.write_eof()
        return size > 0


async def connect(address: Address) -> Wire:
    """A connection to the first of a host's addresses that answers. Raises `OSError`, of which `ssl.SSLError` is a kind."""
    wire = SocketWire(await _connect_any(address.host, address.port))
    if address.tls is None:
        return wire
    try:
        secure = TlsWire(wire, address.tls, address.host)
        await secure.handshake()
        if secure._tls.selected_alpn_protocol() not in ("h2", None):  # noqa: SLF001
            raise ssl.SSLError("the server doesn't speak HTTP/2 on TLS")
    except BaseException:
        wire.close()
        raise
    return secure


async def _connect_any(host: str, port: int) -> socket.socket:
    """Happy Eyeballs (RFC 8305) in short: addresses in the resolver's order, each a little later than the one before."""
    found = await _look_up(host, port)
    errors: list[OSError] = []
    winner: socket.socket | None = None

    async def attempt(family: int, address: tuple[object, ...], failed: anyio.Event) -> None:
        nonlocal winner
        try:
            sock = await _connect_one(family, address)
        except OSError as error:
            errors.append(error)
            failed.set()
            return
        if winner is None:
            winner = sock
            tasks.cancel_scope.cancel()
        else:
            sock.close()

    try:
        async with anyio.create_task_group() as tasks:
            for family, _, _, _, target in found:
                failed = anyio.Event()
                tasks.start_soon(attempt, family, target, failed)
                with anyio.move_on_after(NEXT_ADDRESS_DELAY):
                    await failed.wait()
    except BaseException:
        if winner is not None:  # cancelled in the very moment in which it was found
            winner.close()
        raise
    if winner is not None:
        return winner
    if errors:
        raise errors[0]
    raise OSError(f"{host} has no address")


async def _look_up(host: str, port: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    """A host's addresses, as `socket.getaddrinfo` gives them. Raises `OSError`.

    asyncio's own look-up needs its default executor, which takes no work once the main thread has ended.
    """
    try:
        name = host.encode("ascii" if host.isascii() else "idna")
    except UnicodeError as error:
        raise OSError(f"{host} can't be a host's name: {error}") from None

    def look_up(flags: int = 0) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        return [*socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)]

    try:  # a number needs no thread
        return look_up(socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await in_thread(look_up, abandon=True)


async def _connect_one(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number)) from None
    except BaseException:
        sock.close()
        raise
    return sock
