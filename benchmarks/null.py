"""A server that does nothing at all, over valid HTTP/2 and gRPC: what clients reach against it is the clients' own limit.

It counts what is uploaded, and gives as much back as was last uploaded to a model, out of memory. One thread a connection.
"""

from __future__ import annotations

import socket
import sys
import threading

from benchmarks import MIB
from benchmarks.clients.messages import SERVICE
from benchmarks.http2 import PREFACE, Connection, PeerError, Stream, bytes_field, message_prefix
from modelreg.api import model_registry_pb2 as pb

WINDOW = 64 * MIB


class NullConnection(Connection):
    def __init__(self, sock: socket.socket, sizes: dict[str, int], chunk: int) -> None:
        super().__init__(sock, frame_bytes=MIB, window=WINDOW, timeout=3600, client=False)
        self._sizes = sizes
        self._chunk = memoryview(bytes(chunk))
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
        stream.ended = False  # from here on it says that the client has lost interest
        self._out.append(self.headers_frame(stream, [(":status", "200"), ("content-type", "application/grpc")]))
        if method == "RetrieveVersionData":
            self._download(stream, self._sizes[pb.RetrieveVersionDataRequest.FromString(request).model_id])
        else:
            reply = b""
            if method == "CreateVersion":
                info = pb.CreateVersionRequestChunk.FromString(request).header.version_info
                self._sizes[info.model_id] = info.data_size
                info.version_number = 1
                reply = pb.CreateVersionReply(version_info=info).SerializeToString()
            elif method == "RetrieveVersionInfos":
                model = pb.RetrieveVersionInfosRequest.FromString(request).model_id
                info = pb.ModelVersionInfo(model_id=model, version_number=1, data_size=self._sizes[model])
                reply = pb.RetrieveVersionInfosReply(version_infos=[info]).SerializeToString()
            self.send_message(stream, message_prefix(len(reply)) + reply)
        self._out.append(self.headers_frame(stream, [("grpc-status", "0")], end=True))
        self.flush()

    def _download(self, stream: Stream, size: int) -> None:
        for start in range(0, size or 1, len(self._chunk)):
            body = self._chunk[: size - start]
            head = bytes_field(1, len(body))
            if not self.send_message(stream, message_prefix(len(head) + len(body)) + head, body):
                return


def serve(sock: socket.socket, sizes: dict[str, int], chunk: int) -> None:
    try:
        if sock.recv(len(PREFACE), socket.MSG_WAITALL) == PREFACE:
            NullConnection(sock, sizes, chunk).serve()
    except PeerError:
        pass  # the client closed the connection
    finally:
        sock.close()


def main(chunk: int) -> None:
    sizes: dict[str, int] = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock, sizes, chunk), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
