"""A registry on gRPC's C core (grpcio, a pool of threads) in as few lines as it takes: what a plain server of the same interface does.

Stored versions are hashed as they come, written, fsynced and renamed into place; transient ones are kept in memory. There is an
index, and nothing else: no restart, no paging, no limits.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from modelreg.api import model_registry_pb2 as pb
from modelreg.settings import ACCEPTABLE_CHUNK_BYTES

THREADS = 1100  # one a call in progress: a thousand watchers and some more


class Registry:
    def __init__(self, directory: Path, chunk: int) -> None:
        self.directory, self.chunk = directory, chunk
        self.models: dict[str, list[tuple[pb.ModelVersionInfo, Path | bytearray]]] = {}
        self.changed = threading.Condition()

    def CreateOrUpdateModel(self, request: pb.CreateOrUpdateModelRequest, context: object) -> Message:
        with self.changed:
            self.models.setdefault(request.model_info.model_id, [])
        return pb.CreateOrUpdateModelReply()

    def DeleteModel(self, request: pb.DeleteModelRequest, context: object) -> Message:
        with self.changed:
            versions = self.models.pop(request.model_id, [])
            self.changed.notify_all()
        for _, data in versions:
            if isinstance(data, Path):
                data.unlink(missing_ok=True)
        return pb.DeleteModelReply()

    def CreateVersion(self, requests: Iterator[pb.CreateVersionRequestChunk], context: object) -> Message:
        info = next(requests).header.version_info
        sha = hashlib.sha256()
        data: Path | bytearray
        if info.archived:
            with tempfile.NamedTemporaryFile(dir=self.directory, delete=False) as file:
                for request in requests:
                    chunk = request.body.data_chunk  # once: each access makes a copy
                    sha.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            data = self.directory / sha.hexdigest()
            os.rename(file.name, data)
            descriptor = os.open(self.directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        else:
            data = bytearray()
            for request in requests:
                chunk = request.body.data_chunk
                sha.update(chunk)
                data += chunk
        info.data_hash = base64.b64encode(sha.digest()).decode()
        info.creation_timestamp = time.time_ns()
        with self.changed:
            versions = self.models[info.model_id]
            info.version_number = len(versions) + 1
            versions.append((info, data))
            self.changed.notify_all()
        return pb.CreateVersionReply(version_info=info)

    def RetrieveVersionInfos(self, request: pb.RetrieveVersionInfosRequest, context: object) -> Message:
        versions = self.models[request.model_id]
        infos = [versions[number - (number > 0)][0] for number in request.version_numbers]
        return pb.RetrieveVersionInfosReply(version_infos=infos, next_version_handle="0")

    def RetrieveVersionData(self, request: pb.RetrieveVersionDataRequest, context: object) -> Iterator[Message]:
        number = request.version_number
        data = self.models[request.model_id][number - (number > 0)][1]
        if isinstance(data, Path):
            with data.open("rb") as file:
                while chunk := file.read(self.chunk):
                    yield pb.RetrieveVersionDataReplyChunk(data_chunk=chunk)
        else:
            view = memoryview(data)
            for start in range(0, len(data), self.chunk):
                yield pb.RetrieveVersionDataReplyChunk(data_chunk=bytes(view[start : start + self.chunk]))

    def VersionUpdate(self, request: pb.VersionUpdateRequest, context: grpc.ServicerContext) -> Iterator[Message]:
        sent = 0
        while context.is_active():
            with self.changed:
                while len(self.models[request.model_id]) == sent:
                    self.changed.wait()
                info, sent = self.models[request.model_id][-1][0], len(self.models[request.model_id])
            yield pb.VersionUpdateReply(version_info=info)


def handlers(registry: Registry) -> grpc.GenericRpcHandler:
    """Methods by their shapes. What serializes and parses is protobuf, as in any server."""
    unary, to_stream, from_stream = (
        grpc.unary_unary_rpc_method_handler,
        grpc.unary_stream_rpc_method_handler,
        grpc.stream_unary_rpc_method_handler,
    )
    methods: dict[str, tuple[Callable[..., object], Any]] = {
        "CreateOrUpdateModel": (unary, pb.CreateOrUpdateModelRequest),
        "DeleteModel": (unary, pb.DeleteModelRequest),
        "CreateVersion": (from_stream, pb.CreateVersionRequestChunk),
        "RetrieveVersionInfos": (unary, pb.RetrieveVersionInfosRequest),
        "RetrieveVersionData": (to_stream, pb.RetrieveVersionDataRequest),
        "VersionUpdate": (to_stream, pb.VersionUpdateRequest),
    }
    table = {
        name: shape(getattr(registry, name), request.FromString, lambda reply: reply.SerializeToString())
        for name, (shape, request) in methods.items()
    }
    return grpc.method_handlers_generic_handler("cogmentAPI.ModelRegistrySP", table)


def main(directory: Path, chunk: int) -> None:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(THREADS), options=options)
    server.add_generic_rpc_handlers([handlers(Registry(directory, chunk))])
    server.add_insecure_port("127.0.0.1:0")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) or ACCEPTABLE_CHUNK_BYTES)
