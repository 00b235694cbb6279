"""Messages of a response, however they are cut and encoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelreg.api import model_registry_pb2 as api
from modelreg.client.transport.calls import grpc_timeout
from modelreg.client.transport.messages import MAX_MESSAGE_BYTES, DataChunks, Whole, chunk_prefix, framed
from modelreg.transport.faults import StreamFault

Reply = api.RetrieveVersionDataReplyChunk


def cut(data: bytes, sizes: list[int]) -> Iterator[Any]:
    at = 0
    for size in sizes:
        yield memoryview(data)[at : at + size]
        at += size
    yield memoryview(data)[at:]


def data_of(raw: bytes, sizes: list[int]) -> bytes:
    out = bytearray()
    chunks = DataChunks(out.extend)
    for piece in cut(raw, sizes):
        chunks.feed(piece)
    assert chunks.complete
    return bytes(out)


def head(size: int) -> memoryview:
    return memoryview(b"\0" + size.to_bytes(4, "big"))


def test_a_message_that_is_collected_may_have_64_mib() -> None:
    Whole().feed(head(MAX_MESSAGE_BYTES))
    with pytest.raises(StreamFault, match="a message of 67108865 bytes, and this client takes 67108864 at most"):
        Whole().feed(head(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("unusual", [b"\x12", b"\x0a\x01", b"\x0a" + b"\x80" * 6])
def test_data_may_be_of_any_size_but_not_in_an_unusual_form(unusual: bytes) -> None:
    chunks = DataChunks(bytearray().extend)
    chunks.feed(head(2**32 - 1))
    chunks.feed(memoryview(b"\x0a\xf9\xff\xff\xff\x0f" + bytes(100)))
    chunks = DataChunks(bytearray().extend)
    chunks.feed(head(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(StreamFault, match="a message of 67108865 bytes"):
        chunks.feed(memoryview(unusual))


SIZES = st.lists(st.integers(0, 400), max_size=20)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), SIZES)
def test_chunks_in_the_usual_form(parts: Any, sizes: Any) -> None:
    raw = b"".join(framed(Reply(data_chunk=part).SerializeToString()) for part in parts)
    assert data_of(raw, sizes) == b"".join(parts)


def field(number: int, data: bytes, padding: int = 0) -> bytes:
    """A length-delimited field, its length with more bytes than needed."""
    length = bytearray()
    rest = len(data)
    while rest > 0x7F or padding:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
        padding -= rest == 0 and padding > 0
    return bytes([number << 3 | 2]) + bytes(length) + bytes([rest]) + data


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from([1, 1, 2, 15]), st.binary(max_size=200), st.integers(0, 3)), max_size=3),
        max_size=5,
    ),
    SIZES,
)
def test_chunks_in_every_form_that_is_valid(messages: Any, sizes: Any) -> None:
    encoded = [b"".join(field(*part) for part in message) for message in messages]
    expected = b"".join(Reply.FromString(message).data_chunk for message in encoded)
    assert data_of(b"".join(map(framed, encoded)), sizes) == expected


@pytest.mark.parametrize("raw", [framed(b"\x0a\x05abc"), framed(b"\xff"), framed(b"\x0a"), b"\x01\x00\x00\x00\x00"])
def test_what_is_no_chunk(raw: Any) -> None:
    with pytest.raises(StreamFault):
        data_of(raw, [])


def test_a_chunk_cut_short() -> None:
    chunks = DataChunks(bytearray().extend)
    chunks.feed(memoryview(framed(Reply(data_chunk=b"abc").SerializeToString())[:-1]))
    assert not chunks.complete


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), SIZES)
def test_whole_messages(parts: Any, sizes: Any) -> None:
    whole = Whole()
    for piece in cut(b"".join(map(framed, parts)), sizes):
        whole.feed(piece)
    assert list(whole.messages) == parts
    assert whole.complete


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2**20])
def test_chunks_sent(size: int) -> None:
    raw = chunk_prefix(size) + bytes(size)
    body = api.CreateVersionRequestChunk.Body(data_chunk=bytes(size))
    message = api.CreateVersionRequestChunk(body=body)
    assert api.CreateVersionRequestChunk.FromString(raw[5:]) == message
    assert int.from_bytes(raw[1:5], "big") == len(raw) - 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"1u"),
        (1e-9, b"1u"),
        (0.5, b"500000u"),
        (99.9, b"99900000u"),
        (100, b"100000m"),
        (1e6, b"1000000S"),
        (1e12, b"99999999M"),
    ],
)
def test_timeouts(seconds: Any, text: Any) -> None:
    assert grpc_timeout(seconds) == text
