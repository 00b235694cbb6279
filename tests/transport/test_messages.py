"""Messages out of chunks, however they are cut."""

from __future__ import annotations

import itertools
import os
import time
import tracemalloc
import zlib
from collections.abc import Iterable, Sequence

import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st
from purerpc.grpclib.exceptions import RpcFailedError
from purerpc.grpclib.status import StatusCode

from modelreg.transport.buffers import Allowance
from modelreg.transport.messages import PAUSE, UNCOUNTED, DecodeError, StreamedMessages, WholeMessages
from tests.support.h2client import message

LIMIT = 4 << 20


def compress(body: bytes, encoding: str) -> bytes:
    compressor = zlib.compressobj(wbits={"gzip": 31, "deflate": 15}[encoding])
    return compressor.compress(body) + compressor.flush()


class Recorder:
    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self._body: bytearray | None = None
        self._length = 0

    @property
    def passing_on(self) -> bool:
        return False

    @property
    def held(self) -> int:
        return 0 if self._body is None else len(self._body)

    def begin(self, length: int) -> None:
        assert self._body is None
        self._body = bytearray()
        self._length = length

    def feed(self, data: memoryview) -> Iterable[object]:
        assert self._body is not None
        assert len(data)
        self._body += data
        return (data,)

    def end(self) -> Iterable[object]:
        assert self._body is not None
        self.messages.append((self._length, bytes(self._body)))
        self._body = None
        return ()


def whole(chunks: Sequence[bytes], encoding: str | None = None, limit: int = LIMIT) -> list[object]:
    messages = WholeMessages(bytes, encoding, limit, Allowance(limit))
    found = [item for chunk in chunks for item in messages.decode(memoryview(chunk)) if item is not PAUSE]
    messages.finish()
    return found


def streamed(chunks: Sequence[bytes], encoding: str | None = None) -> list[tuple[int, bytes]]:
    recorder = Recorder()
    messages = StreamedMessages(recorder, encoding, Allowance(LIMIT))
    for chunk in chunks:
        for _ in messages.decode(memoryview(chunk)):
            pass
    messages.finish()
    return recorder.messages


BODIES = [b"one", b"", b"x" * 20, b"", b""]
SENT = b"".join(message(body) for body in BODIES)


def test_cut_in_two_anywhere() -> None:
    for at in range(len(SENT) + 1):
        chunks = [chunk for chunk in (SENT[:at], SENT[at:]) if chunk]
        assert whole(chunks) == BODIES
        assert streamed(chunks) == [(len(body), body) for body in BODIES]


def test_byte_by_byte() -> None:
    chunks = [bytes([byte]) for byte in SENT]
    assert whole(chunks) == BODIES
    assert streamed(chunks) == [(len(body), body) for body in BODIES]


