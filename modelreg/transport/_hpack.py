"""hpack 3.0.0's decoder (RFC 7541), typed and bounded: the second module that knows a library's insides, beside `_h2`.

What is replaced, and why:

- The integers of hpack's decoder have no bound, and 16 KiB of 0xff cost it 100 ms. These end after five bytes.
- A client repeats its header blocks: all fields are in the dynamic table after the first call. So the decoder remembers
  blocks for as long as the table is unchanged. `HeaderList` carries what was made of the fields, so a request is parsed
  once, too. This is a third of the cost of a small call.
- A list larger than `max_size` costs its stream, not the connection. Its fields are dropped, but the rest of the block is
  still decoded, as the dynamic table has to follow the client's. A string that can be neither a field nor an entry of the
  table is skipped, so that no Huffman code of more than 3.75 * `max_size` bytes is decoded.
- A block is decoded in steps of `STEP` bytes: 256 KiB of references take 60 ms.
"""

from __future__ import annotations

import hpack.table
from hpack.exceptions import HPACKDecodingError, HPACKError
from hpack.huffman_table import decode_huffman

from .faults import ConnectionFault, ErrorCode

STEP = 2048
"""Bytes of a block that are decoded before the caller looks at the clock: up to 0.7 ms."""

MAX_KNOWN_BLOCKS = 64
MAX_KNOWN_SIZE = 4096
"""Of one block that is remembered, in bytes of its fields ..."""

MAX_KNOWN_SIZES = 64 * 1024
"""... and of all that a connection has."""

_LONGEST_CODE = 30
"""Bits of the longest Huffman code (RFC 7541, appendix B)."""

_OVERHEAD = 32
"""What a field, or an entry of the table, counts beside its name and value (RFC 7541, section 4.1)."""


class HeaderList(list[tuple[bytes, bytes]]):
    """The fields of a header block, and what `requests` made of them.

    Attributes:
        size: as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113, section 6.5.2).
        too_large: the list is larger than allowed, and its fields were dropped.
    """

    __slots__ = ("parsed", "size", "too_large")

    def __init__(self) -> None:
        super().__init__()
        self.parsed: object = None
        self.size = 0
        self.too_large = False


class Block:
    """A header block on its way through the decoder.

    Attributes:
        fields: complete once `Decoder.go_on` has returned True.
        work: bytes of fields decoded so far.
    """

    __slots__ = ("changed", "data", "fields", "pos", "work")

    def __init__(self, data: bytes, fields: HeaderList) -> None:
        self.fields = fields
        self.work = 0
        self.data = data
        self.pos = 0
        self.changed = False  # the dynamic table


def _integer(data: bytes, pos: int, mask: int) -> tuple[int, int]:
    """An HPACK integer (RFC 7541, section 5.1) of at most five bytes, and the position after it."""
    number = data[pos] & mask
    pos += 1
    if number < mask:
        return number, pos
    for shift in (0, 7, 14, 21):
        byte = data[pos]
        pos += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, pos
    raise HPACKDecodingError("integer too large")


def _string(data: bytes, pos: int, room: int) -> tuple[bytes | None, int]:
    """An HPACK string (RFC 7541, section 5.2), and the position after it; None for one that is certainly longer than `room`."""
    huffman = data[pos] & 0x80
    length, pos = _integer(data, pos, 0x7F)
    end = pos + length
    if end > len(data):
        raise HPACKDecodingError("truncated header block")
    if not huffman:
        return data[pos:end], end
    if length * 8 // _LONGEST_CODE > room:
        return None, end
    return decode_huffman(data[pos:end]), end


class Decoder:
    """The decoder of one connection. Raises `ConnectionFault` (COMPRESSION_ERROR) for what isn't HPACK."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._table = hpack.table.HeaderTable()
        self._max_table_size: int = self._table.maxsize
        self._known: dict[bytes, HeaderList] = {}
        self._known_size = 0

    def known(self, data: bytes) -> HeaderList | None:
        """The fields of a whole header block, if it is remembered."""
        return self._known.get(data)

    def begin(self, data: bytes) -> Block:
        """Take in a whole header block that isn't `known`. No other may begin before `go_on` has said that this one is done."""
        return Block(data, HeaderList())

    def go_on(self, block: Block) -> bool:
        """Decode up to `STEP` bytes of a block, or a string that is longer; True when nothing is left."""
        data = block.data
        try:
            self._step(block, data)
        except IndexError:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "truncated header block") from None
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        if block.pos < len(data):
            return False
        self._remember(block, data)
        return True

    def _step(self, block: Block, data: bytes) -> None:
        table = self._table
        fields = block.fields
        size = fields.size
        pos = block.pos
        stop = min(len(data), pos + STEP)
        while pos < stop:
            first = data[pos]
            if first & 0x80:  # indexed field
                index, pos = _integer(data, pos, 0x7F)
                field = table.get_by_index(index)
                size += _OVERHEAD + len(field[0]) + len(field[1])
            elif first & 0xE0 == 0x20:  # size of the dynamic table
                if size:
                    raise HPACKDecodingError("table size update not at the start of the block")
                new_size, pos = _integer(data, pos, 0x1F)
                if new_size > self._max_table_size:
                    raise HPACKDecodingError("dynamic table too large")
                table.maxsize = new_size
                block.changed = True
                continue
            else:
                indexing = first & 0x40
                room = max(self._max_size - size, table.maxsize if indexing else 0)
                index, pos = _integer(data, pos, 0x3F if indexing else 0x0F)
                name: bytes | None
                if index:
                    name = table.get_by_index(index)[0]
                else:
                    name, pos = _string(data, pos, room)
                value, pos = _string(data, pos, room)
                # What isn't decoded is larger than both the list and the table allow, and so is what takes its place.
                field = (b"", bytes(room + 1)) if name is None or value is None else (name, value)
                size += _OVERHEAD + len(field[0]) + len(field[1])
                if indexing:
                    table.add(*field)
                    block.changed = True
            if size <= self._max_size:
                fields.append(field)
            elif fields:
                fields.clear()
        block.work = size
        block.pos = pos
        fields.size = size
        fields.too_large = size > self._max_size

    def _remember(self, block: Block, data: bytes) -> None:
        """Keep the fields of a block that is done, or forget all where it has changed what the others mean."""
        size = block.fields.size
        if block.changed:
            self._known.clear()
            self._known_size = 0
        elif (
            len(self._known) < MAX_KNOWN_BLOCKS
            and size <= MAX_KNOWN_SIZE
            and self._known_size + size <= MAX_KNOWN_SIZES
        ):
            self._known[data] = block.fields
            self._known_size += size
