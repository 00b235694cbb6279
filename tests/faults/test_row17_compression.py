"""Row 17: unknown compression is UNIMPLEMENTED; gzip and deflate that are fine work; a bomb, 1 MiB that becomes 1 GiB, is
RESOURCE_EXHAUSTED with under 16 MiB more memory."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from modelreg.api import common_pb2
from tests.clients.calls import body, header
from tests.faults.abuse import begin, send_all, with_sibling
from tests.faults.crash import Launcher
from tests.support.h2client import message
from tests.support.measures import cpu_seconds, memory_bytes, peak_memory_bytes

MIB = 1 << 20
GIB = 1 << 30

WINDOW_BITS = {"gzip": 31, "deflate": 15}


def compressed(sent: bytes, encoding: str) -> bytes:
    compressor = zlib.compressobj(wbits=WINDOW_BITS[encoding])
    return message(compressor.compress(sent) + compressor.flush(), flag=1)


def bomb(encoding: str, begins: bytes = b"") -> bytes:
    """A message that becomes 1 GiB of zeros, after what it begins with."""
    compressor = zlib.compressobj(9, wbits=WINDOW_BITS[encoding])
    first = compressor.compress(begins) + compressor.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what was before, so a block can be repeated.
    block = compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return message(first + block * (GIB // MIB), flag=1)


async def test_unknown_compression(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, _):
        for method in ("Status", "CreateVersion"):
            stream_id = await begin(client, method, message(b"x", flag=1), extra=[(b"grpc-encoding", b"snappy")])
            reply = await client.finished(stream_id)
            assert reply.status == 12
            assert dict(reply.fields)["grpc-accept-encoding"] == "identity,deflate,gzip"


@pytest.mark.parametrize("encoding", WINDOW_BITS)
async def test_compression_that_is_fine(launcher: Launcher, memory_path: Path, encoding: str) -> None:
    server = launcher.start(memory_path / "archive")
    said = [(b"grpc-encoding", encoding.encode())]
    async with with_sibling(server) as (client, _):
        request = common_pb2.StatusRequest(names=["models"]).SerializeToString()
        stream_id = await begin(client, "Status", compressed(request, encoding), extra=said)
        reply = await client.finished(stream_id)
        assert common_pb2.StatusReply.FromString(reply.messages[0]).statuses == {"models": "2"}
        content = bytes(range(256)) * 12_000
        messages = [header("m", data_size=len(content)), body(content)]
        sent = b"".join(compressed(one.SerializeToString(), encoding) for one in messages)
        stream_id = await begin(client, "CreateVersion", sent, extra=said)
        assert (await client.finished(stream_id)).status == 0
    with server.calls() as calls:
        assert calls.data("m") == content


@pytest.mark.parametrize("encoding", WINDOW_BITS)
@pytest.mark.parametrize("method", ["Status", "VersionUpdate", "CreateVersion"])
async def test_a_bomb(launcher: Launcher, memory_path: Path, method: str, encoding: str) -> None:
    server = launcher.start(memory_path / "archive")
    sent = bomb(encoding)
    assert len(sent) < 1.1 * MIB
    said = [(b"grpc-encoding", encoding.encode())]
    async with with_sibling(server) as (client, _):
        with launcher.canary(server):
            memory = memory_bytes(server.pid)
            worked = cpu_seconds(server.pid)
            stream_id = await begin(client, method, b"", whole=False, extra=said)
            await send_all(client, stream_id, sent)
            assert (await client.finished(stream_id)).status == 8
            assert peak_memory_bytes(server.pid) - memory < 16 * MIB
            # It stops where the limit is: all of it would take seconds.
            assert cpu_seconds(server.pid) - worked < 0.5


@pytest.mark.parametrize("encoding", WINDOW_BITS)
async def test_a_bomb_of_data(launcher: Launcher, memory_path: Path, encoding: str) -> None:
    """What would be the data of a version, were it not compressed."""
    server = launcher.start(memory_path / "archive")
    prefix = b"\x12" + varint(GIB + 6) + b"\x0a" + varint(GIB)
    sent = compressed(header("m", data_size=GIB, archived=True).SerializeToString(), encoding) + bomb(encoding, prefix)
    async with with_sibling(server) as (client, _):
        with launcher.canary(server):
            memory = memory_bytes(server.pid)
            said = [(b"grpc-encoding", encoding.encode())]
            stream_id = await begin(client, "CreateVersion", b"", whole=False, extra=said)
            await send_all(client, stream_id, sent)
            assert (await client.finished(stream_id)).status == 8
            assert peak_memory_bytes(server.pid) - memory < 16 * MIB


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
