"""Plans through sockets: every kind of piece, in any amount, with a reader that is slow."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from modelreg.transport import wire as wire_module
from modelreg.transport.limits import PROGRESS
from modelreg.transport.outbound import FileSpan, Plan, is_resident
from modelreg.transport.streams import FilePiece
from modelreg.transport.wire import SocketWire, StreamWire, prefetch, wire_for


@pytest.fixture
async def pair() -> AsyncIterator[tuple[SocketWire, trio.SocketStream]]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    wire = wire_for(await listener.accept())
    assert isinstance(wire, SocketWire)
    yield wire, client
    await wire.aclose()
    await client.aclose()
    await listener.aclose()


async def read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = await stream.receive_some(100_000)
        assert piece
        received += piece
    return bytes(received)


async def transfer(wire: SocketWire | StreamWire, stream: trio.abc.ReceiveStream, plan: Plan, size: int) -> bytes:
    received = b""

    async def reader() -> None:
        nonlocal received
        await trio.testing.wait_all_tasks_blocked()  # the writer has filled the socket
        received = await read(stream, size)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await wire.send(plan)
    return received


Spans = list[tuple[int, int, int]]  # offset, size, count


def make_plan(fd: int, spans: Spans) -> tuple[Plan, FilePiece]:
    plan = Plan()
    plan.has_files = True
    piece = FilePiece(fd, 0, 0)
    for offset, size, count in spans:
        plan.items.append(b"head")
        plan.items.append(FileSpan(piece, offset, size, b"%08d" % size, count))
    plan.items.append(b"tail")
    return plan, piece


def expected(content: bytes, spans: Spans) -> bytes:
    sent = bytearray()
    for offset, size, count in spans:
        sent += b"head"
        for start in range(offset, offset + size * count, size):
            sent += b"%08d" % size + content[start : start + size].ljust(size, b"\0")
    return bytes(sent + b"tail")


def mappings() -> str:
    return Path("/proc/self/maps").read_text()


SPANS = [(0, 1, 1), (5, 65536, 3), (4096, 65536, 2), (7, 100, 1000), (100, 3_000_000, 1), (3_000_100, 900_000, 10)]


async def test_a_plan_with_everything(pair: tuple[SocketWire, trio.SocketStream], tmp_path: Path) -> None:
    content = os.urandom(12_000_100)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        plan, piece = make_plan(file.fileno(), SPANS)
        wanted = expected(content, SPANS)
        assert await transfer(*pair, plan, len(wanted)) == wanted
    assert not piece.truncated
    assert pair[0].bytes_out == len(wanted)
    assert pair[0].blocked_since is None


async def test_the_same_without_a_socket(tmp_path: Path) -> None:
    content = os.urandom(12_000_100)
    (tmp_path / "file").write_bytes(content)
    ours, theirs = trio.testing.memory_stream_pair()
    wire = wire_for(ours)
    assert isinstance(wire, StreamWire)
    with (tmp_path / "file").open("rb") as file:
        plan, _ = make_plan(file.fileno(), SPANS)
        wanted = expected(content, SPANS)
        assert await transfer(wire, theirs, plan, len(wanted)) == wanted


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc (Linux)")
async def test_no_mapping_outlives_its_write(pair: tuple[SocketWire, trio.SocketStream], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    with (tmp_path / "file").open("rb") as file:
        plan, _ = make_plan(file.fileno(), [(0, 100_000, 1)])
        await transfer(*pair, plan, 100_016)
        assert str(tmp_path) not in mappings()


async def test_a_file_that_ends_early_is_filled_up(pair: tuple[SocketWire, trio.SocketStream], tmp_path: Path) -> None:
    content = b"x" * 100_000
    (tmp_path / "file").write_bytes(content)
    spans = [(0, 70_000, 2), (99_999, 10, 1)]
    with (tmp_path / "file").open("rb") as file:
        plan, piece = make_plan(file.fileno(), spans)
        wanted = expected(content, spans[:1])[:-4] + expected(b"", spans[1:])  # no reads once it's known to be short
        assert await transfer(*pair, plan, len(wanted)) == wanted
        assert piece.truncated


async def test_a_file_that_is_cut_while_it_is_sent(pair: tuple[SocketWire, trio.SocketStream], tmp_path: Path) -> None:
    """No harm to the program, though the file is mapped: frames are completed, with zeros."""
    wire, client = pair
    content = os.urandom(50_000_000)
    (tmp_path / "file").write_bytes(content)
    spans = [(1, 16384, 1000), (16_384_001, 16384, 2000)]
    wanted = expected(content[:20_000_000], spans)
    with (tmp_path / "file").open("rb+") as file, trio.fail_after(30):
        plan, piece = make_plan(file.fileno(), spans)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, plan)
            await trio.testing.wait_all_tasks_blocked()
            file.truncate(20_000_000)
            received = await read(client, len(wanted))
        assert piece.truncated
    assert received == wanted
    assert wire.bytes_out == len(wanted)


async def test_many_pieces(pair: tuple[SocketWire, trio.SocketStream]) -> None:
    plan = Plan()
    plan.items = [bytes([number % 256]) * (number % 7) * 100 for number in range(3000)]
    expected = b"".join(item for item in plan.items if isinstance(item, bytes))
    assert await transfer(*pair, plan, len(expected)) == expected


async def test_blocked_since(pair: tuple[SocketWire, trio.SocketStream]) -> None:
    wire, client = pair
    plan = Plan()
    plan.items = [bytes(50_000_000)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.send, plan)
        await trio.testing.wait_all_tasks_blocked()
        assert wire.blocked_since is not None
        await read(client, 50_000_000)
    assert wire.blocked_since is None


class Trickle:
    """A socket that takes little at a time, and is full after each."""

    def __init__(self, real: socket.socket, sizes: list[int]) -> None:
        self._real = real
        self._sizes = sizes
        self._full = True
        self.looked: list[float | None] = []
        self.wire: SocketWire | None = None

    def fileno(self) -> int:
        return self._real.fileno()

    def close(self) -> None:
        self._real.close()

    def send(self, data: memoryview, flags: int) -> int:
        assert self.wire is not None
        self.looked.append(self.wire.blocked_since)
        self._full = not self._full
        if not self._full:
            raise BlockingIOError
        return self._sizes.pop(0)


async def test_a_peer_that_takes_a_few_bytes_is_still_blocking(pair: tuple[SocketWire, trio.SocketStream]) -> None:
    wire, _ = pair
    sizes = [1, 1, PROGRESS - 2, 1]
    plan = Plan()
    plan.items = [bytes(sum(sizes))]
    trickle = Trickle(wire._socket, sizes)
    trickle.wire = wire
    wire._socket = trickle  # type: ignore[assignment]
    await wire.send(plan)
    since = [blocked is not None for blocked in trickle.looked]
    assert since == [False, True, True, True, True, True, False, True]
    assert len(set(trickle.looked[1:6])) == 1
    assert wire.blocked_since is None


async def test_the_end_in_both_directions(pair: tuple[SocketWire, trio.SocketStream]) -> None:
    wire, client = pair
    await wire.finish()
    assert await client.receive_some(10) == b""
    await client.send_all(b"abc")
    await client.send_eof()
    memory = memoryview(bytearray(10))
    await wire.wait_readable()
    assert wire.receive_into(memory) == 3
    assert bytes(memory[:3]) == b"abc"
    await wire.wait_readable()
    assert wire.receive_into(memory) == 0


async def test_receiving_without_a_socket() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    wire = wire_for(ours)
    memory = memoryview(bytearray(4))
    assert wire.receive_into(memory) is None
    await theirs.send_all(b"abcdef")
    await wire.wait_readable()
    assert [wire.receive_into(memory), bytes(memory)] == [4, b"abcd"]
    await wire.wait_readable()
    assert [wire.receive_into(memory), bytes(memory[:2])] == [2, b"ef"]
    assert wire.receive_into(memory) is None
    await theirs.aclose()
    await wire.wait_readable()
    assert wire.receive_into(memory) == 0
    assert wire.receive_into(memory) == 0


async def test_unix_sockets_serve_too(tmp_path: Path) -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)
    wire = wire_for(trio.SocketStream(ours))
    client = trio.SocketStream(theirs)
    assert wire.peer == "unix"
    content = os.urandom(1_000_000)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        plan, _ = make_plan(file.fileno(), [(0, 1_000_000, 1)])
        assert isinstance(wire, SocketWire)
        assert (await transfer(wire, client, plan, 1_000_016))[12:-4] == content
    await wire.aclose()
    await client.aclose()


async def test_prefetch(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1_000_000))
    with (tmp_path / "file").open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        piece = FilePiece(file.fileno(), 0, 1_000_000)
        await prefetch(piece, trio.CapacityLimiter(1))
        assert piece.checked_until == 1_000_000
        assert is_resident(file.fileno(), 0, 1_000_000)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create (Linux)")
def test_files_in_memory_are_resident() -> None:
    fd = os.memfd_create("test")
    os.write(fd, bytes(1000))
    assert is_resident(fd, 0, 1000)
    os.close(fd)


@given(st.integers(1, 5), st.booleans())
def test_a_piece_whose_owner_has_closed_it(spans: int, early: bool) -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    piece = FilePiece(read_end, 0, 100)
    flying = [FileSpan(piece, 0, 10) for _ in range(spans)]
    piece.disown()
    piece.disown()
    os.close(read_end)
    assert piece.fd != read_end
    os.fstat(piece.fd)
    for _ in flying:
        piece.landed()
    with pytest.raises(OSError):
        os.fstat(piece.fd)


def test_a_part_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """As one that isn't there: its stream is reset, and the connection goes on."""
    directory = os.open(tmp_path, os.O_RDONLY)  # EISDIR in place of a disk's EIO
    try:
        piece = FilePiece(directory, 0, 100)
        assert bytes(wire_module._read(piece, 0, 100)) == bytes(100)
        assert piece.truncated
    finally:
        os.close(directory)
