"""The HPACK decoder that replaces hpack's, against hpack's."""

from __future__ import annotations

import time

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.transport import _hpack
from modelreg.transport._hpack import STEP, HeaderList
from modelreg.transport.faults import ConnectionFault, ErrorCode
from tests.support.h2client import length, literal

LIMIT = 16384
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b":method", b":path", b"te", b"user-agent", b"x-name", b"cookie"])
        | st.binary(min_size=1, max_size=200),
        st.binary(max_size=300),
    ),
    max_size=12,
)


class Decoder(_hpack.Decoder):
    def decode(self, data: bytes) -> HeaderList:
        """Decode a whole block."""
        if (known := self.known(data)) is not None:
            return known
        block = self.begin(data)
        while not self.go_on(block):
            pass
        return block.fields


@given(st.lists(st.tuples(FIELDS, st.booleans()), max_size=6))
def test_decodes_what_hpack_encodes(lists: list[tuple[list[tuple[bytes, bytes]], bool]]) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder(1 << 20)
    for fields, huffman in lists:
        assert decoder.decode(encoder.encode(fields, huffman=huffman)) == fields


def test_a_block_is_remembered_until_the_table_changes() -> None:
    encoder = hpack.Encoder()
    decoder = Decoder(LIMIT)
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
        Decoder(LIMIT).decode(garbage)
    except ConnectionFault:
        pass


@given(st.binary(max_size=60))
def test_garbage_is_understood_as_hpack_does(garbage: bytes) -> None:
    try:
        expected = hpack.Decoder(LIMIT).decode(garbage, raw=True)
    except Exception:  # noqa: BLE001 - hpack lets out more than its own
        expected = None
    try:
        found = Decoder(LIMIT).decode(garbage)
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
        Decoder(LIMIT).decode(block)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


def test_a_bomb() -> None:
    """Row 21: a large entry of the table, named again and again by one byte."""
    decoder = Decoder(LIMIT)
    decoder.decode(b"\x40" + literal(b"x" * 100, b"y" * 3000)[1:])
    start = time.process_time()
    fields = decoder.decode(b"\xbe" * 16000)
    assert time.process_time() - start < 0.05
    assert fields.too_large
    assert not fields


# More than LIMIT, and each changes the table in another way.
TOO_LARGE: list[list[tuple[bytes, ...]]] = [
    [(b"x-%d" % number, b"\xff" * 50) for number in range(500)],
    [(b"x-long", b"\xff" * 40_000), (b"x-after", b"1")],
    [(b"\xfe" * 40_000, b"\xff" * 40_000), (b"x-behind", b"2")],
    [(b"x-short", b"1"), (b"x-sensitive", b"\xff" * 60_000, True), (b"x-last", b"3")],  # type: ignore[list-item]
]


@pytest.mark.parametrize("huffman", [False, True])
def test_a_list_that_is_too_large_leaves_the_table_as_the_peer_has_it(huffman: bool) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder(LIMIT)
    for number, fields in enumerate(TOO_LARGE):
        kept = [(b"x-kept-%d" % number, b"value"), (b"x-also", b"%d" % number)]
        assert decoder.decode(encoder.encode(kept)) == kept
        found = decoder.decode(encoder.encode(fields, huffman=huffman))
        assert found.too_large
        assert not found
        known = [(b"x-after", b"1"), (b"x-behind", b"2"), (b"x-last", b"3"), (b"x-499", b"\xff" * 50), *kept]
        assert decoder.decode(encoder.encode(known)) == known


def test_a_large_block_is_decoded_in_steps() -> None:
    decoder = Decoder(LIMIT)
    block = decoder.begin(b"\x82" * 10 * STEP)
    steps = [decoder.go_on(block) for _ in range(10)]
    assert steps == [False] * 9 + [True]
    assert block.fields.too_large


def test_a_string_that_is_of_no_use_is_not_decoded() -> None:
    """A Huffman code of 250 KiB takes 30 ms, in one step: this one is larger than list and table."""
    start = time.process_time()
    fields = Decoder(LIMIT).decode(b"\x40" + b"\x01a" + b"\xff" + hpack_integer(250_000 - 127) + b"\x00" * 250_000)
    assert fields.too_large
    assert time.process_time() - start < 0.01


def hpack_integer(number: int) -> bytes:
    """What follows the first byte of an integer that is filled with ones."""
    return length(number + 127)[1:]


def test_a_long_integer_costs_nothing() -> None:
    start = time.process_time()
    with pytest.raises(ConnectionFault):
        Decoder(LIMIT).decode(b"\x7f" + b"\xff" * 16000)
    assert time.process_time() - start < 0.05
