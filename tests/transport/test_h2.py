"""The HPACK decoder that replaces hpack's, against hpack's."""

from __future__ import annotations

import time

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.transport._h2 import _Decoder
from modelreg.transport.faults import ConnectionFault, ErrorCode
from tests.support.h2client import literal

LIMIT = 16384
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b":method", b":path", b"te", b"user-agent", b"x-name", b"cookie"])
        | st.binary(min_size=1, max_size=200),
        st.binary(max_size=300),
    ),
    max_size=12,
)


@given(st.lists(st.tuples(FIELDS, st.booleans()), max_size=6))
def test_decodes_what_hpack_encodes(lists: list[tuple[list[tuple[bytes, bytes]], bool]]) -> None:
    encoder = hpack.Encoder()
    decoder = _Decoder(1 << 20)
    for fields, huffman in lists:
        assert decoder.decode(encoder.encode(fields, huffman=huffman)) == fields


def test_a_block_is_remembered_until_the_table_changes() -> None:
    encoder = hpack.Encoder()
    decoder = _Decoder(LIMIT)
    fields = [(b":method", b"POST"), (b"x-one", b"1")]
    decoder.decode(encoder.encode(fields))
    block = encoder.encode(fields)
    first = decoder.decode(block)
    assert decoder.decode(block) is first
    decoder.decode(encoder.encode([(b"x-two", b"2")]))  # shifts every index of the dynamic table
    again = encoder.encode(fields)
    assert again != block
    assert decoder.decode(again) == fields
    assert decoder.decode(block) != fields


@given(st.binary(max_size=200))
def test_garbage_is_a_compression_error_or_some_fields(garbage: bytes) -> None:
    try:
        _Decoder(LIMIT).decode(garbage)
    except ConnectionFault:
        pass


@given(st.binary(max_size=60))
def test_garbage_is_understood_as_hpack_does(garbage: bytes) -> None:
    try:
        expected = hpack.Decoder(LIMIT).decode(garbage, raw=True)
    except Exception:  # noqa: BLE001 - hpack lets out more than its own
        expected = None
    try:
        found = _Decoder(LIMIT).decode(garbage)
    except ConnectionFault:
        return  # an integer of more than five bytes, say
    if expected is not None:
        assert found == expected


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\x80\x80\x80\x80\x80\x80\x01",  # an integer without end
        b"\xfe",  # an index that is not there
        b"\x00\x05ab",  # truncated
        b"\x00\x82\xff\xff\x00",  # Huffman padding of more than seven bits
        b"\x82\x20",  # table size after a field
        b"\x3f\xff\xff\x7f",  # table larger than allowed
        b"\x40",
    ],
)
def test_errors(block: bytes) -> None:
    with pytest.raises(ConnectionFault) as caught:
        _Decoder(LIMIT).decode(block)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


def test_a_bomb() -> None:
    """Row 21: a large entry of the table, named again and again by one byte."""
    decoder = _Decoder(LIMIT)
    decoder.decode(b"\x40" + literal(b"x" * 100, b"y" * 3000)[1:])
    start = time.process_time()
    with pytest.raises(ConnectionFault) as caught:
        decoder.decode(b"\xbe" * 16000)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM
    assert time.process_time() - start < 0.05


def test_a_long_integer_costs_nothing() -> None:
    start = time.process_time()
    with pytest.raises(ConnectionFault):
        _Decoder(LIMIT).decode(b"\x7f" + b"\xff" * 16000)
    assert time.process_time() - start < 0.05
