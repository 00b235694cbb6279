"""The realistic client: grpcio, on gRPC's C core, synchronous, one connection to a process.

Messages are serialized before the clock starts and not parsed while it runs, so that it is the C core that is measured.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

import grpc

from benchmarks.clients import Payload, Task, Work, WrongReply
from benchmarks.clients.messages import SERVICE, check_created, chunk_data, chunk_messages, header
from benchmarks.http2 import chunk_bytes
from modelreg.api import model_registry_pb2 as pb

OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a target may be told to send chunks of 4 MiB, which are longer messages
    ("grpc.use_local_subchannel_pool", 1),  # a new connection for each round, as for the other clients
    ("grpc.enable_http_proxy", 0),
]


class CCoreClient:
    def __init__(self, address: str, timeout: float) -> None:
        self.timeout = timeout
        self._channel = grpc.insecure_channel(address, OPTIONS)
        grpc.channel_ready_future(self._channel).result(timeout)

    def close(self) -> None:
        self._channel.close()

    def create_model(self, model: str) -> None:
        request = pb.CreateOrUpdateModelRequest(model_info=pb.ModelInfo(model_id=model))
        self._unary("CreateOrUpdateModel")(request.SerializeToString(), timeout=self.timeout)

    def delete_model(self, model: str) -> None:
        request = pb.DeleteModelRequest(model_id=model)
        self._unary("DeleteModel")(request.SerializeToString(), timeout=self.timeout)

    def prepare_upload(self, task: Task, payload: Payload) -> Callable[[], int]:
        messages = [header(task), *(b"".join((first, rest)) for _, first, rest in chunk_messages(payload))]
        digest = payload.digest()
        call = self._channel.stream_unary(SERVICE + "CreateVersion")
        return lambda: check_created(call(iter(messages), timeout=self.timeout), task, digest)

    def prepare_download(self, task: Task, version: int, digest: str) -> Work:
        request = pb.RetrieveVersionDataRequest(model_id=task.model, version_number=version).SerializeToString()
        call = self._channel.unary_stream(SERVICE + "RetrieveVersionData")

        def download() -> None:
            size, sha = 0, hashlib.sha256()
            for message in call(request, timeout=self.timeout):
                size += chunk_bytes(len(message))
                if digest:
                    sha.update(chunk_data(message))
            if size != task.size:
                raise WrongReply(f"{size} bytes came of {task.size}")
            if digest and b64encode(sha.digest()).decode() != digest:
                raise WrongReply("the bytes that came are not those that were sent")

        return download

    def lookups(self, task: Task, version: int) -> list[float]:
        request = pb.RetrieveVersionInfosRequest(model_id=task.model, version_numbers=[version]).SerializeToString()
        call = self._unary("RetrieveVersionInfos")

        def some(count: int) -> list[float]:
            samples = []
            for _ in range(count):
                start = time.monotonic()
                call(request, timeout=self.timeout)
                samples.append(time.monotonic() - start)
            return samples

        if task.at_once == 1:
            return some(task.count)
        with ThreadPoolExecutor(task.at_once) as pool:
            return list(chain.from_iterable(pool.map(some, [task.count // task.at_once] * task.at_once)))

    def idle(self, pipe: Connection[Any, Any]) -> None:
        pass  # it has threads of its own

    def _unary(self, method: str) -> Callable[..., bytes]:
        return self._channel.unary_unary(SERVICE + method)  # type: ignore[no-any-return]


class CheckingCCoreClient(CCoreClient):
    """What somebody with grpcio writes to get what modelreg's own client gives: bytes that are hashed before they are sent, and compared
    with the version's hash when they have come.
    """

    def prepare_upload(self, task: Task, payload: Payload) -> Callable[[], int]:
        data = memoryview(b"".join(part for piece in payload.pieces() for part in piece))
        call = self._channel.stream_unary(
            SERVICE + "CreateVersion", pb.CreateVersionRequestChunk.SerializeToString, pb.CreateVersionReply.FromString
        )

        def messages(digest: str) -> Iterator[pb.CreateVersionRequestChunk]:
            request = pb.CreateVersionRequestChunk
            info = pb.ModelVersionInfo(model_id=task.model, archived=task.stored, data_size=len(data), data_hash=digest)
            yield request(header=request.Header(version_info=info))
            for start in range(0, len(data), task.chunk):
                yield request(body=request.Body(data_chunk=bytes(data[start : start + task.chunk])))

        def upload() -> int:
            digest = b64encode(hashlib.sha256(data).digest()).decode()
            return int(call(messages(digest), timeout=self.timeout).version_info.version_number)

        return upload

    def prepare_download(self, task: Task, version: int, digest: str) -> Work:
        look_up = self._unary("RetrieveVersionInfos")
        infos = pb.RetrieveVersionInfosRequest(model_id=task.model, version_numbers=[version]).SerializeToString()
        request = pb.RetrieveVersionDataRequest(model_id=task.model, version_number=version).SerializeToString()
        call = self._channel.unary_stream(
            SERVICE + "RetrieveVersionData", response_deserializer=pb.RetrieveVersionDataReplyChunk.FromString
        )

        def download() -> None:
            (info,) = pb.RetrieveVersionInfosReply.FromString(look_up(infos, timeout=self.timeout)).version_infos
            data = b"".join(message.data_chunk for message in call(request, timeout=self.timeout))
            found = b64encode(hashlib.sha256(data).digest()).decode()
            if len(data) != task.size or found not in (info.data_hash, digest):
                raise WrongReply(f"{len(data)} bytes came of {task.size}, or not those that were sent")

        return download
