from __future__ import annotations

from pathlib import Path

import pytest

from modelreg.storage import cogment
from modelreg.storage.cogment import BadEntry, VersionFile

HASH = "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI="
RECORD = f"""\
model_id: policy
version_number: 3
creation_timestamp: 2026-11-20T13:53:43.585691579Z
data_hash: {HASH}
data_size: 14
user_data:
  step: "007"
  yes: no
  multi: |-
    line one
    line two
"""


def write(directory: Path, name: str, text: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    return path


def test_a_version_is_read_as_it_was_written(tmp_path: Path) -> None:
    version = VersionFile(write(tmp_path, "policy-v000003.yaml", RECORD)).read()
    assert version.number == 3
    assert version.timestamp == 1795182823_585691579
    assert version.digest.hex() == "8d8d20dd59142bad882cfaf626e696e60eee422d0470955926ef08629df27e12"
    assert version.size == 14
    assert version.user_data == {"step": "007", "yes": "no", "multi": "line one\nline two"}
    assert version.path == tmp_path / "policy-v000003.data"


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.907957639Z", 907_957_639),
        ("1970-01-01T00:00:00.5Z", 500_000_000),
        ("1970-01-01T02:00:01+02:00", 1_000_000_000),
    ],
)
def test_timestamps_keep_their_nanoseconds(tmp_path: Path, text: str, nanoseconds: int) -> None:
    record = RECORD.replace("2026-11-20T13:53:43.585691579Z", text)
    assert VersionFile(write(tmp_path, "policy-v000003.yaml", record)).read().timestamp == nanoseconds


@pytest.mark.parametrize(
    ("was", "becomes", "complaint"),
    [
        ("version_number: 3", "version_number: 4", "is the record of version 4"),
        ("version_number: 3", "version_number: three", "version_number is 'three'"),
        ("version_number: 3\n", "", "version_number is missing"),
        ("2026-11-20T13:53:43.585691579Z", "yesterday", "creation_timestamp is 'yesterday'"),
        ("2026-11-20", "2026-13-20", "not a time"),
        ("2026-11-20", "1969-12-31", "have to fit in 64 bits"),
        (HASH, HASH[:-4], "data_hash"),
        ("data_size: 14", "data_size: -14", "data_size is '-14'"),
        ('step: "007"', "step: [1]", "user_data isn't a map of texts"),
        (RECORD, "- a list", "isn't a record"),
        (RECORD, "{", "can't be read"),
        (RECORD, "\0", "can't be read"),
    ],
)
def test_a_bad_record_says_what_is_wrong(tmp_path: Path, was: str, becomes: str, complaint: str) -> None:
    path = write(tmp_path, "policy-v000003.yaml", RECORD.replace(was, becomes))
    with pytest.raises(BadEntry, match=complaint):
        VersionFile(path).read()


def test_models_are_directories_with_a_record_of_their_name(tmp_path: Path) -> None:
    write(tmp_path / "b", "b.yaml", "model_id: b\nuser_data: {}\n")
    write(tmp_path / "a", "a.yaml", "model_id: a\nuser_data: {x: y}\n")
    write(tmp_path / "other", "notes.yaml", "")
    write(tmp_path, "file", "")
    for name in ("a-v000010.yaml", "a-v000002.yaml", "a-v1000000.yaml", "b-v000001.yaml", "a-v000002.data"):
        write(tmp_path / "a", name, "")
    directories = cogment.model_directories(tmp_path)
    assert [directory.name for directory in directories] == ["a", "b"]
    model = directories[0].read()
    assert (model.model_id, model.user_data) == ("a", {"x": "y"})
    assert [version.path.name for version in model.versions] == ["a-v000002.yaml", "a-v000010.yaml", "a-v1000000.yaml"]
