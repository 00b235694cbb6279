"""The constant header blocks, read by hpack."""

from __future__ import annotations

from urllib.parse import unquote

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.transport import frames, replies


def decode(block: bytes) -> list[tuple[str, str]]:
    decoder = hpack.Decoder()
    fields = [(str(name), str(value)) for name, value in decoder.decode(block)]
    assert not decoder.header_table.dynamic_entries
    return fields


def test_response() -> None:
    assert decode(replies.TABLE_SIZE_ZERO + replies.RESPONSE) == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
    ]


def test_trailers() -> None:
    assert decode(replies.trailers(0, "")) == [("grpc-status", "0")]
    assert decode(replies.trailers(16, "")) == [("grpc-status", "16")]
    assert decode(replies.trailers(5, "100% ✓\n")) == [("grpc-status", "5"), ("grpc-message", "100%25 %E2%9C%93%0A")]


@pytest.mark.parametrize("status", [200, 400, 405, 415])
def test_trailers_only(status: int) -> None:
    fields = dict(decode(replies.trailers_only(3, "no", status)))
    assert fields[":status"] == str(status)
    assert fields["grpc-status"] == "3"
    assert fields["grpc-message"] == "no"
    assert fields.get("allow") == ("POST" if status == 405 else None)


@given(st.text(max_size=200))
def test_messages_come_back(text: str) -> None:
    encoded = replies.percent_encode(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote(encoded.decode()) == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("size", [1, 126, 127, 128, 254, 255, 5000])
def test_long_messages_are_cut(size: int) -> None:
    block = replies.trailers(3, "x" * size)
    assert decode(block)[1] == ("grpc-message", "x" * min(size, replies.MAX_STATUS_MESSAGE))


def test_a_cut_never_splits_an_escape() -> None:
    assert replies.percent_encode("✓" * 1000).endswith(b"%E2%9C") or len(replies.percent_encode("✓" * 1000)) % 3 == 0


def test_headers_frame() -> None:
    frame = replies.headers_frame(5, b"block", end_stream=True)
    assert frame == b"\0\0\5" + bytes([frames.HEADERS, frames.END_HEADERS | frames.END_STREAM]) + b"\0\0\0\5block"
