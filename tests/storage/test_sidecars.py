from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.errors import ResourceExhausted
from modelreg.storage import sidecars
from modelreg.storage.layout import Layout
from modelreg.storage.sidecars import LARGEST_RECORD, BadRecord, ModelRecord, VersionRecord
from tests.storage.surroundings import fail_file_syncs, model_record, record_of

texts = st.text(st.characters(exclude_categories=["Cs"]))
user_data = st.dictionaries(texts, texts, max_size=4)
uint64 = st.integers(0, 2**64 - 1)
versions = st.builds(
    VersionRecord,
    model_id=texts,
    version_number=st.integers(1, 2**32 - 1),
    creation_timestamp=uint64,
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    size=uint64,
    user_data=user_data,
    request_id=st.none() | texts,
)
models = st.builds(ModelRecord, model_id=texts, user_data=user_data, number_ceiling=st.integers(0, 2**32 - 1))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.tmp.mkdir()
    layout.models.mkdir()
    return layout


GOOD: dict[str, Any] = {
    "model_id": "m",
    "version_number": 1,
    "creation_timestamp": 2,
    "sha256": "0123456789abcdef" * 4,
    "size": 3,
    "user_data": {"a": "b"},
    "format": 1,
}


def changed(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


# Round trips


@given(versions)
def test_a_version_survives(record: VersionRecord) -> None:
    data = sidecars.dump(record)
    assert sidecars.parse(data, VersionRecord) == record
    assert data.decode() == json.dumps(json.loads(data), indent=2, ensure_ascii=False) + "\n"


@given(models)
def test_a_model_survives(record: ModelRecord) -> None:
    assert sidecars.parse(sidecars.dump(record), ModelRecord) == record


def test_a_record_is_a_format_that_must_not_change() -> None:
    assert sidecars.dump(sidecars.parse(changed(model_id="modèle"), VersionRecord)).decode() == (
        "{\n"
        '  "model_id": "modèle",\n'
        '  "version_number": 1,\n'
        '  "creation_timestamp": 2,\n'
        f'  "sha256": "{GOOD["sha256"]}",\n'
        '  "size": 3,\n'
        '  "user_data": {\n    "a": "b"\n  },\n'
        '  "request_id": null,\n'
        '  "format": 1\n'
        "}\n"
    )


def test_what_is_not_known_is_ignored() -> None:
    assert sidecars.parse(changed(note="by hand", deep=[[{}]]), VersionRecord).size == 3


# Bad ones


@given(st.binary())
def test_no_bytes_are_more_than_a_bad_record(data: bytes) -> None:
    with pytest.raises(BadRecord):
        sidecars.parse(data, VersionRecord)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(GOOD)), json_values)
def test_no_value_is_more_than_a_bad_record(field: str, value: object) -> None:
    try:
        record = sidecars.parse(json.dumps(GOOD | {field: value}).encode(), VersionRecord)
    except BadRecord:
        pass
    else:
        kept = getattr(record, field)
        assert kept == value
        assert type(kept) is type(value)


@given(st.data())
def test_no_cut_is_more_than_a_bad_record(data: st.DataObject) -> None:
    whole = sidecars.dump(sidecars.parse(changed(), VersionRecord))
    with pytest.raises(BadRecord):
        sidecars.parse(whole[: data.draw(st.integers(0, len(whole) - 3))], VersionRecord)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON: Expecting value"),
        (bytes(300), "not JSON: "),
        (b"\xff\xfe\x00garbage", "not JSON: "),
        (b"[" * 100_000, "not JSON: "),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not JSON: "),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "of format None, this program reads format 1"),
        (changed(format=2), "of format 2, this program reads format 1"),
        (changed(format="1"), "of format '1', this program reads format 1"),
        (changed(format=True), "$.format"),
        (changed(format=1.0), "$.format"),
        (changed(size="3"), "$.size"),
        (changed(size=3.0), "$.size"),
        (changed(size=True), "$.size"),
        (changed(size=None), "$.size"),
        (changed(size=-1), "'size' must be >= 0"),
        (changed(size=2**64), "'size' must be < 18446744073709551616"),
        (changed(creation_timestamp=-1), "'creation_timestamp' must be >= 0"),
        (changed(creation_timestamp=2**64), "'creation_timestamp' must be < 18446744073709551616"),
        (changed(version_number=0), "'version_number' must be >= 1"),
        (changed(model_id=7), "expected str, found int @ $.model_id"),
        (changed(sha256="0" * 63), "sha256 must be 64 hexadecimal digits"),
        (changed(sha256="0" * 63 + "A"), "sha256 must be 64 hexadecimal digits"),
        (changed(sha256="0" * 31 + "/x" + "0" * 31), "sha256 must be 64 hexadecimal digits"),
        (changed(sha256=7), "$.sha256"),
        (changed(user_data=[]), "expected an object whose values are strings @ $.user_data"),
        (changed(user_data={"a": 1}), "expected an object whose values are strings @ $.user_data"),
        (changed(user_data={"a": {"b": "c"}}), "expected an object whose values are strings @ $.user_data"),
        (changed(model_id="\ud800"), "not JSON: "),
        (changed(user_data={"\udfff": ""}), "not JSON: "),
        (changed(model_id="?").replace(b"?", b"\xed\xa0\x80"), "not JSON: "),
        (changed(model_id="?").decode().replace("?", "\ud800").encode("utf-16", "surrogatepass"), "not JSON: "),
        (changed(format=[[[[[[[["deep"]]]]]]]]), "of format [[[[[[[...]]]]]]], this"),
        (changed(size="?").replace(b'"?"', b"9" * 4000), "'size' must be < 18446744073709551616: 9"),
        (changed(size="?").replace(b'"?"', b"9" * 5000), ""),
        (changed(size="?").replace(b'"?"', b"NaN"), "$.size"),
    ],
)
def test_a_bad_version_record_says_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(BadRecord) as caught:
        sidecars.parse(data, VersionRecord)
    assert message in str(caught.value)
    assert "cattrs" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("field", sorted(set(GOOD) - {"format"}))
