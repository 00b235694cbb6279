"""The socket of a connection: bytes in, plans out.

A plain TCP or Unix socket (`trio.SocketStream`) is taken over from trio's stream: `recv_into` a pooled buffer, `sendmsg`
for a list of pieces, `sendfile` for parts of files, each tried at once and waited for only when the socket says so. Any
other stream (TLS, memory) is used through trio's interface, and files are read for it.

With frames of 16 KiB, the usual size, `sendfile` needs two system calls for each, which costs more than it saves (0.95 ms of
CPU for a MiB, against 0.65 ms on the same machine): up to `GATHER_BELOW` the parts of a plan are read in one go and sent in
one go with the frame headers between them.
"""

from __future__ import annotations

import os
import socket
from typing import Protocol

import trio
import trio.lowlevel

from .buffers import BufferPool
from .outbound import FileSpan, Plan
from .streams import FilePiece

GATHER_BELOW = 64 * 1024
NOT_SENT = 1024 * 1024
"""Bytes that may wait in the kernel without having been sent (TCP_NOTSENT_LOWAT): a small reply is queued behind them.

A quarter of it costs a download a seventh more CPU time in wake-ups; more than it gains little."""

PREFETCH = 4 << 20
"""Bytes of a cold file that are read before any of them is sent."""

RECEIVE_SIZE = 64 * 1024
"""Bytes asked of a stream that is no plain socket."""

MAX_PIECES = 512
"""Pieces given to one sendmsg; Linux takes up to 1,024 (IOV_MAX)."""

_MSG_MORE = getattr(socket, "MSG_MORE", 0)
_MSG_NOSIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
_CAN_SENDFILE = hasattr(os, "sendfile")


