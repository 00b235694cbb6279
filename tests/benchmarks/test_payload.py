from __future__ import annotations

import base64
import hashlib

import pytest

from benchmarks.clients import BLOCK_BYTES, Payload, Task
from benchmarks.clients.messages import chunk_messages, header
from benchmarks.http2 import chunk_bytes
from modelreg.api import model_registry_pb2 as pb


def content(payload: Payload) -> list[bytes]:
    return [stamp + bytes(rest) for stamp, rest in payload.pieces()]


@pytest.mark.parametrize(
    ("size", "chunk"), [(0, 10), (1, 10), (10, 10), (1000, 7), (100_000, 30_000), (40_000_000, 3_000_000)]
)
def test_pieces_are_chunks_of_the_size(size: int, chunk: int) -> None:
    pieces = content(Payload(size, chunk))
    assert sum(map(len, pieces)) == size
    assert all(len(piece) == chunk for piece in pieces[:-1])
    assert len(pieces[-1]) <= chunk


def test_no_chunk_is_like_another() -> None:
    payload = Payload(BLOCK_BYTES + 4 * 65536, 65536)
    pieces = content(payload) + content(payload.fresh()) + content(Payload(payload.size, payload.chunk))
    assert len(set(pieces)) == len(pieces)


def test_the_same_seed_gives_the_same_content() -> None:
    assert content(Payload(1000, 100, b"seed")) == content(Payload(1000, 100, b"seed"))


def test_messages_are_what_protobuf_makes_of_them() -> None:
    payload = Payload(1000, 300)
    parsed = []
    for prefix, first, rest in chunk_messages(payload):
        message = first + bytes(rest)
        assert prefix == b"\0" + len(message).to_bytes(4, "big")
        parsed.append(pb.CreateVersionRequestChunk.FromString(message).body.data_chunk)
    assert parsed == content(payload)
    assert payload.digest() == base64.b64encode(hashlib.sha256(b"".join(parsed)).digest()).decode()
    info = pb.CreateVersionRequestChunk.FromString(
        header(Task(kind="upload", client="", address="", model="m", size=5, stored=False))
    ).header.version_info
    assert (info.model_id, info.data_size, info.archived) == ("m", 5, False)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 16_383, 16_384, 2_097_151, 2_097_152])
def test_the_bytes_in_a_chunk_are_known_from_the_length_of_its_message(size: int) -> None:
    assert chunk_bytes(pb.RetrieveVersionDataReplyChunk(data_chunk=bytes(size)).ByteSize()) == size
