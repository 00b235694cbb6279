"""Takes CreateVersion's messages apart while they arrive, so that none is ever assembled. No I/O.

A chunk of data is, on the wire::

    0x12  length of Body  |  0x0a  length of data_chunk  |  data_chunk
    (CreateVersionRequestChunk.body)   (Body.data_chunk)

After these two tags and lengths every byte is data, handed on as it comes. A message of any other form (a header; no
data; fields twice, unknown or in another order) is collected and parsed by protobuf. Both ways give the same on every
valid encoding.

Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

from google.protobuf.message import DecodeError as ProtobufDecodeError

from modelreg.api.model_registry_pb2 import CreateVersionRequestChunk
from modelreg.grpc.status import Code
from modelreg.transport._purerpc import failure
from modelreg.transport.messages import DecodeError

BODY_TAG = 0x12
DATA_CHUNK_TAG = 0x0A

# Two tags and two lengths of at most five bytes each; longer ones are valid, and parsed by protobuf.
LONGEST_PREFIX = 12

Item = CreateVersionRequestChunk | memoryview


class _Form(enum.Enum):
    UNDECIDED = enum.auto()
    # A chunk of data as drawn above, past its prefix.
    DATA = enum.auto()
    OTHER = enum.auto()


class ChunkDecoder:
    """A message decoder for the transport. Its items are views of data, and whole messages of any other form.

    Arguments:
        max_message_bytes: the largest message of another form, as it has to be collected.
        parse: what parses it.
    """

    def __init__(
        self,
        max_message_bytes: int,
        parse: Callable[[bytes], CreateVersionRequestChunk] = CreateVersionRequestChunk.FromString,
    ) -> None:
        self._parse = parse
        self._max_collected = max_message_bytes
        self._length = 0
        self._form = _Form.UNDECIDED
        self._collected = bytearray()

    @property
    def passing_on(self) -> bool:
        return self._form is _Form.DATA

    @property
    def held(self) -> int:
        return len(self._collected)

    def begin(self, length: int) -> None:
        self._length = length
        self._form = _Form.UNDECIDED
        self._collected.clear()

    def feed(self, data: memoryview) -> Iterable[Item]:
        if self._form is _Form.DATA:
            return (data,)
        if self._form is _Form.UNDECIDED:
            seen = len(self._collected)
            start = data_start(bytes(self._collected) + data[: LONGEST_PREFIX - seen], self._length)
            if start:
                self._form = _Form.DATA
                return (data[start - seen :],)
            if start is not None:
                self._form = _Form.OTHER
        if len(self._collected) + len(data) > self._max_collected:
            msg = (
                "a compressed message, or one with more in it than data, is larger than max_message_bytes allows, "
                f"which is {self._max_collected}: send smaller ones"
            )
            raise failure(Code.RESOURCE_EXHAUSTED, msg)
        self._collected += data
        return ()

    def end(self) -> Iterable[Item]:
        if self._form is _Form.DATA:
            return ()
        try:
            return (self._parse(bytes(self._collected)),)
        except ProtobufDecodeError:
            raise DecodeError("the bytes are no valid CreateVersionRequestChunk") from None


def data_start(head: bytes, length: int) -> int | None:
    """Where the data starts in a message of *length* bytes that begins with *head*.

    0 where it's a message of another form, or its length isn't known (-1); None where *head* is too short to tell.
    """
    position = 0
    for tag in (BODY_TAG, DATA_CHUNK_TAG):
        if position >= len(head):
            return None if position < length else 0
        if head[position] != tag:
            return 0
        size, position = _read_varint(head, position + 1)
        if position < 0:
            return None if len(head) < min(LONGEST_PREFIX, length) else 0
        if position + size != length:
            return 0
    return position


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A base 128 varint of at most five bytes, and the position after it; -1 for one that's longer or cut short."""
    value = 0
    for shift in range(0, 35, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    return 0, -1
