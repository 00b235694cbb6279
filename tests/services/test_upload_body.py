from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from google.protobuf.message import DecodeError as ProtobufDecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from purerpc.grpclib.exceptions import RpcFailedError
from purerpc.grpclib.status import StatusCode

from modelreg.api.model_registry_pb2 import CreateVersionRequestChunk as Chunk
from modelreg.services.upload_body import ChunkDecoder, data_start
from modelreg.transport.messages import DecodeError

# Of what has to be collected.
LIMIT = 4 << 20

# The wire, as https://protobuf.dev/programming-guides/encoding/ has it.

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def varint(value: int, extra: int = 0) -> bytes:
    """A base 128 varint, *extra* bytes longer than it has to be."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    groups += [0] * extra
    return bytes([group | 0x80 for group in groups[:-1]] + [groups[-1]])


@st.composite
def fields(draw: st.DrawFn, number: int, content: st.SearchStrategy[bytes]) -> bytes:
    """A field that holds bytes; its tag and length may be longer than need be."""
    data = draw(content)
    extra = st.sampled_from([0, 0, 0, 0, 1, 2])
    return varint(number << 3 | LENGTH, draw(extra)) + varint(len(data), draw(extra)) + data


@st.composite
def unknown_fields(draw: st.DrawFn) -> bytes:
    number, kind = draw(st.integers(3, 2**29 - 1)), draw(st.sampled_from([VARINT, FIXED64, LENGTH, FIXED32]))
    content = {
        VARINT: st.integers(0, 2**64 - 1).map(varint),
        FIXED64: st.binary(min_size=8, max_size=8),
        FIXED32: st.binary(min_size=4, max_size=4),
        LENGTH: st.binary(max_size=200).map(lambda data: varint(len(data)) + data),
    }
    return varint(number << 3 | kind) + draw(content[kind])


def sequences(*kinds: st.SearchStrategy[bytes], max_size: int = 3) -> st.SearchStrategy[bytes]:
    return st.lists(st.one_of(kinds), max_size=max_size).map(b"".join)


# Around the lengths at which a length takes one byte more.
data = st.one_of(
    st.binary(max_size=40), st.integers(120, 140).map(bytes), st.sampled_from([bytes(16383), bytes(16384)])
)
plain_bodies = fields(1, data)
bodies = st.one_of(plain_bodies, sequences(fields(1, data), unknown_fields()))
headers = st.builds(
    lambda model_id, size: Chunk.Header(version_info={"model_id": model_id, "data_size": size}).SerializeToString(),
    st.text(max_size=10),
    st.integers(0, 2**64 - 1),
)
messages = st.one_of(
    fields(2, plain_bodies),
    fields(2, bodies),
    fields(1, headers),
    sequences(fields(2, bodies), fields(1, headers), unknown_fields()),
)
nearly_messages = st.one_of(
    messages,
    st.binary(max_size=20),
    st.tuples(messages, st.integers(0, 30)).map(lambda pair: pair[0][: -pair[1]]),
    st.tuples(messages, st.binary(max_size=5)).map(b"".join),
)


def decoded(decoder: ChunkDecoder, message: bytes, cuts: Sequence[int], *, length: int | None = None) -> list[object]:
    """The decoder's items for a message that comes in pieces; data as the bytes there are in all of it."""
    items: list[object] = []
    parts: list[bytes] = []

    def take(new: Iterable[object]) -> None:
        for item in new:
            if isinstance(item, memoryview):
                parts.append(bytes(item))
            else:
                items.append(item)

    decoder.begin(len(message) if length is None else length)
    places = sorted({0, len(message), *(cut % (len(message) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        # What was fed may be overwritten as soon as its items are used.
        buffer = bytearray(message[start:end])
        take(decoder.feed(memoryview(buffer)))
        buffer[:] = b"\xee" * len(buffer)
    take(decoder.end())
    return [b"".join(parts), *items] if parts else items


def expected(message: bytes) -> list[object]:
    """What protobuf makes of it."""
    return [Chunk.FromString(message)]


def as_protobuf_has_it(items: list[object]) -> list[object]:
    """Items, with data put back into the message that it came in."""
    return [Chunk(body=Chunk.Body(data_chunk=item)) if isinstance(item, bytes) else item for item in items]


cuts = st.lists(st.integers(0, 1 << 15), max_size=6)
first_bytes = list(range(1, 20))


@given(messages, cuts)
@example(b"\x12\x02\x0a\x00", [])  # data, but none
@example(b"\x12\x02\x0a\x00", [1, 2, 3])
@example(b"\x12\x00", [])  # a body without data
@example(b"", [])  # neither kind
@example(b"\x12\x87\x80\x80\x80\x00\x0a\x85\x80\x80\x80\x00hello", [])  # lengths in five bytes that don't fit
@example(b"\x12\x8b\x80\x80\x80\x00\x0a\x85\x80\x80\x80\x00hello", first_bytes)  # lengths in five bytes
@example(b"\x12\x8c\x80\x80\x80\x80\x00\x0a\x85\x80\x80\x80\x00hello", first_bytes)  # a length in six
@example(b"\x12\x07\x0a\x05hello\x12\x07\x0a\x05world", first_bytes)  # a body twice: the last one counts
@example(b"\x12\x09\x0a\x05hello\x18\x01", first_bytes)  # an unknown field after the data
@example(b"\x12\x09\x18\x01\x0a\x05hello", first_bytes)  # and before it
@example(b"\x12\x07\x0a\x05hello\x18\x01", first_bytes)  # and beside the body
@example(b"\x92\x00\x07\x0a\x05hello", first_bytes)  # a tag in two bytes
@example(b"\x12\x07\x0a\x05hello\x0a\x00", first_bytes)  # then a header: a message has one kind
@example(b"\x0a\x00\x12\x07\x0a\x05hello", first_bytes)
def test_any_valid_encoding_gives_what_protobuf_makes_of_it(message: bytes, cuts: list[int]) -> None:
    try:
        wanted = expected(message)
    except ProtobufDecodeError:
        with pytest.raises(DecodeError):
            decoded(ChunkDecoder(LIMIT), message, cuts)
    else:
        assert as_protobuf_has_it(decoded(ChunkDecoder(LIMIT), message, cuts)) == wanted


@given(nearly_messages, cuts)
def test_what_is_no_valid_message_is_refused_as_protobuf_does(message: bytes, cuts: list[int]) -> None:
    try:
        wanted = expected(message)
    except ProtobufDecodeError:
        with pytest.raises(DecodeError):
            decoded(ChunkDecoder(LIMIT), message, cuts)
    else:
        assert as_protobuf_has_it(decoded(ChunkDecoder(LIMIT), message, cuts)) == wanted


@given(messages, cuts)
def test_message_of_unknown_length_which_was_compressed(message: bytes, cuts: list[int]) -> None:
    assert as_protobuf_has_it(decoded(ChunkDecoder(LIMIT), message, cuts, length=-1)) == expected(message)


@given(st.lists(st.tuples(messages, cuts), max_size=5))
def test_one_message_after_the_other(stream: list[tuple[bytes, list[int]]]) -> None:
    decoder = ChunkDecoder(LIMIT)
    for message, its_cuts in stream:
        assert as_protobuf_has_it(decoded(decoder, message, its_cuts)) == expected(message)


@given(data)
def test_data_is_handed_on_where_it_lies(content: bytes) -> None:
    message = bytearray(Chunk(body=Chunk.Body(data_chunk=content or b"x")).SerializeToString())
    decoder = ChunkDecoder(LIMIT)
    decoder.begin(len(message))
    (item,) = decoder.feed(memoryview(message))
    assert isinstance(item, memoryview)
    message[-1] ^= 1
    assert bytes(item) == bytes(message[-len(item) :])
    assert not list(decoder.end())


def test_data_larger_than_any_message_that_is_collected() -> None:
    message = Chunk(body=Chunk.Body(data_chunk=bytes(LIMIT + 1))).SerializeToString()
    assert decoded(ChunkDecoder(LIMIT), message, range(0, len(message), 1 << 20)) == [bytes(LIMIT + 1)]


@pytest.mark.parametrize("length", [None, -1])
def test_message_of_another_form_is_limited(length: int | None) -> None:
    # A field that isn't known, and a body whose length isn't.
    start = varint(15 << 3 | LENGTH) if length is None else b"\x12" + varint(LIMIT + 4) + b"\x0a"
    message = start + varint(LIMIT) + bytes(LIMIT)
    with pytest.raises(RpcFailedError) as caught:
        decoded(ChunkDecoder(LIMIT), message, range(0, len(message), 1 << 20), length=length)
    assert caught.value.status.status_code is StatusCode.RESOURCE_EXHAUSTED
    assert "max_message_bytes" in caught.value.status.status_message
    fits = start + varint(1000) + bytes(1000) if length is None else b""
    assert as_protobuf_has_it(decoded(ChunkDecoder(LIMIT), fits, [], length=length)) == expected(fits)


@given(messages, st.integers(0, 12))
def test_a_longer_look_never_changes_where_the_data_starts(message: bytes, seen: int) -> None:
    early, late = data_start(message[:seen], len(message)), data_start(message[:12], len(message))
    assert late is not None
    assert early in (None, late)