def test_a_missing_field_is_named(field: str) -> None:
    document = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(BadRecord, match=f"required field missing @ \\$\\.{field}"):
        sidecars.parse(json.dumps(document).encode(), VersionRecord)


def test_every_fault_is_named() -> None:
    with pytest.raises(BadRecord) as caught:
        sidecars.parse(changed(size="3", user_data=None), VersionRecord)
    assert "$.size; " in str(caught.value)
    assert "$.user_data" in str(caught.value)


@pytest.mark.parametrize("ceiling", [-1, "0", None, 1.5, False])
def test_a_bad_ceiling(ceiling: object) -> None:
    document = {"model_id": "m", "user_data": {}, "number_ceiling": ceiling, "format": 1}
    with pytest.raises(BadRecord, match="number_ceiling"):
        sidecars.parse(json.dumps(document).encode(), ModelRecord)


# Files that are no files


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(changed())
    path.symlink_to(target)


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST_RECORD + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_fifo, "not a regular file"),
        (make_socket, "not a regular file"),
        (Path.mkdir, "not a regular file"),
        (make_huge, "33554433 bytes are more than a record can have"),
    ],
)
@pytest.mark.usefixtures("no_descriptor_left")
def test_only_regular_files_of_moderate_size_are_read(
    make: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path("record.json"))
    with pytest.raises(BadRecord, match=message):
        sidecars.read(Path("record.json"), VersionRecord)


@pytest.mark.parametrize("make", [make_link, make_loop])
@pytest.mark.usefixtures("no_descriptor_left")
def test_a_symbolic_link_is_not_followed(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    make(path)
    with pytest.raises(OSError, match="it's a symbolic link") as caught:
        sidecars.read(path, VersionRecord)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(path))


def test_a_missing_file_is_no_bad_record(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sidecars.read(tmp_path / "record.json", VersionRecord)


# Writing


def test_a_models_record_makes_its_directories_and_replaces_the_former(layout: Layout) -> None:
    sidecars.write_model(layout, model_record("a/b", 1))
    sidecars.write_model(layout, model_record("a/b", 101))
    assert sidecars.read(layout.model_record("a/b"), ModelRecord) == model_record("a/b", 101)
    assert not list(layout.tmp.iterdir())


def test_a_versions_record_replaces_none(layout: Layout) -> None:
    sidecars.write_model(layout, model_record("m"))
    first = record_of("m", 1, b"first")
    sidecars.write_version(layout, first)
    with pytest.raises(FileExistsError):
        sidecars.write_version(layout, record_of("m", 1, b"second"))
    path = layout.version_sidecar("m", 1)
    assert sidecars.read(path, VersionRecord) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not list(layout.tmp.iterdir())


def test_a_record_that_can_not_be_synced_is_not_there(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecars.write_model(layout, model_record("m"))
    fail_file_syncs(monkeypatch)
    with pytest.raises(OSError) as caught:
        sidecars.write_version(layout, record_of("m", 1, b""))
    assert caught.value.errno == errno.EIO
    assert not layout.version_sidecar("m", 1).exists()
    assert not list(layout.tmp.iterdir())


def test_a_record_too_large_to_be_read_again_is_not_written(layout: Layout) -> None:
    sidecars.write_model(layout, model_record("m"))
    with pytest.raises(ResourceExhausted, match="user data"):
        sidecars.write_model(layout, ModelRecord(model_id="m", user_data={"x": "x" * LARGEST_RECORD}, number_ceiling=1))
    assert sidecars.read(layout.model_record("m"), ModelRecord) == model_record("m")
    assert not list(layout.tmp.iterdir())
