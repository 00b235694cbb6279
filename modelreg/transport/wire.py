"""The socket of a connection: bytes in, plans out.

A plain TCP or Unix socket (`trio.SocketStream`) is taken over from trio's stream: `recv_into` a pooled buffer, `sendmsg`
for a list of pieces, each tried at once and waited for only when the socket says so. Any other stream (TLS, memory) is used
through trio's interface, and files are read for it.

Parts of files go out by the same `sendmsg`, between their frame headers, from a mapping that lasts for one write: one
system call and one copy, both in the kernel. With frames of 16 KiB a download takes a fifth less of the server's CPU time
than when the parts are read into a buffer first. `sendfile` saves the copy but needs two calls a frame; with frames of 1 MiB
it costs the server as much, and a client on the same machine a quarter more, as it gets the bytes from cold memory.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections.abc import Callable
from typing import Protocol

import trio
import trio.lowlevel

from .limits import PROGRESS
from .outbound import FileSpan, Plan, PlanItem
from .streams import FilePiece

NOT_SENT = 1024 * 1024
"""Bytes that may wait in the kernel without having been sent (TCP_NOTSENT_LOWAT): a small reply is queued behind them.

A quarter of it costs a download a seventh more CPU time in wake-ups; more than it gains little."""

PREFETCH = 4 << 20
"""Bytes of a cold file that are read before any of them is sent."""

RECEIVE_SIZE = 64 * 1024
"""Bytes asked of a stream that is no plain socket."""

SEND_SIZE = 64 * 1024
"""Bytes given to such a stream at once. It doesn't say how many of them the peer has taken until all are."""

MAP_FROM = 16 * 1024
"""Bytes from which on a mapping costs less than a copy."""

MAX_PIECES = 512
"""Pieces given to one sendmsg; Linux takes up to 1,024 (IOV_MAX)."""

_UNUSED = memoryview(mmap.mmap(-1, 1 << 20))
"""Where threads read to only to have it in the page cache, all of them at once; nobody looks at it."""

_MSG_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class Wire(Protocol):
    """One connection's socket. A lost connection is an `OSError` or one of trio's errors (`LOST`)."""

    peer: str
    bytes_in: int
    bytes_out: int
    blocked_since: float | None
    """Since when the peer has kept a write waiting, and taken less than `PROGRESS` bytes."""

    def receive_into(self, *memories: memoryview) -> int | None:
        """Take what has arrived, filling one memory after the other: a number of bytes, 0 at the end, None when nothing has."""

    async def wait_readable(self) -> None:
        """Wait until something has arrived."""

    async def send(self, plan: Plan) -> None:
        """Write all of a plan. Sets `FilePiece.truncated` where a file turned out to be too short."""

    async def finish(self) -> None:
        """Say that nothing more will be sent."""

    async def aclose(self) -> None:
        """Close without waiting for the peer."""


LOST = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError)
"""What comes of using a connection that is no more."""