class Wire(Protocol):
    """One connection's socket. A lost connection is an `OSError` or one of trio's errors (`LOST`)."""

    peer: str
    bytes_in: int
    bytes_out: int
    blocked_since: float | None
    """Since when the peer takes nothing of what is being written."""

    def receive_into(self, memory: memoryview) -> int | None:
        """Take what has arrived: a number of bytes, 0 at the end, None when nothing has."""

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

    def __init__(self, stream: trio.SocketStream, pool: BufferPool) -> None:
        self._pool = pool
        self.peer = _peer(stream.socket)
        self.bytes_in = 0
        self.bytes_out = 0
        self.blocked_since: float | None = None
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._tcp = self._socket.family in (socket.AF_INET, socket.AF_INET6)
        if self._tcp:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)

    def receive_into(self, memory: memoryview) -> int | None:
        try:
            count = self._socket.recv_into(memory)
        except BlockingIOError:
            return None
        self.bytes_in += count
        return count

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    async def send(self, plan: Plan) -> None:
        if not plan.has_files:
            await self._send_pieces(plan.items, 0)  # type: ignore[arg-type]
            return
        buffer = self._pool.take()
        try:
            await self._send_with_files(plan.items, buffer.view)
        finally:
            buffer.release()

    async def _send_with_files(self, items: list[bytes | memoryview | FileSpan], memory: memoryview) -> None:
        pieces: list[bytes | memoryview] = []
        used = 0  # of memory
        piece: FilePiece | None = None
        start = end = 0  # what of the piece's file is in memory, from `base` on
        base = 0
        for index, item in enumerate(items):
            if not isinstance(item, FileSpan):
                pieces.append(item)
            elif item.length > GATHER_BELOW and _CAN_SENDFILE:
                await self._send_pieces(pieces, _MSG_MORE)
                pieces = []
                used = 0
                await self._send_span(item)
            else:
                if item.piece is not piece or not start <= item.offset <= item.offset + item.length <= end:
                    if len(memory) - used < item.length:
                        await self._send_pieces(pieces, _MSG_MORE)
                        pieces = []
                        used = 0
                    piece = item.piece
                    start = item.offset
                    base = used
                    end = start + _run(items, index, len(memory) - used)
                    used += end - start
                    read_into(piece, start, memory[base:used])
                place = base + item.offset - start
                pieces.append(memory[place : place + item.length])
        await self._send_pieces(pieces, 0)

    async def _send_pieces(self, pieces: list[bytes | memoryview], flags: int) -> None:
        sock = self._socket
        flags |= _MSG_NOSIGNAL
        start = 0
        count = len(pieces)
        while start < count:
            try:
                if count - start == 1:
                    sent = sock.send(pieces[start], flags)
                else:
                    sent = sock.sendmsg(
                        pieces[start : start + MAX_PIECES] if start or count > MAX_PIECES else pieces, (), flags
                    )
            except BlockingIOError:
                if flags & _MSG_MORE:
                    self._push()
                await self._wait_writable()
                continue
            self.bytes_out += sent
            self.blocked_since = None
            while start < count and sent >= len(pieces[start]):
                sent -= len(pieces[start])
                start += 1
            if sent:
                pieces[start] = memoryview(pieces[start])[sent:]

    async def _send_span(self, span: FileSpan) -> None:
        out = self._socket.fileno()
        piece = span.piece
        offset = span.offset
        end = offset + span.length
        while offset < end:
            if piece.truncated:
                await self._send_pieces([bytes(min(end - offset, 65536))], 0)
                offset += min(end - offset, 65536)
                continue
            try:
                sent = os.sendfile(out, piece.fd, offset, end - offset)
            except BlockingIOError:
                self._push()
                await self._wait_writable()
                continue
            if sent == 0:
                piece.truncated = True
            else:
                self.blocked_since = None
                self.bytes_out += sent
                offset += sent

    def _push(self) -> None:
        """Have the kernel send what it holds back.

        A sendfile that stops for lack of room has said "more to come" for its last segment, and the kernel then waits
        200 ms for more that we can't give until there is room. Setting TCP_NODELAY (again) is documented to push.
        """
        if self._tcp:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def _wait_writable(self) -> None:
        if self.blocked_since is None:
            self.blocked_since = trio.current_time()
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

    def receive_into(self, memory: memoryview) -> int | None:
        data = self._received
        if data is None:
            return None
        count = min(len(data), len(memory))
        memory[:count] = data[:count]
        if count:  # the end stays the end
            self._received = data[count:] or None
        return count

    async def wait_readable(self) -> None:
        if not self._received:
            self._received = await self._stream.receive_some(RECEIVE_SIZE)
            self.bytes_in += len(self._received)

    async def send(self, plan: Plan) -> None:
        pieces = [_read_span(item) if isinstance(item, FileSpan) else item for item in plan.items]
        data = b"".join(pieces)
        self.blocked_since = trio.current_time()
        await self._stream.send_all(data)
        self.blocked_since = None
        self.bytes_out += len(data)

    async def finish(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


def _run(items: list[bytes | memoryview | FileSpan], index: int, limit: int) -> int:
    """How many bytes from the span at `index` on follow each other in the file, and can be read in one go."""
    first = items[index]
    assert isinstance(first, FileSpan)
    size = 0
    for item in items[index:]:
        if isinstance(item, FileSpan):
            if item.piece is not first.piece or item.offset != first.offset + size or item.length > GATHER_BELOW:
                break
            if size + item.length > limit:
                break
            size += item.length
    return max(size, first.length)


def read_into(piece: FilePiece, offset: int, memory: memoryview) -> None:
    """Read a part of a file; zeros for what the file lacks, as the frames around it have been promised."""
    place = 0
    while place < len(memory):
        count = 0 if piece.truncated else os.preadv(piece.fd, [memory[place:]], offset + place)
        if count == 0:
            piece.truncated = True
            memory[place:] = bytes(len(memory) - place)
            return
        place += count


def _read_span(span: FileSpan) -> bytearray:
    data = bytearray(span.length)
    read_into(span.piece, span.offset, memoryview(data))
    return data


def wire_for(stream: trio.abc.Stream, pool: BufferPool) -> Wire:
    """The quickest way to use this stream; `pool` has the memory for what is read from files."""
    return SocketWire(stream, pool) if type(stream) is trio.SocketStream else StreamWire(stream)


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
    memory = [bytearray(min(length, 1 << 20))]
    end = offset + length
    while offset < end:
        count = os.preadv(fd, memory, offset)
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
