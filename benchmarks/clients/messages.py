"""The interface's messages as bytes, made before the clock starts, and its replies checked, for both gRPC clients."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.clients import Payload, Task, WrongReply
from benchmarks.http2 import bytes_field, message_prefix
from modelreg.api import model_registry_pb2 as pb

SERVICE = "/cogmentAPI.ModelRegistrySP/"


def header(task: Task) -> bytes:
    info = pb.ModelVersionInfo(model_id=task.model, archived=task.stored, data_size=task.size)
    return pb.CreateVersionRequestChunk(
        header=pb.CreateVersionRequestChunk.Header(version_info=info)
    ).SerializeToString()


def framed(message: bytes) -> bytes:
    return message_prefix(len(message)) + message


def chunk_messages(payload: Payload) -> Iterator[tuple[bytes, bytes, memoryview]]:
    """A version's messages after the header, each as length prefix, first bytes, and rest."""
    for stamp, rest in payload.pieces():
        inner = len(stamp) + len(rest)
        data = bytes_field(1, inner)
        body = bytes_field(2, len(data) + inner) + data + stamp
        yield message_prefix(len(body) + len(rest)), body, rest


def check_created(reply: bytes, task: Task, digest: str) -> int:
    info = pb.CreateVersionReply.FromString(reply).version_info
    if task.checked and (info.data_hash, info.data_size) != (digest, task.size):
        raise WrongReply(f"sent {task.size} bytes {digest}, the reply says {info.data_size} bytes {info.data_hash}")
    return info.version_number


def chunk_data(message: bytes) -> bytes:
    return pb.RetrieveVersionDataReplyChunk.FromString(message).data_chunk
