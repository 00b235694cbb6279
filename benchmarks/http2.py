"""HTTP/2 and gRPC framing over a blocking socket, seen from either end, at as little Python a byte as possible.

The frame-level client and the null server (see `null`) are both made of this, and of nothing that they measure: no h2, no
asynchronous framework. Payload is never copied: it goes out by sendmsg from where it lies, and what arrives is counted where
recv_into put it. Numbers in brackets are sections of RFC 9113.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence

from hpack import Decoder, Encoder

from benchmarks import KIB, MIB

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 3, 4, 5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SMALLEST_FRAME_LIMIT = 16 * KIB  # what every endpoint accepts (4.2)
FIRST_WINDOW = 65_535  # of a connection, and of streams until SETTINGS say otherwise (6.9.2)
READ_BYTES = 1 * MIB  # fits in a core's second-level cache, more or less; 4 MiB was no faster
BATCH_BYTES, BATCH_BUFFERS = 1 * MIB, 1000  # one sendmsg; the kernel takes 1,024 buffers (IOV_MAX)

_FRAME = struct.Struct(">BHBBI")  # length (24 bits), kind, flags, stream
_SETTING = struct.Struct(">HI")
_U32 = struct.Struct(">I")
_MESSAGE = struct.Struct(">BI")  # compressed, length: gRPC over HTTP/2, "Length-Prefixed-Message"

NOTHING = memoryview(b"")
Headers = Sequence[tuple[str, str]]


class PeerError(Exception):
    """The other end broke the protocol, went away, or was silent for too long."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def message_prefix(length: int) -> bytes:
    return _MESSAGE.pack(0, length)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def bytes_field(number: int, length: int) -> bytes:
    """What precedes *length* bytes in a protobuf message whose field *number* they are."""
    return varint(number << 3 | 2) + varint(length)


def chunk_bytes(message: int) -> int:
    """How many bytes of data a message of this length holds whose only field, number 1 to 15, is that data."""
    if message < 2:
        return 0
    size_length = 1
    while (message - 1 - size_length) >> 7 * size_length:
        size_length += 1
    return message - 1 - size_length


class Stream:
    """One call. Its first *keep* messages are kept; those after, the bulk of a download, are only counted."""

    def __init__(self, number: int, send_window: int, receive_window: int) -> None:
        self.number = number
        self.send_window = send_window
        self.receive_window = receive_window
        self.unreturned = 0  # bytes received for which no WINDOW_UPDATE was sent yet
        self.keep = 2**31
        self.headers: dict[str, str] = {}
        self.messages: list[bytes] = []
        self.data_bytes = 0  # of all chunk messages
        self.ended = False
        self.error = ""
        self._head = b""
        self._body = bytearray()
        self._length = self._left = 0

    def feed(self, data: memoryview) -> None:
        """Takes what DATA frames hold: messages, cut anywhere."""
        while data:
            if self._left:
                taken = min(self._left, len(data))
                if len(self.messages) < self.keep:
                    self._body += data[:taken]
                self._left -= taken
                if self._left:
                    return
            else:
                taken = min(5 - len(self._head), len(data))
                self._head += data[:taken]
                if len(self._head) < 5:
                    return
                self._length = self._left = _MESSAGE.unpack(self._head)[1]
                self._head = b""
            data = data[taken:]
            if not self._left:
                self.data_bytes += chunk_bytes(self._length)
                self.messages.append(bytes(self._body))
                self._body.clear()

    def check(self) -> None:
        """Raises PeerError unless the call has ended with status OK."""
        status = self.headers.get("grpc-status", "missing")
        if self.error or status != "0":
            raise PeerError(self.error or f"grpc-status {status}: {self.headers.get('grpc-message', '')}")


