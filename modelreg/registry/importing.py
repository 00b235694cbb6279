"""Takes the archive of a Cogment Model Registry over into one of this registry's.

Numbers, timestamps, hashes and user data are kept.
What's there already is passed over, so that an import can be run again. What's damaged is reported and left out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from enum import Enum

import attrs
import trio

from modelreg.errors import InvalidArgument
from modelreg.registry.records import check_model_id
from modelreg.storage.archive import Archive
from modelreg.storage.cogment import BadEntry, CogmentVersion, ModelDirectory, UnreadableEntry
from modelreg.storage.layout import HIGHEST_NUMBER
from modelreg.storage.sidecars import ModelRecord, VersionRecord


class Outcome(Enum):
    IMPORTED = "imported"
    # An earlier import, or somebody else, has stored it.
    PRESENT = "present"
    # What the source holds of it can't be used; nothing of it was imported.
    DAMAGED = "damaged"
    # The source's file could not be read, which says nothing about it; nothing of it was imported.
    UNREADABLE = "unreadable"
    # The number is another version's here; nothing has changed.
    CONFLICT = "conflict"


@attrs.frozen(kw_only=True)
class Entry:
    """What became of a model, or of one of its versions."""

    model_id: str
    # None for the model itself.
    number: int | None = None
    outcome: Outcome
    # What's wrong; empty where nothing is.
    reason: str = ""


async def import_cogment(models: Sequence[ModelDirectory], archive: Archive) -> AsyncGenerator[Entry, None]:
    """Import every version of these models, one by one, each durable when its entry comes.

    Raises:
        ResourceExhausted, StorageFailed, Unavailable: the archive can't be written.
    """
    known = {found.record.model_id: found for found in archive.found}
    for directory in models:
        try:
            model = await trio.to_thread.run_sync(directory.read)
            check_model_id(model.model_id)
        except (BadEntry, InvalidArgument) as error:
            yield Entry(model_id=directory.name, outcome=_failed(error), reason=str(error))
            continue
        found = known.get(model.model_id)
        if found is None:
            await archive.write_model(ModelRecord(model_id=model.model_id, user_data=model.user_data, number_ceiling=0))
        yield Entry(model_id=model.model_id, outcome=Outcome.PRESENT if found else Outcome.IMPORTED)
        stored = {version.version_number: version.sha256 for version in found.versions} if found else {}
        ceiling = found.record.number_ceiling if found else 0
        for record in model.versions:
            try:
                version = await trio.to_thread.run_sync(record.read)
                outcome, reason = _settled(version, stored, ceiling)
                if outcome is Outcome.IMPORTED:
                    await _import_version(model.model_id, version, archive)
                yield Entry(model_id=model.model_id, number=version.number, outcome=outcome, reason=reason)
            except BadEntry as error:
                reason = str(error)
                yield Entry(model_id=model.model_id, number=record.number, outcome=_failed(error), reason=reason)


def _failed(error: Exception) -> Outcome:
    return Outcome.UNREADABLE if isinstance(error, UnreadableEntry) else Outcome.DAMAGED


def _settled(version: CogmentVersion, stored: dict[int, str], ceiling: int) -> tuple[Outcome, str]:
    """What's to become of a version whose record is fine."""
    if not 1 <= version.number <= HIGHEST_NUMBER:
        return Outcome.DAMAGED, f"version numbers go from 1 to {HIGHEST_NUMBER}"
    sha256 = stored.get(version.number)
    if sha256 is None and version.number > ceiling:
        return Outcome.IMPORTED, ""
    if sha256 == version.digest.hex():
        return Outcome.PRESENT, ""
    return Outcome.CONFLICT, "the number has been given to another version here"


async def _import_version(model_id: str, version: CogmentVersion, archive: Archive) -> None:
    async with archive.incoming(version.size, version.digest) as incoming:
        async with aclosing(version.data()) as pieces:
            async for piece in pieces:
                await incoming.write(memoryview(piece))
        if await incoming.finish() != version.digest:
            raise BadEntry("its data has another hash than its record says")
        await archive.blobs.retain_for_commit(version.digest, version.size)
        await archive.install_large(incoming)
        record = VersionRecord(
            model_id=model_id,
            version_number=version.number,
            creation_timestamp=version.timestamp,
            sha256=version.digest.hex(),
            size=version.size,
            user_data=version.user_data,
        )
        await archive.store_version(record, incoming)
