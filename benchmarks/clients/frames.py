"""The frame-level generator: a valid gRPC client that costs next to nothing beside the server it loads.

It sends frames of a given size, 16 KiB as Go's clients do or 1 MiB where the server's SETTINGS allow, and accepts as much. Its
stream window is large enough not to be what is measured. See `http2` for how it obeys the server's.
"""

from __future__ import annotations

import hashlib
import socket
import time
from base64 import b64encode
from collections.abc import Callable
from multiprocessing import connection as pipes
from typing import Any

from benchmarks import MIB
from benchmarks.clients import Payload, Task, Work, WrongReply
from benchmarks.clients.messages import SERVICE, check_created, chunk_data, chunk_messages, framed, header
from benchmarks.http2 import Connection, PeerError, Stream
from modelreg.api import model_registry_pb2 as pb

WINDOW = 16 * MIB  # Go's limit for a window grown by its bandwidth estimate
WATCHERS_PER_CONNECTION = 100  # the usual MAX_CONCURRENT_STREAMS


class FrameConnection(Connection):
    """The client's end."""

    def __init__(self, address: str, frame_bytes: int, timeout: float) -> None:
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout)
        sock.settimeout(None)
        super().__init__(sock, frame_bytes=frame_bytes, window=WINDOW, timeout=timeout, client=True)
        self._common = ((":method", "POST"), (":scheme", "http"), (":authority", address))
        self._next = 1
        while not self.settled:
            self.receive()

    def begin(self, method: str) -> tuple[Stream, bytes]:
        """A new stream, and the HEADERS frame that is still to be sent."""
        while len(self.streams) >= self.peer_streams:
            self.receive()
        if self.going_away:
            raise PeerError(self.going_away)
        stream = self.open_stream(self._next)
        self._next += 2
        rest = (("content-type", "application/grpc"), ("user-agent", "modelreg-benchmarks"), ("te", "trailers"))
        return stream, self.headers_frame(stream, (*self._common, (":path", SERVICE + method), *rest))

    def ask(self, method: str, message: bytes) -> Stream:
        """Sends a whole unary request, in one write where flow control allows."""
        stream, headers = self.begin(method)
        self._out.append(headers)
        self.send_message(stream, framed(message), end=True)
        return stream

    def finish(self, stream: Stream) -> Stream:
        while not stream.ended:
            self.receive()
        stream.check()
        return stream

    def call(self, method: str, message: bytes) -> bytes:
        return self.finish(self.ask(method, message)).messages[0]


