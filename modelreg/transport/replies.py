"""What a gRPC server answers with, as HPACK blocks (gRPC over HTTP/2, "Responses"; RFC 7541, section 6.2.2).

A server sends the same few fields again and again: they are literals without indexing, so a block depends on nothing
that was sent before and is computed once. As the dynamic table is never used, its size is set to 0 with the first block
of a connection (`TABLE_SIZE_ZERO`), which answers any SETTINGS_HEADER_TABLE_SIZE the client may send.
"""

from __future__ import annotations

import re
import struct

from . import frames
from .messages import PREFIX_SIZE

TABLE_SIZE_ZERO = b"\x20"
ACCEPTED_ENCODINGS = b"identity,deflate,gzip"
MAX_STATUS_MESSAGE = 2048
"""Bytes of a grpc-message after encoding: clients refuse trailers over 8 KiB, and nobody reads that far."""

_STATUS_INDEX = 8  # of :status in the static table
_CONTENT_TYPE_INDEX = 31


def _length(size: int) -> bytes:
    """An HPACK string length (no Huffman coding) of up to 16 KiB."""
    if size < 127:
        return bytes((size,))
    size -= 127
    return bytes((127, size)) if size < 128 else bytes((127, size & 0x7F | 0x80, size >> 7))


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


_NOT_PRINTABLE = re.compile(rb"[^ -$&-~]")


def percent_encode(message: str) -> bytes:
    """grpc-message: UTF-8, with everything but printable ASCII, and %, as %XX (the "Percent-Encoded" rule)."""
    text = message[:MAX_STATUS_MESSAGE].encode("utf-8", "replace")
    encoded = _NOT_PRINTABLE.sub(lambda found: b"%%%02X" % ord(found[0]), text)[:MAX_STATUS_MESSAGE]
    cut = encoded.rfind(b"%", -2)  # an escape that lost its end
    return encoded if cut < 0 else encoded[:cut]


_CONTENT_TYPE = b"\x0f" + bytes((_CONTENT_TYPE_INDEX - 15,)) + _length(16) + b"application/grpc"
_ACCEPT = _literal(b"grpc-accept-encoding", ACCEPTED_ENCODINGS)
RESPONSE = b"\x88" + _CONTENT_TYPE + _ACCEPT
TRAILERS_OK = _literal(b"grpc-status", b"0")


def trailers(code: int, message: str) -> bytes:
    """The fields that end a reply."""
    if code == 0:
        return TRAILERS_OK
    block = _literal(b"grpc-status", str(code).encode("ascii"))
    return block + _literal(b"grpc-message", percent_encode(message)) if message else block


def trailers_only(code: int, message: str, http_status: int = 200) -> bytes:
    """A whole reply in one block, for a call that fails before its first message."""
    if http_status == 200:
        start = RESPONSE
    else:
        status = str(http_status).encode("ascii")
        start = bytes((_STATUS_INDEX,)) + _length(len(status)) + status + _CONTENT_TYPE + _ACCEPT
        if http_status == 405:
            start += _literal(b"allow", b"POST")
    return start + trailers(code, message)


_BEGINNING = struct.Struct(f">HBBBL{len(RESPONSE)}sHBBBLBL")  # two frame headers, and the prefix of a message


def beginning(stream_id: int, size: int) -> bytes:
    """The bytes before the message of a small reply: HEADERS, the header of a DATA frame of `size` bytes, and the prefix."""
    return _BEGINNING.pack(
        *(0, len(RESPONSE), frames.HEADERS, frames.END_HEADERS, stream_id),
        RESPONSE,
        *(size >> 8, size & 0xFF, frames.DATA, 0, stream_id),
        *(0, size - PREFIX_SIZE),
    )


def headers_frame(stream_id: int, block: bytes, end_stream: bool) -> bytes:
    """A HEADERS frame; no block made here is ever longer than the smallest frame size a peer may ask for."""
    flags = frames.END_HEADERS | (frames.END_STREAM if end_stream else 0)
    return frames.frame_header(len(block), frames.HEADERS, flags, stream_id) + block