@given(
    st.lists(st.tuples(st.binary(max_size=200), st.booleans()), max_size=8),
    st.sampled_from(["gzip", "deflate"]),
    st.data(),
)
def test_cut_anywhere_and_compressed(bodies: list[tuple[bytes, bool]], encoding: str, data: st.DataObject) -> None:
    sent = b"".join(message(compress(body, encoding), 1) if packed else message(body) for body, packed in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    places = [0, *cuts, len(sent)]
    chunks = [sent[a:b] for a, b in itertools.pairwise(places) if a < b]
    assert whole(chunks, encoding) == [body for body, _ in bodies]
    assert streamed(chunks, encoding) == [(-1 if packed else len(body), body) for body, packed in bodies]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_large_compressed(encoding: str) -> None:
    for body in (bytes(1 << 20), os.urandom(1 << 20)):
        sent = message(compress(body, encoding), 1)
        chunks = [sent[start : start + 10_000] for start in range(0, len(sent), 10_000)]
        assert whole(chunks, encoding) == [body]
        assert streamed(chunks, encoding) == [(-1, body)]


def failure(chunks: Sequence[bytes], encoding: str | None = None, limit: int = LIMIT) -> StatusCode:
    with pytest.raises(RpcFailedError) as caught:
        whole(chunks, encoding, limit)
    return caught.value.status.status_code


def test_too_large_is_known_from_the_prefix() -> None:
    assert whole([message(bytes(100))], limit=100)
    assert failure([message(bytes(101))[:5]], limit=100) is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("cut", [1, 4, 5, 6])
def test_cut_short(cut: int) -> None:
    assert failure([message(b"abc")[:cut]]) is StatusCode.INVALID_ARGUMENT


def test_flags_and_bodies() -> None:
    assert failure([message(b"x", 2)], "gzip") is StatusCode.INVALID_ARGUMENT
    assert failure([message(b"x", 1)]) is StatusCode.INTERNAL
    assert failure([message(b"garbage", 1)], "gzip") is StatusCode.INVALID_ARGUMENT
    assert failure([message(b"", 1)], "gzip") is StatusCode.INVALID_ARGUMENT
    assert failure([message(compress(b"abc", "gzip")[:-1], 1)], "gzip") is StatusCode.INVALID_ARGUMENT
    assert failure([message(compress(b"abc", "gzip") + b"x", 1)], "gzip") is StatusCode.INVALID_ARGUMENT
    assert failure([message(compress(b"abc", "deflate"), 1)], "gzip") is StatusCode.INVALID_ARGUMENT


def unfinished(allowance: Allowance, kind: str) -> StreamedMessages | WholeMessages:
    """A message of 100 KB of which all has come but its end."""
    encoding = "gzip" if kind == "compressed" else None
    content = os.urandom(100_000)
    sent = message(content) if encoding is None else message(compress(content, encoding), 1)
    messages = (
        StreamedMessages(Recorder(), None, allowance)
        if kind == "streamed"
        else WholeMessages(bytes, encoding, LIMIT, allowance)
    )
    for _ in messages.decode(memoryview(sent)[:-1]):
        pass
    return messages


@pytest.mark.parametrize("kind", ["whole", "compressed", "streamed"])
def test_what_messages_hold_is_borrowed(kind: str) -> None:
    allowance = Allowance(200_000)
    first = unfinished(allowance, kind)
    assert abs(200_000 - (100_000 - UNCOUNTED) - allowance.left) < 100
    unfinished(allowance, kind)
    with pytest.raises(RpcFailedError) as caught:
        unfinished(allowance, kind)
    assert caught.value.status.status_code is StatusCode.RESOURCE_EXHAUSTED
    assert allowance.left == 0
    first.release()
    assert allowance.left >= 100_000 - UNCOUNTED - 100


def test_a_message_that_is_complete_is_held_until_the_next() -> None:
    allowance = Allowance(1_000_000)
    messages = WholeMessages(bytes, None, LIMIT, allowance)
    assert len(list(messages.decode(memoryview(message(bytes(100_000)))))) == 1
    assert allowance.left == 900_000 + UNCOUNTED
    assert len(list(messages.decode(memoryview(message(bytes(UNCOUNTED)))))) == 1
    assert allowance.left == 1_000_000


def test_not_protobuf() -> None:
    messages = WholeMessages(BytesValue.FromString, None, LIMIT, Allowance(LIMIT))
    with pytest.raises(RpcFailedError) as caught:
        list(messages.decode(memoryview(message(b"\xff"))))
    assert caught.value.status.status_code is StatusCode.INVALID_ARGUMENT


def test_decode_error_of_a_decoder() -> None:
    class Picky(Recorder):
        def end(self) -> Iterable[object]:
            raise DecodeError("no")

    with pytest.raises(RpcFailedError) as caught:
        list(StreamedMessages(Picky(), None, Allowance(0)).decode(memoryview(message(b"abc"))))
    assert (caught.value.status.status_code, caught.value.status.status_message) == (StatusCode.INVALID_ARGUMENT, "no")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_costs_no_memory(encoding: str) -> None:
    """Row 17: 128 KiB that become 128 MiB."""
    compressor = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(128)) + compressor.flush()
    sent = message(bomb, 1)
    tracemalloc.start()
    try:
        assert failure([sent[start : start + 65536] for start in range(0, len(sent), 65536)], encoding) is (
            StatusCode.RESOURCE_EXHAUSTED
        )
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.reset_peak()
        messages = StreamedMessages(Recorder(), encoding, Allowance(1 << 30))
        pieces = messages.decode(memoryview(sent)[:30_000])
        assert max(len(piece) for piece in pieces if isinstance(piece, memoryview)) <= 64 * 1024
    finally:
        tracemalloc.stop()


def test_a_chunk_of_tiny_messages_is_linear_and_can_be_interrupted() -> None:
    """Row 22."""
    seconds = []
    for count in (20_000, 200_000):
        recorder = Recorder()
        messages = StreamedMessages(recorder, None, Allowance(0))
        chunk = message(b"") * count
        start = time.process_time()
        pauses = sum(item is PAUSE for item in messages.decode(memoryview(chunk)))
        seconds.append(time.process_time() - start)
        assert len(recorder.messages) == count
        assert pauses >= count // 1000
    assert seconds[1] < 30 * max(seconds[0], 0.005)
