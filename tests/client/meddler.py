"""A relay that knows HTTP/2, and ends streams as proxies do: by any RST_STREAM, without trailers, by a page."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import attrs
import hpack

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.client.relay import Relay
from tests.support.h2client import block, data, headers

PAGE = b"<html><head><title>%d Not Now</title></head><body>nginx</body></html>"


def reset(code: ErrorCode) -> Callable[[int], bytes]:
    return lambda stream: frames.rst_stream(stream, code)


def end_of_stream(stream: int) -> bytes:
    return data(stream, end_stream=True)


def page(status: int) -> Callable[[int], bytes]:
    """An error page in place of the answer, so to be sent before any of it."""
    fields = [(b":status", b"%d" % status), (b"content-type", b"text/html")]
    body = PAGE % status
    fields.append((b"content-length", b"%d" % len(body)))
    return lambda stream: headers(stream, block(fields)) + data(stream, body, end_stream=True)


def goaway(stream: int) -> bytes:
    return frames.goaway(0, ErrorCode.NO_ERROR)


@attrs.define
class Cut:
    """How the next streams of a method end, and after how many bytes of their answer."""

    end: Callable[[int], bytes]
    after: int
    times: int


@attrs.define
class _Cutting:
    end: Callable[[int], bytes]
    left: int
    done: bool = False


class Meddler(Relay):
    """Passes frames on, and cuts off the streams that it was told to."""

    def __init__(self, server_port: int) -> None:
        self.cuts: dict[str, Cut] = {}
        self.asked: list[str] = []
        """The methods that were called, in order."""
        self.payload = 0
        """Bytes of DATA that were passed on to clients."""
        super().__init__(server_port)
        self._locks: dict[socket.socket, threading.Lock] = {}
        self._cutting: dict[tuple[socket.socket, int], _Cutting] = {}

    def cut_off(self, method: str, end: Callable[[int], bytes], *, after: int = 0, times: int = 1) -> None:
        """End the next streams of a method after so many bytes of their answer; 0 is before its headers."""
        self.cuts[method] = Cut(end, after, times)

    def _pump(self, source: socket.socket, drain: socket.socket, from_server: bool) -> None:
        passing = self._from_server if from_server else self._from_client(source)
        with contextlib.suppress(OSError), source.makefile("rb") as stream:
            if not from_server:
                drain.sendall(stream.read(len(frames.PREFACE)))
            while header := stream.read(frames.HEADER_SIZE):
                payload = stream.read(int.from_bytes(header[:3], "big"))
                passing(header, payload, source, drain)
        self._close(source, drain, from_server)

    def _from_client(self, client: socket.socket) -> Callable[[bytes, bytes, socket.socket, socket.socket], None]:
        decoder = hpack.Decoder()

        def passing(header: bytes, payload: bytes, source: socket.socket, drain: socket.socket) -> None:
            if header[3] == frames.HEADERS:
                method = dict(decoder.decode(payload))[":path"].rpartition("/")[2]
                self.asked.append(method)
                cut = self.cuts.get(method)
                if cut is not None and cut.times:
                    cut.times -= 1
                    self._cutting[client, _stream(header)] = _Cutting(cut.end, cut.after)
            self._send(drain, header + payload)

        return passing

    def _from_server(self, header: bytes, payload: bytes, source: socket.socket, drain: socket.socket) -> None:
        stream = _stream(header)
        cutting = self._cutting.get((drain, stream))
        if cutting is not None and cutting.done:
            return
        if header[3] == frames.DATA:
            self.payload += len(payload if cutting is None else payload[: cutting.left])
        if cutting is None or (header[3] == frames.HEADERS and cutting.left):
            self._send(drain, header + payload)
            return
        if header[3] not in (frames.DATA, frames.HEADERS):
            self._send(drain, header + payload)
            return
        passed = payload[: cutting.left]
        cutting.left -= len(passed)
        if passed:
            self._send(drain, data(stream, passed))
        if not cutting.left:
            cutting.done = True
            self._send(drain, cutting.end(stream))
            with contextlib.suppress(OSError):
                self._send(source, frames.rst_stream(stream, ErrorCode.CANCEL))

    def _send(self, drain: socket.socket, data: bytes) -> None:
        with self._locks.setdefault(drain, threading.Lock()):
            drain.sendall(data)


def _stream(header: bytes) -> int:
    return int.from_bytes(header[5:9], "big")


@contextlib.contextmanager
def meddling_with(server_port: int) -> Iterator[Meddler]:
    meddler = Meddler(server_port)
    try:
        yield meddler
    finally:
        meddler.close()