class Connection:
    """What both ends have in common. Nothing is read but inside `receive` (which sends call while a window is closed)."""

    def __init__(self, sock: socket.socket, *, frame_bytes: int, window: int, timeout: float, client: bool) -> None:
        # Timeouts of the kernel's: Python's own would cost a poll() for each call.
        limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.frame_bytes = frame_bytes  # what we like to send, and the most that we accept
        self.window = window
        self.streams: dict[int, Stream] = {}
        self.settled = False  # whether the peer's SETTINGS have come
        self.peer_frame_bytes = SMALLEST_FRAME_LIMIT
        self.peer_window = FIRST_WINDOW
        self.peer_streams = 2**31
        self.send_window = FIRST_WINDOW
        self.receive_window = window
        self.going_away = ""
        self._encoder, self._decoder = Encoder(), Decoder()
        self._encoded: dict[tuple[tuple[str, str], ...], bytes] = {}
        self._decoded: dict[bytes, Headers] = {}
        self._unreturned = 0
        self._out: list[bytes | memoryview] = []  # DATA frames that wait for more to be sent with
        self._out_bytes = 0
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, fragments of an unfinished header block
        self._view = memoryview(bytearray(READ_BYTES + frame_bytes))
        self._held = 0  # bytes of a frame that has not come whole, at the start of _view
        self._data_left = self._data_flags = 0
        self._data_stream: Stream | None = None
        settings = {INITIAL_WINDOW_SIZE: window, MAX_FRAME_SIZE: frame_bytes}
        body = b"".join(_SETTING.pack(*pair) for pair in settings.items())
        grow = frame(WINDOW_UPDATE, 0, 0, _U32.pack(window - FIRST_WINDOW))
        self.send((PREFACE if client else b"") + frame(SETTINGS, 0, 0, body) + grow)

    def close(self) -> None:
        self.socket.close()

    # Receiving

    def receive(self, *, wait: bool = True) -> bool:
        """Reads once and handles what came. False where nothing had come and *wait* is false."""
        try:
            count = self.socket.recv_into(self._view[self._held :], 0, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            if wait:
                raise PeerError("nothing came within the time limit") from None
            return False
        except OSError as error:
            raise PeerError(f"connection lost: {error}") from error
        if not count:
            raise PeerError(self.going_away or "connection closed by the peer")
        self._parse(self._held + count)
        return True

    def _parse(self, end: int) -> None:
        view, at = self._view, 0
        while True:
            if self._data_left:
                taken = min(self._data_left, end - at)
                if self._data_stream is not None:
                    self._data_stream.feed(view[at : at + taken])
                at += taken
                self._data_left -= taken
                if self._data_left:
                    break
                self._end_of_data()
            if end - at < 9:
                break
            high, low, kind, flags, number = _FRAME.unpack_from(view, at)
            length = high << 16 | low
            if length > self.frame_bytes:
                raise PeerError(f"a frame of {length} bytes, over the limit of {self.frame_bytes}")
            if kind == DATA and not flags & PADDED:
                at += 9
                self._begin_data(number, flags, length)
                self._data_left = length
                if not length:
                    self._end_of_data()
                continue
            if end - at < 9 + length:
                break
            self._control(kind, flags, number, view[at + 9 : at + 9 + length])
            at += 9 + length
        self._held = end - at
        if self._held and at:
            view[: self._held] = bytes(view[at:end])

    def _begin_data(self, number: int, flags: int, length: int) -> None:
        self.receive_window -= length
        self._unreturned += length
        stream = self._data_stream = self.streams.get(number)
        self._data_flags = flags
        if stream is not None:
            stream.receive_window -= length
            stream.unreturned += length
        if self.receive_window < 0 or (stream is not None and stream.receive_window < 0):
            raise PeerError("more DATA than the window allows")

    def _end_of_data(self) -> None:
        """Gives credit back by halves of the window, as it is consumed by then."""
        stream = self._data_stream
        out = b""
        if self._unreturned * 2 >= self.window:
            out += frame(WINDOW_UPDATE, 0, 0, _U32.pack(self._unreturned))
            self.receive_window += self._unreturned
            self._unreturned = 0
        if stream is not None:
            if self._data_flags & END_STREAM:
                self._end(stream)
            elif stream.unreturned * 2 >= self.window:
                out += frame(WINDOW_UPDATE, 0, stream.number, _U32.pack(stream.unreturned))
                stream.receive_window += stream.unreturned
                stream.unreturned = 0
        if out:
            self.send(out)

    def _end(self, stream: Stream) -> None:
        stream.ended = True
        self.stream_ended(stream)

    def stream_ended(self, stream: Stream) -> None:
        """The peer has sent all of this stream, or reset it. That is the end of it, for a client."""
        self.streams.pop(stream.number, None)

    def unknown_stream(self, number: int) -> Stream | None:
        """Headers came for a stream that isn't known: the server's way to get new ones."""
        return None

    def _control(self, kind: int, flags: int, number: int, body: memoryview) -> None:
        stream = self.streams.get(number)
        if kind == DATA:  # padded
            self._begin_data(number, flags, len(body))
            if stream is not None:
                stream.feed(body[1 : len(body) - body[0]])
            self._end_of_data()
        elif kind == HEADERS:
            start, stop = (1, len(body) - body[0]) if flags & PADDED else (0, len(body))
            self._block = (number, flags, bytearray(body[start + (5 if flags & PRIORITY else 0) : stop]))
        elif kind == CONTINUATION:
            if self._block is None or self._block[0] != number:
                raise PeerError("CONTINUATION without HEADERS")
            self._block[2].extend(body)
        elif kind == SETTINGS:
            if not flags & ACK:
                self._settings(bytes(body))
        elif kind == WINDOW_UPDATE:
            if not number:
                self.send_window += _U32.unpack(body)[0]
            elif stream is not None:
                stream.send_window += _U32.unpack(body)[0]
        elif kind == PING:
            if not flags & ACK:
                self.send(frame(PING, ACK, 0, bytes(body)))
        elif kind == RST_STREAM:
            if stream is not None:
                stream.error = f"the peer reset the stream, code {_U32.unpack(body)[0]}"
                self._end(stream)
        elif kind == GOAWAY:
            self.going_away = f"the peer sent GOAWAY, code {_U32.unpack_from(body, 4)[0]}"
        if self._block is not None and flags & END_HEADERS:  # SETTINGS and the like may not come in between (4.3)
            self._headers(*self._block)
            self._block = None

    def _settings(self, body: bytes) -> None:
        for name, value in _SETTING.iter_unpack(body):
            if name == INITIAL_WINDOW_SIZE:  # applies to open streams too, and may make their windows negative (6.9.2)
                for stream in self.streams.values():
                    stream.send_window += value - self.peer_window
                self.peer_window = value
            elif name == MAX_FRAME_SIZE:
                self.peer_frame_bytes = value
            elif name == MAX_CONCURRENT_STREAMS:
                self.peer_streams = value
            elif name == HEADER_TABLE_SIZE:
                self._encoder.header_table_size = min(value, 4096)
                self._encoded.clear()
        self.settled = True
        self.send(frame(SETTINGS, ACK, 0))

    def _headers(self, number: int, flags: int, block: bytearray) -> None:
        key = bytes(block)
        headers = self._decoded.get(key)
        if headers is None:
            headers = self._decoder.decode(key)
            # A block of nothing but indexed fields (RFC 7541, 6.1) leaves the table as it is, so it means the same until
            # some other block comes.
            if min(key) >= 0x80:
                self._decoded[key] = headers
            else:
                self._decoded.clear()
        stream = self.streams.get(number) or self.unknown_stream(number)
        if stream is not None:
            stream.headers.update(headers)
            if flags & END_STREAM:
                self._end(stream)

    # Sending

    def send(self, *buffers: bytes | memoryview) -> None:
        try:
            sent = self.socket.sendmsg(buffers)
            for buffer in buffers:
                if sent < len(buffer):  # cut short by a signal
                    self.socket.sendall(memoryview(buffer)[sent:])
                sent = max(0, sent - len(buffer))
        except BlockingIOError:
            raise PeerError("the peer took nothing within the time limit") from None
        except OSError as error:
            raise PeerError(f"connection lost: {error}") from error

    def open_stream(self, number: int) -> Stream:
        stream = self.streams[number] = Stream(number, self.peer_window, self.window)
        return stream

    def encode(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """A header block. One that only refers to the table is remembered until the table changes."""
        key = tuple(headers)
        block = self._encoded.get(key)
        if block is None:
            block = self._encoder.encode(key)
            if min(block) >= 0x80:
                self._encoded[key] = block
            else:
                self._encoded.clear()
        return block

    def headers_frame(self, stream: Stream, headers: Iterable[tuple[str, str]], *, end: bool = False) -> bytes:
        return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream.number, self.encode(headers))

    def send_message(self, stream: Stream, head: bytes, body: memoryview = NOTHING, *, end: bool = False) -> bool:
        """Sends a gRPC message, *head* (with its length prefix) followed by *body*, as DATA frames that the peer's settings
        and windows allow, waiting for credit where there is none. False when the peer ended the stream meanwhile. The last
        of it may wait for more messages until `flush`, or the end.
        """
        left, at = len(head) + len(body), 0
        header, header_size = b"", -1
        while left:
            size = min(left, self.frame_bytes, self.peer_frame_bytes, stream.send_window, self.send_window)
            if size <= 0:
                self.flush()
                self.receive()
                if stream.ended:
                    return False
                continue
            stream.send_window -= size
            self.send_window -= size
            left -= size
            last = end and not left
            if size != header_size or last:
                header = _FRAME.pack(size >> 16, size & 0xFFFF, DATA, END_STREAM if last else 0, stream.number)
                header_size = size
            self._out.append(header)
            self._out_bytes += size
            if head:
                self._out.append(head[:size])
                size -= len(self._out[-1])
                head = head[len(self._out[-1]) :]
            if size:
                self._out.append(body[at : at + size])
                at += size
            if last or self._out_bytes >= BATCH_BYTES or len(self._out) >= BATCH_BUFFERS - 3:
                self.flush()
                self.receive(wait=False)
                if stream.ended:
                    return False
        return True

    def flush(self) -> None:
        if self._out:
            self.send(*self._out)
            self._out, self._out_bytes = [], 0
