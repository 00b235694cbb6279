"""What nothing refers to: found, and deleted when told to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelreg.errors import ArchiveInUse, ArchiveUnusable
from modelreg.storage import leftovers, lock, sidecars
from modelreg.storage.layout import Layout
from modelreg.storage.sidecars import ModelRecord, VersionRecord
from tests.storage.surroundings import plain_user, quick_directory

# Names as the registry gives them.
GOING, HALF, LINK = "a" * 32, "b" * 32, "c" * 32


def add_blob(layout: Layout, content: bytes) -> Path:
    path = layout.blob(hashlib.sha256(content).digest())
    path.write_bytes(content)
    return path


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_directory() as path:  # which other users can reach
        yield path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An archive with one version, and one of everything that can go."""
    result = Layout(tmp_path / "archive")
    lock.take(result).close()
    sidecars.write_model(result, ModelRecord(model_id="m", user_data={}, number_ceiling=0))
    digest = add_blob(result, b"wanted").name
    record = VersionRecord(model_id="m", version_number=1, creation_timestamp=0, sha256=digest, size=6, user_data={})
    sidecars.write_version(result, record)
    add_blob(result, b"unwanted")
    (result.tmp / HALF).write_bytes(b"half")
    (result.tmp / GOING / "versions").mkdir(parents=True)
    (result.tmp / GOING / "model.json").write_bytes(b"{}")
    (result.tmp / LINK).symlink_to("/etc")
    (result.tmp / "somebody else's").touch()
    return result


def names(layout: Layout) -> set[str]:
    return {path.name for path in layout.root.rglob("*") if not path.is_dir()}


def test_it_says_what_can_go(layout: Layout) -> None:
    before = names(layout)
    with leftovers.open_leftovers(layout.root) as found:
        assert [(each.kind, Path(each.path).name[:5], each.size) for each in found.found] == [
            ("blob", hashlib.sha256(b"unwanted").hexdigest()[:5], 8),
            ("unfinished", GOING[:5], 2),
            ("unfinished", HALF[:5], 4),
            ("unfinished", LINK[:5], 4),
        ]
        assert found.records_in_quarantine == 0
        with pytest.raises(ArchiveInUse):
            lock.take(layout)
    assert names(layout) == before


def test_it_deletes_just_that(layout: Layout) -> None:
    with leftovers.open_leftovers(layout.root) as found:
        leftovers.delete(found)
    assert names(layout) == {
        "FORMAT",
        "LOCK",
        "model.json",
        "0000000001.json",
        "somebody else's",
        hashlib.sha256(b"wanted").hexdigest(),
    }
    assert Path("/etc").is_dir()
    with leftovers.open_leftovers(layout.root) as found:
        assert found.found == []


def test_not_beside_a_server(layout: Layout) -> None:
    taken = lock.take(layout)
    try:
        with pytest.raises(ArchiveInUse), leftovers.open_leftovers(layout.root):
            pytest.fail("it must not")
    finally:
        taken.close()


def test_not_where_records_cannot_be_read(layout: Layout) -> None:
    layout.version_sidecar("m", 1).write_bytes(b"")
    with pytest.raises(ArchiveUnusable, match="modelreg verify"), leftovers.open_leftovers(layout.root):
        pytest.fail("it must not")


@pytest.mark.parametrize("name", ["models/m/versions/0000000001.json", "models/m/versions", "models/m"])
def test_not_where_records_may_not_be_read(name: str, layout: Layout) -> None:
    path = layout.root / name
    mode = path.stat().st_mode
    with plain_user(layout.root.parent):
        path.chmod(0)
        with pytest.raises(ArchiveUnusable, match="Permission denied: give"), leftovers.open_leftovers(layout.root):
            pytest.fail("it must not")
        path.chmod(mode)


def test_not_where_a_model_is_elsewhere(layout: Layout, tmp_path: Path) -> None:
    layout.model("m").rename(tmp_path / "elsewhere")
    layout.model("m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArchiveUnusable, match="it's a symbolic link"), leftovers.open_leftovers(layout.root):
        pytest.fail("it must not")


def test_it_tells_of_records_in_quarantine(layout: Layout) -> None:
    (layout.quarantine / "m+versions+0000000009.json.0123456789ab").touch()
    (layout.quarantine / f"{'0' * 64}.0123456789ab").touch()
    with leftovers.open_leftovers(layout.root) as found:
        assert found.records_in_quarantine == 1
