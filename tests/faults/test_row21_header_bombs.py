"""Row 21: endless CONTINUATION, a 16 MiB header, a 1 MiB varint: the connection is closed, for under 50 ms of CPU. What can be
decoded, an HPACK bomb for one, costs its call only."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.faults.abuse import back_at, clients, settled, with_sibling
from tests.faults.crash import Launcher, Server
from tests.support.h2client import H2Client, connected, headers, length, literal
from tests.support.measures import cpu_seconds, memory_bytes, peak_memory_bytes

MIB = 1 << 20


def block_of(*parts: bytes) -> bytes:
    """A header block over a frame each, without an end."""
    first, *rest = parts
    return headers(1, first, end_headers=False) + b"".join(
        frames.frame_header(len(part), frames.CONTINUATION, 0, 1) + part for part in rest
    )


HUGE = [bytes(16_000)] * (16 * MIB // 16_000)

HEADER_BOMBS = {
    "endless continuation": (block_of(b"", *[b"\x82"] * 100_000), ErrorCode.ENHANCE_YOUR_CALM),
    "endless empty continuation": (block_of(b"", *[b""] * 100_000), ErrorCode.ENHANCE_YOUR_CALM),
    "16 MiB header": (block_of(literal(b"x", b"")[:-1], *HUGE), ErrorCode.ENHANCE_YOUR_CALM),
    "16 MiB header in large frames": (block_of(*[bytes(MIB)] * 16), ErrorCode.ENHANCE_YOUR_CALM),
    "varint of 16 KiB": (headers(1, b"\x7f" + b"\xff" * 16_000), ErrorCode.COMPRESSION_ERROR),
    "1 MiB varint": (
        block_of(*[(b"\x7f" + b"\xff" * MIB)[at : at + 16_384] for at in range(0, MIB, 16_384)]),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "1 MiB varint in a frame": (headers(1, (b"\x7f" + b"\xff" * MIB)[:MIB]), ErrorCode.ENHANCE_YOUR_CALM),
}


# Large once they're decoded, or as they are, but not too large to be decoded: they cost their call only.
TOO_LARGE = {
    "hpack bomb": [b"\x40" + literal(b"x" * 100, b"y" * 3000)[1:] + b"\xbe" * 12_000],
    "references": [b"\x82" * 16_000] * 16,
    "references in one frame": [b"\x82" * 250_000],
    "changes of the table": [(b"\x40" + literal(b"", b"")[1:]) * 5_000] * 16,
    "Huffman codes that no table holds": [b"\x40\x01a" + b"\xff" + length(250_000)[1:] + bytes(250_000)],
    "Huffman codes that the table holds": [(b"\x40\x01a" + b"\xff" + length(2500)[1:] + bytes(2500)) * 6] * 16,
    "long values": [literal(b"x", b"y" * 15_000)] * 16,
}


async def attack(server: Server, bomb: bytes) -> H2Client:
    async with clients(server, 1) as (client,):
        await client.try_send(bomb)
        await client.until_closed()
        return client


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_headers_that_are_too_large(launcher: Launcher, memory_path: Path, name: str) -> None:
    """The call is refused, and others on its connection go on."""
    server = launcher.start(memory_path / "archive")
    async with with_sibling(server) as (client, sibling):
        memory = memory_bytes(server.pid)
        with launcher.canary(server):
            for _ in range(10):
                bomb = client.new_id()
                first, *rest = TOO_LARGE[name]
                await client.send(
                    headers(bomb, first, end_headers=False),
                    *(frames.frame_header(len(part), frames.CONTINUATION, 0, bomb) + part for part in rest),
                    frames.frame_header(0, frames.CONTINUATION, frames.END_HEADERS, bomb),
                )
                reply = await client.finished(bomb)
                assert reply.status == 8
                assert "max_header_bytes" in (reply.text or "")
                await sibling.hears()
        assert peak_memory_bytes(server.pid) - memory < 8 * MIB


@pytest.mark.parametrize("name", HEADER_BOMBS)
async def test_header_bombs(launcher: Launcher, memory_path: Path, name: str) -> None:
    server = launcher.start(memory_path / "archive")
    async with connected(server.port):
        pass
    before, memory = await settled(server), memory_bytes(server.pid)
    bomb, code = HEADER_BOMBS[name]
    worked = []
    for _ in range(3):
        start = cpu_seconds(server.pid)
        client = await attack(server, bomb)
        assert [frame.code for frame in client.goaways] == [code]
        await back_at(server, before)
        worked.append(cpu_seconds(server.pid) - start)
    assert max(worked) < 0.05  # the connection included
    with launcher.canary(server):
        for _ in range(10):
            await attack(server, bomb)
    await back_at(server, before)
    assert peak_memory_bytes(server.pid) - memory < 8 * MIB
