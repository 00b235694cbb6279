from __future__ import annotations

import ast
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from modelreg.storage import layout as layout_module
from modelreg.storage.layout import LONGEST_PLAIN_NAME, Layout, decode_id, encode_id, sidecar_number

any_id = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128),
    st.text("aAzZ09_-.!%~/\\ é", min_size=1, max_size=24),
    st.text("aA.%é", min_size=100, max_size=256),
).filter(lambda text: len(text.encode()) <= 512)


@given(any_id)
def test_a_name_is_reversed_or_known_to_be_too_long_for_that(model_id: str) -> None:
    name = encode_id(model_id)
    assert decode_id(name) == (None if "~" in name else model_id)


@given(any_id, any_id)
def test_different_ids_have_names_that_differ_in_more_than_case(one: str, other: str) -> None:
    assume(one != other)
    assert encode_id(one).casefold() != encode_id(other).casefold()


@given(any_id)
def test_a_name_is_safe_everywhere(model_id: str) -> None:
    name = encode_id(model_id)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.!%~")
    assert not name.startswith(".")
    assert not name.endswith(".")
    assert 1 <= len(name) <= LONGEST_PLAIN_NAME


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("cartpole_policy", "cartpole_policy"),
        ("v1.2", "v1.2"),
        (".", "%2e"),
        ("..", "%2e%2e"),
        ("../x", "%2e.%2fx"),
        ("team/Policy", "team%2f!policy"),
        ("modèle ✓", "mod%c3%a8le%20%e2%9c%93"),
        ("!a", "%21a"),
        ("%41", "%2541"),
        ("~", "%7e"),
        ("a" * 200, "a" * 200),
    ],
)
def test_names_are_a_format_that_must_not_change(model_id: str, name: str) -> None:
    assert encode_id(model_id) == name
    assert decode_id(name) == model_id


def test_a_long_id_is_named_by_its_beginning_and_its_hash() -> None:
    model_id = "é" * 256
    name = encode_id(model_id)
    assert name == ("%c3%a9" * 11)[:64] + "~" + hashlib.sha256(model_id.encode()).hexdigest()
    assert decode_id(name) is None


def test_an_id_can_not_pass_for_the_long_form_of_another() -> None:
    assert encode_id(encode_id("x" * 300)) != encode_id("x" * 300)


@pytest.mark.parametrize(
    "name", ["A", "%4", "%41", "!A", "!", "é", "%ff", "a~b", ".hidden", "%2E", "\udcff", "!\udcff"]
)
def test_what_is_no_encoded_id_is_not_decoded(name: str) -> None:
    assert decode_id(name) is None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0000000001.json", 1),
        ("4294967295.json", 4294967295),
        ("1.json", None),
        ("00000000001.json", None),
        ("0000000001.json~", None),
        ("0000000001.JSON", None),
        ("0000000001.json\n", None),
        ("-000000001.json", None),
        (" 000000001.json", None),
    ],
)
def test_sidecar_names(name: str, number: int | None) -> None:
    assert sidecar_number(name) == number


def test_a_sidecar_name_has_ascii_digits() -> None:
    assert sidecar_number("٠٠٠٠٠٠٠٠٠١.json") is None


def test_where_things_are() -> None:
    layout = Layout(Path("/archive"))
    digest = hashlib.sha256(b"").digest()
    assert str(layout.blob(digest)) == f"/archive/blobs/sha256/e3/{digest.hex()}"
    assert str(layout.model_record("A")) == "/archive/models/!a/model.json"
    assert str(layout.version_sidecar("A", 17)) == "/archive/models/!a/versions/0000000017.json"


@given(st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & set(b"/\0")).map(os.fsdecode))
@example("é" * 127)
@example("\udcff" * 255)
@example("x" + "é" * 127)
def test_every_file_finds_a_place_in_quarantine(name: str) -> None:
    place = Layout(Path("/archive")).quarantine_place(name)
    assert place.parent == Path("/archive/quarantine")
    assert len(os.fsencode(place.name)) <= 255
    place.name.encode()  # some file systems refuse a name that isn't UTF-8


def test_two_of_a_name_find_two_places_in_quarantine() -> None:
    layout = Layout(Path("/archive"))
    assert layout.quarantine_place("x") != layout.quarantine_place("x")


def test_nobody_else_builds_paths_of_names() -> None:
    package = Path(layout_module.__file__).parent
    built = [
        f"{module.name}:{node.lineno}"
        for module in package.glob("*.py")
        if module.name not in {"layout.py", "cogment.py"}  # the latter's is another archive
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant)
        and isinstance(node.right.value, str)
    ]
    assert built == []
