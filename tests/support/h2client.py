"""A client that speaks HTTP/2 frame by frame, and lets a test send any of them at any time.

It does nothing by itself but acknowledge: SETTINGS, PING, and (unless told not to) received DATA.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import hpack
import trio

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode

Fields = Sequence[tuple[bytes, bytes]]

SETTINGS_HEADER_TABLE_SIZE = 1
SETTINGS_INITIAL_WINDOW_SIZE = 4
SETTINGS_MAX_FRAME_SIZE = 5


def settings(values: dict[int, int]) -> bytes:
    payload = b"".join(struct.pack(">HL", *item) for item in values.items())
    return frames.frame_header(len(payload), frames.SETTINGS, 0, 0) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A field as HPACK literal without indexing, the lengths as plain seven-bit integers or longer ones."""
    return b"\x00" + length(len(name)) + name + length(len(value)) + value


def length(size: int) -> bytes:
    if size < 127:
        return bytes([size])
    size -= 127
    encoded = bytearray([127])
    while size >= 128:
        encoded.append(size & 127 | 128)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def block(fields: Fields) -> bytes:
    return b"".join(literal(name, value) for name, value in fields)


def request_fields(
    path: str, extra: Fields = (), without: Sequence[bytes] = (), **replace: bytes
) -> list[tuple[bytes, bytes]]:
    """The fields of a call; `replace` by name without colon, underscores for hyphens."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"test"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    given = {name.replace("_", "-").encode(): value for name, value in replace.items()}
    fields = [(name, given.get(name.lstrip(b":"), value)) for name, value in fields if name not in without]
    return [*fields, *extra]


def headers(stream_id: int, encoded: bytes, *, end_stream: bool = False, end_headers: bool = True) -> bytes:
    flags = (frames.END_STREAM if end_stream else 0) | (frames.END_HEADERS if end_headers else 0)
    return frames.frame_header(len(encoded), frames.HEADERS, flags, stream_id) + encoded


def data(stream_id: int, payload: bytes = b"", *, end_stream: bool = False, padding: int | None = None) -> bytes:
    flags = frames.END_STREAM if end_stream else 0
    if padding is not None:
        flags |= frames.PADDED
        payload = bytes([padding]) + payload + bytes(padding)
    return frames.frame_header(len(payload), frames.DATA, flags, stream_id) + payload


def message(body: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(body)) + body


@attrs.frozen
class Frame:
    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def ends_stream(self) -> bool:
        return self.kind in (frames.DATA, frames.HEADERS) and bool(self.flags & frames.END_STREAM)

    @property
    def code(self) -> ErrorCode:
        """Of RST_STREAM and GOAWAY."""
        return ErrorCode(
            int.from_bytes(self.payload[:4] if self.kind == frames.RST_STREAM else self.payload[4:8], "big")
        )


@attrs.define
class Reply:
    """What has come on a stream."""

    fields: list[tuple[str, str]] = attrs.field(factory=list)
    trailers: list[tuple[str, str]] | None = None
    body: bytearray = attrs.field(factory=bytearray)
    ended: bool = False
    reset: ErrorCode | None = None
    largest_frame: int = 0

    @property
    def status(self) -> int | None:
        """grpc-status, None while it has not come."""
        found = dict(self.fields if self.trailers is None else self.trailers).get("grpc-status")
        return None if found is None else int(found)

    @property
    def text(self) -> str | None:
        return dict(self.fields if self.trailers is None else self.trailers).get("grpc-message")

    @property
    def messages(self) -> list[bytes]:
        found = []
        view = bytes(self.body)
        while view:
            size = int.from_bytes(view[1:5], "big")
            found.append(view[5 : 5 + size])
            view = view[5 + size :]
        return found


class H2Client:
    """One connection. Frames that come are kept by stream in `replies`; GOAWAY in `goaways`."""

    def __init__(self, stream: trio.abc.Stream, *, credit: bool = True) -> None:
        self.stream = stream
        self.credit = credit
        self.replies: dict[int, Reply] = {}
        self.goaways: list[Frame] = []
        self.windows: dict[int, int] = {0: 65535}
        """What the server has allowed, by WINDOW_UPDATE; the initial size of a stream is in `server_settings`."""
        self.server_settings: dict[int, int] = {}
        self.pongs: list[bytes] = []
        self.closed = False
        self.answer_pings = True
        self.next_id = 1
        self._decoder = hpack.Decoder()
        self._buffer = bytearray()
        self._send_lock = trio.Lock()

    async def start(self, values: dict[int, int] | None = None) -> None:
        await self.send(frames.PREFACE + settings(values or {}))
        await self.until(lambda: bool(self.server_settings))

    async def send(self, *parts: bytes) -> None:
        async with self._send_lock:
            await self.stream.send_all(b"".join(parts))

    def new_id(self) -> int:
        self.next_id += 2
        return self.next_id - 2

    async def open(self, path: str, extra: Fields = (), *, end_stream: bool = False) -> int:
        stream_id = self.new_id()
        await self.send(headers(stream_id, block(request_fields(path, extra)), end_stream=end_stream))
        return stream_id

    async def call(self, path: str, body: bytes, extra: Fields = ()) -> Reply:
        """A call with one request message, and everything that comes back."""
        stream_id = self.new_id()
        await self.send(
            headers(stream_id, block(request_fields(path, extra))), data(stream_id, message(body), end_stream=True)
        )
        return await self.finished(stream_id)

    def reply(self, stream_id: int) -> Reply:
        return self.replies.setdefault(stream_id, Reply())

    async def finished(self, stream_id: int, seconds: float = 30) -> Reply:
        reply = self.reply(stream_id)
        await self.until(lambda: reply.ended or reply.reset is not None, seconds)
        return reply

    async def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Receive until the condition holds; fails when the connection ends or the time is over before that."""
        with trio.fail_after(seconds):
            while not condition():
                assert await self.receive(), "the server has closed the connection"

    async def until_closed(self, seconds: float = 30) -> None:
        with trio.fail_after(seconds):
            while await self.receive():
                pass

    async def receive(self) -> bool:
        """Take in some bytes; False at the end of the connection."""
        try:
            received = await self.stream.receive_some(1 << 20)
        except (OSError, trio.BrokenResourceError):
            received = b""
        if not received:
            self.closed = True
            return False
        self._buffer += received
        while len(self._buffer) >= frames.HEADER_SIZE:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < frames.HEADER_SIZE + size:
                break
            kind, flags = self._buffer[3], self._buffer[4]
            stream_id = int.from_bytes(self._buffer[5:9], "big")
            payload = bytes(self._buffer[9 : 9 + size])
            del self._buffer[: 9 + size]
            await self._handle(Frame(kind, flags, stream_id, payload))
        return True

    async def _handle(self, frame: Frame) -> None:
        reply = self.reply(frame.stream_id)
        if frame.kind == frames.DATA:
            reply.body += frame.payload
            reply.largest_frame = max(reply.largest_frame, len(frame.payload))
            if self.credit and frame.payload:
                size = len(frame.payload)
                await self.try_send(frames.window_update(0, size), frames.window_update(frame.stream_id, size))
        elif frame.kind == frames.HEADERS:
            assert frame.flags & frames.END_HEADERS
            fields = [(str(name), str(value)) for name, value in self._decoder.decode(frame.payload)]
            if reply.fields:
                reply.trailers = fields
            else:
                reply.fields = fields
        elif frame.kind == frames.RST_STREAM:
            reply.reset = frame.code
        elif frame.kind == frames.SETTINGS:
            if not frame.flags & frames.ACK:
                self.server_settings = {int(key): int(value) for key, value in struct.iter_unpack(">HL", frame.payload)}
                await self.try_send(frames.frame_header(0, frames.SETTINGS, frames.ACK, 0))
        elif frame.kind == frames.PING:
            if frame.flags & frames.ACK:
                self.pongs.append(frame.payload)
            elif self.answer_pings:
                await self.try_send(frames.frame_header(8, frames.PING, frames.ACK, 0) + frame.payload)
        elif frame.kind == frames.GOAWAY:
            self.goaways.append(frame)
        elif frame.kind == frames.WINDOW_UPDATE:
            increment = int.from_bytes(frame.payload, "big")
            self.windows[frame.stream_id] = self.windows.get(frame.stream_id, 0) + increment
        if frame.ends_stream:
            reply.ended = True

    async def try_send(self, *parts: bytes) -> None:
        """Send what nobody has to read: the server may have closed already."""
        try:
            await self.send(*parts)
        except (OSError, trio.BrokenResourceError):
            pass

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


@asynccontextmanager
async def connected(port: int, values: dict[int, int] | None = None, *, credit: bool = True) -> AsyncIterator[H2Client]:
    """A client whose handshake with a server on this machine is done."""
    client = H2Client(await trio.open_tcp_stream("127.0.0.1", port), credit=credit)
    try:
        await client.start(values)
        yield client
    finally:
        await client.aclose()