class SocketWire:
    """A socket of the operating system."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.peer = _peer(stream.socket)
        self.bytes_in = 0
        self.bytes_out = 0
        self.blocked_since: float | None = None
        self._out_when_blocked = 0
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)

    def receive_into(self, *memories: memoryview) -> int | None:
        try:
            if len(memories) == 1:
                count = self._socket.recv_into(memories[0])
            else:
                count = self._socket.recvmsg_into(memories)[0]
        except BlockingIOError:
            return None
        self.bytes_in += count
        return count

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    async def send(self, plan: Plan) -> None:
        before = self.bytes_out
        try:
            await self._send(_pieces(plan.items, _mapped))
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            # A file became shorter while a part of it was mapped.
            sent = self.bytes_out - before
            await self._send([memoryview(b"".join(_pieces(plan.items, _read)))[sent:]])

    async def _send(self, pieces: list[bytes | memoryview]) -> None:
        sock = self._socket
        start = 0
        count = len(pieces)
        while start < count:
            try:
                if count - start == 1:
                    sent = sock.send(pieces[start], _MSG_NOSIGNAL)
                else:
                    some = pieces[start : start + MAX_PIECES] if start or count > MAX_PIECES else pieces
                    sent = sock.sendmsg(some, (), _MSG_NOSIGNAL)
            except BlockingIOError:
                await self._wait_writable()
                continue
            self.bytes_out += sent
            if self.blocked_since is not None and self.bytes_out - self._out_when_blocked >= PROGRESS:
                self.blocked_since = None
            while start < count and sent >= len(pieces[start]):
                sent -= len(pieces[start])
                start += 1
            if sent:
                pieces[start] = memoryview(pieces[start])[sent:]
        self.blocked_since = None

    async def _wait_writable(self) -> None:
        if self.blocked_since is None:
            self.blocked_since = trio.current_time()
            self._out_when_blocked = self.bytes_out
        await trio.lowlevel.wait_writable(self._socket)

    async def finish(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    async def aclose(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


class StreamWire:
    """Any other stream of trio's."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.peer = _peer_of_stream(stream)
        self.bytes_in = 0
        self.bytes_out = 0
        self.blocked_since: float | None = None
        self._stream = stream
        self._received: bytes | bytearray | None = None

    def receive_into(self, *memories: memoryview) -> int | None:
        data = self._received
        if data is None:
            return None
        taken = 0
        for memory in memories:
            count = min(len(data) - taken, len(memory))
            memory[:count] = data[taken : taken + count]
            taken += count
        if taken:  # the end stays the end
            self._received = data[taken:] or None
        return taken

    async def wait_readable(self) -> None:
        if not self._received:
            self._received = await self._stream.receive_some(RECEIVE_SIZE)
            self.bytes_in += len(self._received)

    async def send(self, plan: Plan) -> None:
        data = memoryview(b"".join(_pieces(plan.items, _read)))
        for start in range(0, len(data), SEND_SIZE):
            piece = data[start : start + SEND_SIZE]
            self.blocked_since = trio.current_time()
            await self._stream.send_all(piece)
            self.bytes_out += len(piece)
        self.blocked_since = None

    async def finish(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


def _pieces(items: list[PlanItem], content: Callable[[FilePiece, int, int], memoryview]) -> list[bytes | memoryview]:
    """What a plan consists of, where `content` gives a part of a file."""
    pieces: list[bytes | memoryview] = []
    for item in items:
        if isinstance(item, FileSpan):
            size = item.size
            length = size * item.count
            memory = content(item.piece, item.offset, length)
            for place in range(0, length, size):
                pieces.append(item.header)
                pieces.append(memory[place : place + size])
        else:
            pieces.append(item)
    return pieces


def _mapped(piece: FilePiece, offset: int, length: int) -> memoryview:
    """A part of a file that nobody but the kernel may look at.

    What the file loses after this is EFAULT for the kernel, but would kill the program (SIGBUS).
    """
    if length < MAP_FROM:
        return _read(piece, offset, length)
    skip = offset % mmap.ALLOCATIONGRANULARITY
    try:
        mapping = mmap.mmap(piece.fd, skip + length, access=mmap.ACCESS_READ, offset=offset - skip)
    except (OSError, ValueError):  # no descriptor or no memory for it; or the file is too short
        return _read(piece, offset, length)
    return memoryview(mapping)[skip:]


def _read(piece: FilePiece, offset: int, length: int) -> memoryview:
    """A part of a file in memory; zeros for what the file lacks, or can't be read, as the frames around it have been promised."""
    memory = memoryview(bytearray(length))
    place = 0
    while place < length:
        try:
            count = 0 if piece.truncated else os.preadv(piece.fd, [memory[place:]], offset + place)
        except OSError:  # of the disk's; the call ends for it, as for what is missing
            count = 0
        if count == 0:
            piece.truncated = True
            memory[place:] = bytes(length - place)
            break
        place += count
    return memory


def wire_for(stream: trio.abc.Stream) -> Wire:
    """The quickest way to use this stream."""
    return SocketWire(stream) if type(stream) is trio.SocketStream else StreamWire(stream)


async def prefetch(piece: FilePiece, limiter: trio.CapacityLimiter) -> None:
    """Have the next part of a file read into memory by a worker thread.

    The kernel is asked to go on reading behind that part, so that a file is waited for once or twice, not for each turn.
    """
    length = min(piece.left, PREFETCH)
    end = piece.offset + length
    try:
        fd = os.dup(piece.fd)  # the call may end, and its file be closed, while the thread reads
    except OSError:
        length = 0  # no descriptor to be had: the loop will wait for the disk
    else:
        try:
            await trio.to_thread.run_sync(_read_ahead, fd, piece.offset, length, limiter=limiter)
        except OSError:
            pass  # it is met again where the bytes are sent
        finally:
            os.close(fd)
    piece.checked_until = end


def _read_ahead(fd: int, offset: int, length: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, 4 * length, os.POSIX_FADV_WILLNEED)
    end = offset + length
    while offset < end:
        count = os.preadv(fd, [_UNUSED[: end - offset]], offset)
        if count <= 0:
            return
        offset += count


def _peer(sock: trio.socket.SocketType) -> str:
    """The other side's address as text. Raises `OSError` when there is no other side any more."""
    if sock.family == socket.AF_INET:
        host, port = sock.getpeername()
        return f"{host}:{port}"
    if sock.family == socket.AF_INET6:
        host, port, *_ = sock.getpeername()
        return f"[{host}]:{port}"
    return "unix" if sock.family == getattr(socket, "AF_UNIX", None) else ""


def _peer_of_stream(stream: trio.abc.Stream) -> str:
    transport = getattr(stream, "transport_stream", None)
    if isinstance(transport, trio.SocketStream):
        try:
            return _peer(transport.socket)
        except OSError:
            return ""
    return ""
