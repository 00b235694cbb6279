from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.errors import InvalidArgument
from modelreg.registry.records import VersionInfo, check_model_id
from modelreg.storage.layout import decode_id, encode_id


@pytest.mark.parametrize(
    "model_id",
    ["a", ".", "..", "../x", "team/policy", "modèle ✓", " ", "\u2028", "x" * 512, "é" * 256, "\U0001f600" * 128],
)
def test_ids(model_id: str) -> None:
    check_model_id(model_id)


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("", "empty"),
        ("x" * 513, "has 513 bytes, 512 are allowed"),
        ("é" * 257, "has 514 bytes"),
        ("a\nb", "control characters"),
        ("\0", "control characters"),
        ("\x1b[31m", "control characters"),
        ("\x7f", "control characters"),
        ("\x85", "control characters"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_what_is_no_id(model_id: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_model_id(model_id)


@given(st.text(max_size=600))
def test_every_id_has_a_name_on_disk(model_id: str) -> None:
    try:
        check_model_id(model_id)
    except InvalidArgument:
        return
    assert decode_id(encode_id(model_id)) in {model_id, None}


def test_to_a_record_and_back() -> None:
    version = VersionInfo(
        model_id="m", number=3, timestamp=4, stored=True, digest=bytes(range(32)), size=5, user_data={"a": "b"}
    )
    assert VersionInfo.from_record(version.to_record()) == version
    assert version.to_record("request").request_id == "request"
