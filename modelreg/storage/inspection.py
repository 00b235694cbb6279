"""Reads what is in an archive directory and changes nothing: boot, ``verify`` and ``gc`` have this in common.

What isn't known here is told to whoever asks for it, and left alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from modelreg.storage import sidecars
from modelreg.storage.layout import (
    HIGHEST_NUMBER,
    Layout,
    encode_id,
    is_blob_name,
    is_temporary_name,
    record_in,
    sidecar_number,
    versions_in,
)
from modelreg.storage.sidecars import BadRecord, ModelRecord, VersionRecord

# Is told the path of something that isn't of the archive.
Unknown = Callable[[str], None]


@attrs.frozen(kw_only=True)
class InspectedModel:
    """A model's directory as it is."""

    directory: Path
    # None where it can't be read, or isn't there.
    record: ModelRecord | None
    # Why it can't be read; empty where it can, or isn't there.
    record_fault: str
    # By number.
    versions: Sequence[VersionRecord]
    # The paths of sidecars that can't be used, and why.
    bad: Sequence[tuple[str, str]]
    # The highest number that a sidecar has, a bad one included; 0 for none.
    highest_number: int

    @property
    def record_path(self) -> Path:
        return record_in(self.directory)

    @property
    def unfinished(self) -> bool:
        """Whether its creation was cut short, or is under way: there never was a record."""
        return self.record is None and not (self.record_fault or self.versions or self.bad)


def is_directory(path: Path) -> bool:
    """Whether there is a directory of this name.

    Raises:
        OSError: that can't be told; or (ELOOP) it's a symbolic link. What one leads to is somebody else's.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        raise sidecars.symbolic_link(path)
    return stat.S_ISDIR(mode)


def entries(directory: Path) -> list[os.DirEntry[str]]:
    """What's in a directory, by name."""
    with os.scandir(directory) as found:
        return sorted(found, key=lambda entry: entry.name)


def model_directories(layout: Layout, unknown: Unknown) -> Iterator[Path]:
    """The directories of models. Raises OSError, also for a symbolic link to one: its blobs would seem to be no one's."""
    for entry in entries(layout.models):
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)
        elif entry.is_dir():
            raise sidecars.symbolic_link(entry.path)
        else:
            unknown(entry.path)


def inspect_model(directory: Path, unknown: Unknown) -> InspectedModel:
    """Read a model's records.

    Raises:
        OSError: one could not be read, for a reason that isn't its own.
    """
    record, fault = None, ""
    try:
        record = _read_record(directory)
    except FileNotFoundError:
        pass
    except BadRecord as error:
        fault = str(error)
    versions: list[VersionRecord] = []
    bad: list[tuple[str, str]] = []
    highest = 0
    for number, path in _sidecars(directory, unknown):
        highest = max(highest, number)
        try:
            version = sidecars.read(path, VersionRecord)
            at_home = record is not None and version.model_id == record.model_id
            if version.version_number != number or not (at_home or encode_id(version.model_id) == directory.name):
                msg = f"it's the record of version {version.version_number} of {version.model_id!r}"
                raise BadRecord(msg)
        except FileNotFoundError:  # its model is being deleted
            continue
        except BadRecord as error:
            bad.append((path, str(error)))
        else:
            versions.append(version)
    return InspectedModel(
        directory=directory,
        record=record,
        record_fault=fault,
        versions=versions,
        bad=bad,
        highest_number=highest,
    )


def _read_record(directory: Path) -> ModelRecord:
    record = sidecars.read(record_in(directory), ModelRecord)
    if encode_id(record.model_id) != directory.name:
        msg = f"it's the record of model {record.model_id!r}"
        raise BadRecord(msg)
    return record


def _sidecars(directory: Path, unknown: Unknown) -> Iterator[tuple[int, str]]:
    """The numbers and paths of a model's sidecars, by number."""
    if not is_directory(versions_in(directory)):
        return
    try:
        found = entries(versions_in(directory))
    except FileNotFoundError:  # the model is being deleted
        return
    for entry in found:
        number = sidecar_number(entry.name)
        if number is None or not 1 <= number <= HIGHEST_NUMBER:
            unknown(entry.path)
        else:
            yield number, entry.path


def blob_files(layout: Layout, unknown: Unknown) -> Iterator[os.DirEntry[str]]:
    """All blobs there are; their names are their digests. Raises OSError, also for a symbolic link to a directory."""
    for directory in entries(layout.blobs):
        if directory.is_symlink() and directory.is_dir():
            raise sidecars.symbolic_link(directory.path)
        if not directory.is_dir(follow_symlinks=False):
            unknown(directory.path)
            continue
        with os.scandir(directory.path) as found:
            for entry in found:
                at_home = is_blob_name(entry.name) and entry.name[:2] == directory.name
                if at_home and not entry.is_dir(follow_symlinks=False):
                    yield entry
                else:
                    unknown(entry.path)


def unfinished(layout: Layout, unknown: Unknown) -> list[os.DirEntry[str]]:
    """What unfinished work has left in ``tmp``."""
    found = entries(layout.tmp)
    for entry in found:
        if not is_temporary_name(entry.name):
            unknown(entry.path)
    return [entry for entry in found if is_temporary_name(entry.name)]


def records_in_quarantine(layout: Layout) -> int:
    """How many things are there that aren't blobs: they may say what a blob is that nothing else refers to."""
    return sum(not is_blob_name(entry.name[:64]) for entry in entries(layout.quarantine))
