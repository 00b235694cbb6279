"""Importing an archive that the Cogment Model Registry wrote."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from contextlib import aclosing
from pathlib import Path

from modelreg.log import silent_logger
from modelreg.registry.importing import Entry, Outcome, import_cogment
from modelreg.registry.records import VersionInfo
from modelreg.registry.registry import open_registry
from modelreg.storage.archive import open_archive
from modelreg.storage.cogment import model_directories


def add_model(root: Path, model_id: str, user_data: str = "{}") -> None:
    (root / model_id).mkdir(parents=True)
    (root / model_id / f"{model_id}.yaml").write_text(f"model_id: {model_id}\nuser_data: {user_data}\n")


def add_version(root: Path, model_id: str, number: int, content: bytes) -> Path:
    stem = root / model_id / f"{model_id}-v{number:06d}"
    data_hash = base64.b64encode(hashlib.sha256(content).digest()).decode()
    data = stem.with_suffix(".data")
    data.write_bytes(content)
    stem.with_suffix(".yaml").write_text(
        f"model_id: {model_id}\nversion_number: {number}\ncreation_timestamp: 1970-01-01T00:00:00.00000000{number}Z\n"
        f"data_hash: {data_hash}\ndata_size: {len(content)}\nuser_data:\n  number: '{number}'\n"
    )
    return data


async def run_import(source: Path, target: Path) -> list[Entry]:
    async with (
        open_archive(target, silent_logger()) as archive,
        aclosing(import_cogment(model_directories(source), archive)) as entries,
    ):
        return [entry async for entry in entries]


async def contents(target: Path) -> dict[str, dict[int, tuple[VersionInfo, bytes]]]:
    """What a registry on the directory serves."""
    found: dict[str, dict[int, tuple[VersionInfo, bytes]]] = {}
    async with (
        open_archive(target, silent_logger()) as archive,
        open_registry(archive, cache_max_items=10, cache_max_bytes=1 << 20) as registry,
    ):
        for model in registry.models():
            versions = found[model.model_id] = {}
            for version in registry.versions(model.model_id):
                async with registry.read(model.model_id, version.number) as reader:
                    if reader.fd is None:
                        data = await reader.load()
                    else:
                        await reader.check(version.size)
                        data = os.pread(reader.fd, version.size, 0)
                versions[version.number] = (version, data)
    return found


def outcomes(entries: list[Entry]) -> list[tuple[str, int | None, str]]:
    return [(entry.model_id, entry.number, entry.outcome.value) for entry in entries]


async def test_everything_is_taken_over_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "old", tmp_path / "new"
    large = bytes(range(256)) * 4000
    add_model(source, "policy", "{note: 'a: b'}")
    add_version(source, "policy", 1, b"one")
    add_version(source, "policy", 3, b"")
    add_version(source, "policy", 4, large)
    add_model(source, "modèle ✓")
    entries = await run_import(source, target)
    assert {entry.outcome for entry in entries} == {Outcome.IMPORTED}
    found = await contents(target)
    assert sorted(found) == ["modèle ✓", "policy"]
    assert {number: data for number, (_, data) in found["policy"].items()} == {1: b"one", 3: b"", 4: large}
    version, _ = found["policy"][4]
    assert (version.timestamp, version.size, version.user_data) == (4, len(large), {"number": "4"})
    assert version.digest == hashlib.sha256(large).digest()
    assert version.stored


async def test_a_second_run_finds_it_all_there(tmp_path: Path) -> None:
    source, target = tmp_path / "old", tmp_path / "new"
    add_model(source, "policy")
    add_version(source, "policy", 1, b"one")
    await run_import(source, target)
    before = await contents(target)
    add_version(source, "policy", 2, b"two")
    entries = await run_import(source, target)
    assert outcomes(entries) == [("policy", None, "present"), ("policy", 1, "present"), ("policy", 2, "imported")]
    assert (await contents(target))["policy"][1] == before["policy"][1]


async def test_what_is_damaged_is_named_and_the_rest_is_imported(tmp_path: Path) -> None:
    source, target = tmp_path / "old", tmp_path / "new"
    add_model(source, "policy")
    add_version(source, "policy", 1, b"fine")
    add_version(source, "policy", 2, b"flipped").write_bytes(b"flopped")
    add_version(source, "policy", 3, b"too short").write_bytes(b"short")
    add_version(source, "policy", 4, b"short").write_bytes(b"too long")
    add_version(source, "policy", 5, b"lost").unlink()
    add_version(source, "policy", 6, b"illegible").with_suffix(".yaml").write_text("{")
    add_model(source, "broken")
    (source / "broken" / "broken.yaml").write_text("- no record")
    entries = await run_import(source, target)
    damaged = {(entry.model_id, entry.number): entry.reason for entry in entries if entry.outcome is Outcome.DAMAGED}
    assert sorted(damaged, key=str) == [("broken", None), *(("policy", number) for number in (2, 3, 4, 5, 6))]
    assert all(damaged.values())
    assert list((await contents(target))["policy"]) == [1]
    assert not list((target / "tmp").iterdir())


async def test_a_number_that_is_taken_is_a_conflict_and_nothing_changes(tmp_path: Path) -> None:
    source, target = tmp_path / "old", tmp_path / "new"
    add_model(source, "policy")
    add_version(source, "policy", 1, b"one")
    await run_import(source, target)
    before = await contents(target)
    shutil.rmtree(source)
    add_model(source, "policy")
    add_version(source, "policy", 1, b"another one")
    assert outcomes(await run_import(source, target)) == [("policy", None, "present"), ("policy", 1, "conflict")]
    assert await contents(target) == before
