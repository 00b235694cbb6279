"""A server that does nothing at all, over valid HTTP/2 and gRPC: what clients reach against it is the clients' own limit.

It counts what is uploaded, gives as much back as was last uploaded to a model, out of memory, and tells watchers before it
replies. One thread a connection, in one process: with many clients at once, it's less than what they could do.
"""

from __future__ import annotations

import socket
import sys
import threading

from benchmarks import MIB
from benchmarks.clients.messages import SERVICE
from benchmarks.http2 import DATA, PREFACE, Connection, PeerError, Stream, bytes_field, frame, message_prefix
from modelreg.api import model_registry_pb2 as pb
from modelreg.settings import ACCEPTABLE_CHUNK_BYTES

WINDOW = 64 * MIB


class Registry:
    """What all connections know: the size of each model's last version, and who watches it."""

    def __init__(self, chunk: int) -> None:
        self.chunk = memoryview(bytes(chunk))
        self.sizes: dict[str, int] = {}
        self.watchers: dict[str, dict[socket.socket, list[int]]] = {}


class NullConnection(Connection):
    def __init__(self, sock: socket.socket, registry: Registry) -> None:
        super().__init__(sock, frame_bytes=MIB, window=WINDOW, timeout=3600, client=False)
        self._registry = registry
        self._requests: list[Stream] = []

    def serve(self) -> None:
        while True:
            self.receive()
            while self._requests:
                stream = self._requests.pop(0)
                if not stream.error:
                    self._answer(stream)
                del self.streams[stream.number]

    def unknown_stream(self, number: int) -> Stream:
        stream = self.open_stream(number)
        stream.keep = 1
        return stream

    def stream_ended(self, stream: Stream) -> None:
        self._requests.append(stream)

    def _answer(self, stream: Stream) -> None:
        method, request = stream.headers[":path"].removeprefix(SERVICE), stream.messages[0]
        sizes, watchers = self._registry.sizes, self._registry.watchers
        stream.ended = False  # from here on it says that the client has lost interest
        self._out.append(self.headers_frame(stream, [(":status", "200"), ("content-type", "application/grpc")]))
        reply = b""
        if method == "RetrieveVersionData":
            self._download(stream, sizes[pb.RetrieveVersionDataRequest.FromString(request).model_id])
        elif method == "VersionUpdate":
            model = pb.VersionUpdateRequest.FromString(request).model_id
            watchers.setdefault(model, {}).setdefault(self.socket, []).append(stream.number)
            self.send(*self._out, _update(stream.number, pb.ModelVersionInfo(model_id=model)))
            self._out.clear()
            return
        elif method == "CreateVersion":
            info = pb.CreateVersionRequestChunk.FromString(request).header.version_info
            sizes[info.model_id] = info.data_size
            info.version_number = 1
            reply = pb.CreateVersionReply(version_info=info).SerializeToString()
            # Other threads' connections: they only read now, and what windows there are is never used up by this.
            for sock, numbers in watchers.get(info.model_id, {}).items():
                sock.sendall(b"".join(_update(number, info) for number in numbers))
        elif method == "RetrieveVersionInfos":
            model = pb.RetrieveVersionInfosRequest.FromString(request).model_id
            info = pb.ModelVersionInfo(model_id=model, version_number=1, data_size=sizes[model])
            reply = pb.RetrieveVersionInfosReply(version_infos=[info]).SerializeToString()
        elif method == "DeleteModel":
            watchers.pop(pb.DeleteModelRequest.FromString(request).model_id, None)
        if method != "RetrieveVersionData":
            self.send_message(stream, message_prefix(len(reply)) + reply)
        self._out.append(self.headers_frame(stream, [("grpc-status", "0")], end=True))
        self.flush()

    def _download(self, stream: Stream, size: int) -> None:
        for start in range(0, size or 1, len(self._registry.chunk)):
            body = self._registry.chunk[: size - start]
            head = bytes_field(1, len(body))
            if not self.send_message(stream, message_prefix(len(head) + len(body)) + head, body):
                return


def _update(stream: int, info: pb.ModelVersionInfo) -> bytes:
    message = pb.VersionUpdateReply(version_info=info).SerializeToString()
    return frame(DATA, 0, stream, message_prefix(len(message)) + message)


def serve(sock: socket.socket, registry: Registry) -> None:
    try:
        if sock.recv(len(PREFACE), socket.MSG_WAITALL) == PREFACE:
            NullConnection(sock, registry).serve()
    except PeerError:
        pass  # the client closed the connection
    finally:
        sock.close()


def main(chunk: int) -> None:
    registry = Registry(chunk)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock, registry), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[2]) or ACCEPTABLE_CHUNK_BYTES)
