from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.storage.digests import from_base64, to_base64

TEXT = "Om6weQ85rIfJTzhWst0sXREOaBFgImGpqSPTuyOtyLc="  # of b"data"


def test_as_text() -> None:
    assert to_base64(hashlib.sha256(b"data").digest()) == TEXT


@given(st.binary(min_size=32, max_size=32))
def test_there_and_back(digest: bytes) -> None:
    assert from_base64(to_base64(digest)) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        TEXT[:-1],
        TEXT + "=",
        TEXT + "AAAA",
        " " + TEXT,
        TEXT[:-2] + "d=",  # bits set that are no one's
        "A" * 44,  # 33 bytes
        "-_" + "A" * 41 + "=",  # the alphabet of URLs
        "é" * 44,
        hashlib.sha256(b"data").hexdigest(),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        from_base64(text)