class FramesClient:
    def __init__(self, address: str, frame_bytes: int, timeout: float) -> None:
        self.address, self.frame_bytes, self.timeout = address, frame_bytes, timeout
        self._connection = FrameConnection(address, frame_bytes, timeout)
        self._connections = {self._connection.socket: self._connection}

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def create_model(self, model: str) -> None:
        request = pb.CreateOrUpdateModelRequest(model_info=pb.ModelInfo(model_id=model))
        self._connection.call("CreateOrUpdateModel", request.SerializeToString())

    def delete_model(self, model: str) -> None:
        self._connection.call("DeleteModel", pb.DeleteModelRequest(model_id=model).SerializeToString())

    def prepare_upload(self, task: Task, payload: Payload) -> Callable[[], int]:
        first = framed(header(task))
        messages = [(prefix + body, rest) for prefix, body, rest in chunk_messages(payload)]
        digest = payload.digest()
        connection = self._connection

        def upload() -> int:
            stream, headers = connection.begin("CreateVersion")
            connection.send(headers)
            going = connection.send_message(stream, first)
            for number, (head, rest) in enumerate(messages, 1):
                going = going and connection.send_message(stream, head, rest, end=number == len(messages))
            return check_created(connection.finish(stream).messages[0], task, digest)

        return upload

    def prepare_download(self, task: Task, version: int, digest: str) -> Work:
        request = pb.RetrieveVersionDataRequest(model_id=task.model, version_number=version).SerializeToString()
        connection = self._connection

        def download() -> None:
            stream = connection.ask("RetrieveVersionData", request)
            stream.keep = stream.keep if digest else 0
            connection.finish(stream)
            if stream.data_bytes != task.size:
                raise WrongReply(f"{stream.data_bytes} bytes came of {task.size}")
            if digest:
                sha = hashlib.sha256(b"".join(map(chunk_data, stream.messages)))
                if b64encode(sha.digest()).decode() != digest:
                    raise WrongReply("the bytes that came are not those that were sent")

        return download

    def lookups(self, task: Task, version: int) -> list[float]:
        request = pb.RetrieveVersionInfosRequest(model_id=task.model, version_numbers=[version]).SerializeToString()
        connection, clock = self._connection, time.monotonic
        samples: list[float] = []
        asked = 0
        flying: dict[Stream, float] = {}
        while len(samples) < task.count:
            while asked < task.count and len(flying) < task.at_once:
                flying[connection.ask("RetrieveVersionInfos", request)] = clock()
                asked += 1
            while not any(stream.ended for stream in flying):
                connection.receive()
            now = clock()
            for stream in [stream for stream in flying if stream.ended]:
                stream.check()
                samples.append(now - flying.pop(stream))
        return samples

    def beside(self, task: Task, version: int) -> list[float]:
        """Looks a version up as often as it can while it is downloaded; the seconds each took."""
        download = pb.RetrieveVersionDataRequest(model_id=task.model, version_number=version).SerializeToString()
        request = pb.RetrieveVersionInfosRequest(model_id=task.model, version_numbers=[version]).SerializeToString()
        stream = self._connection.ask("RetrieveVersionData", download)
        stream.keep = 0
        samples = []
        while not stream.ended:
            start = time.monotonic()
            self._connection.call("RetrieveVersionInfos", request)
            samples.append(time.monotonic() - start)
        stream.check()
        return samples

    def prepare_watch(self, task: Task) -> Callable[[], list[float]]:
        """The work that publishes *count* versions, one after the other when all watchers have the one before. Returns for
        each of them the seconds from the start of its publish until the last watcher had it. Not from the reply: a
        server that tells its watchers first would look faster.
        """
        payload = Payload(task.size, task.chunk)
        self.prepare_upload(task, payload.fresh())()
        uploads = [self.prepare_upload(task, payload.fresh()) for _ in range(task.count)]
        request = pb.VersionUpdateRequest(model_id=task.model).SerializeToString()
        watchers: dict[socket.socket, list[Stream]] = {}
        left = task.at_once
        while left:
            connection = FrameConnection(self.address, self.frame_bytes, self.timeout)
            some = min(WATCHERS_PER_CONNECTION, connection.peer_streams, left)
            self._connections[connection.socket] = connection
            watchers[connection.socket] = [connection.ask("VersionUpdate", request) for _ in range(some)]
            left -= some

        def wait(seen: int) -> None:
            """Until every watcher has got as many updates."""

            def heard(streams: list[Stream]) -> bool:
                if any(stream.ended for stream in streams):
                    raise WrongReply("a watch ended")
                return all(len(stream.messages) >= seen for stream in streams)

            waiting = {sock: streams for sock, streams in watchers.items() if not heard(streams)}
            while waiting:
                ready = pipes.wait(waiting, self.timeout)
                if not ready:
                    late = sum(len(stream.messages) < seen for streams in waiting.values() for stream in streams)
                    raise PeerError(f"{late} of {task.at_once} watchers did not hear of a version")
                for sock in ready:
                    assert isinstance(sock, socket.socket)
                    self._connections[sock].receive()
                    if heard(waiting[sock]):
                        del waiting[sock]

        wait(1)

        def publish() -> list[float]:
            delays = []
            for number, upload in enumerate(uploads, 2):
                start = time.monotonic()
                upload()
                wait(number)
                delays.append(time.monotonic() - start)
            return delays

        return publish

    def idle(self, pipe: pipes.Connection[Any, Any]) -> None:
        while pipe not in (ready := pipes.wait([pipe, *self._connections])):
            for sock in ready:
                assert isinstance(sock, socket.socket)
                self._connections[sock].receive()
