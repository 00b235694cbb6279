"""Looks at all of an archive: every record is read, and every blob hashed, from the disk itself.

With the lock, nothing changes meanwhile. Beside a running server it's enough to know the order in which that one works:
a blob is there before its sidecar and goes after it, records and blobs appear and vanish whole, and neither is changed
in place. So what seems wrong is damage only if what makes it wrong has been there all the time; else it's looked at
again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import attrs

from modelreg.errors import ArchiveInUse
from modelreg.log import silent_logger
from modelreg.storage import durable, hashing, inspection, lock, recovery
from modelreg.storage.inspection import InspectedModel
from modelreg.storage.layout import Layout
from modelreg.storage.sidecars import VersionRecord
from modelreg.storage.unusable import unusable

# An unreadable blob may be sound: the disk, or a file system far away, may give its bytes another time.
Kind = Literal["damaged blob", "unreadable blob", "missing blob", "bad record", "missing record"]

# How often a model's directory that changes while it's looked at is looked at again.
LOOKS = 3


@attrs.frozen(kw_only=True)
class Damage:
    """One thing that isn't as it should be."""

    kind: Kind
    # Relative to the archive directory.
    path: str
    reason: str
    # Ids and numbers of the versions that can't be had because of it, where that's known.
    versions: Sequence[tuple[str, int]] = ()
    # It has been moved to quarantine.
    repaired: bool = False


@attrs.frozen(kw_only=True)
class Report:
    """What an archive is like."""

    # Why it was only read; empty where the archive was locked.
    read_only: str
    models: int
    versions: int
    # Those that were hashed, and their bytes.
    blobs: int
    bytes: int
    # Blobs that nothing refers to, and files in tmp/, for ``gc``; not counted beside a running server, which is busy
    # with them.
    leftovers: int
    # What's in quarantine now.
    quarantined: int
    # Paths that aren't of the archive, relative to it.
    unknown: Sequence[str]
    damage: Sequence[Damage]


def verify(layout: Layout, *, repair: bool = False) -> Report:
    """Look at all of an archive. *repair* moves what is damaged to quarantine, as the next boot would; content that is
    stored again heals then.

    Raises:
        ArchiveInUse: it's to be repaired, and a server has it.
        ForeignArchive, ArchiveUnusable: there's no archive there, or something in it may not be read.
    """
    with ExitStack() as stack, unusable(layout):
        try:
            taken = stack.enter_context(closing(lock.take_existing(layout)))
        except (ArchiveInUse, PermissionError) as error:
            if repair:
                raise
            why = f"in use by {lock.holder(layout)}" if isinstance(error, ArchiveInUse) else _not_locked(error)
            return _Verification(layout, why).run(repair=False)
        return _Verification(taken.layout, "").run(repair=repair)


def _not_locked(error: OSError) -> str:
    return f"it can't be locked ({error.strerror})"


class _Verification:
    def __init__(self, layout: Layout, read_only: str) -> None:
        self._layout = layout
        self._read_only = read_only
        self._unknown: set[str] = set()
        self._damage: list[Damage] = []
        self._bad_models: list[InspectedModel] = []

    def run(self, *, repair: bool) -> Report:
        models = self._look_at_models()
        versions = [version for model in models for version in model.versions]
        wanted: dict[str, list[VersionRecord]] = defaultdict(list)
        for version in versions:
            wanted[version.sha256].append(version)
        hashed = self._look_at_blobs(wanted)
        self._look_for_blobs(wanted, hashed)
        unfinished = len(inspection.unfinished(self._layout, self._note_unknown))
        if repair:
            self._repair()
        return Report(
            read_only=self._read_only,
            models=len(models),
            versions=len(versions),
            blobs=len(hashed),
            bytes=sum(hashed.values()),
            leftovers=0 if self._read_only else len(hashed.keys() - wanted.keys()) + unfinished,
            quarantined=len(os.listdir(self._layout.quarantine)),
            unknown=sorted(self._unknown),
            damage=sorted(self._damage, key=lambda damage: damage.path),
        )

    # Records

    def _look_at_models(self) -> list[InspectedModel]:
        models = []
        for directory in inspection.model_directories(self._layout, self._note_unknown):
            model = self._inspect(directory)
            if model is not None:
                models.append(model)
                self._note_bad_records(model)
        return models

    def _inspect(self, directory: Path) -> InspectedModel | None:
        """A model's directory; None for one that's being made or has gone."""
        for _ in range(LOOKS):
            model = inspection.inspect_model(directory, self._note_unknown)
            if not self._read_only or (model.record is not None and not model.bad):
                break
            # The record is read first: a model that was made just then has sidecars and seems to have none. And what's
            # deleted goes whole.
            if not directory.is_dir():
                return None
        return None if model.unfinished else model

    def _note_bad_records(self, model: InspectedModel) -> None:
        path = self._relative(model.record_path)
        lost = [(version.model_id, version.version_number) for version in model.versions]
        if model.record_fault:
            self._note(kind="bad record", path=path, reason=model.record_fault, versions=lost)
        elif model.record is None:
            self._note(
                kind="missing record", path=path, reason="there are versions, and no record of the model", versions=lost
            )
        for bad, reason in model.bad:
            self._note(kind="bad record", path=self._relative(bad), reason=reason)
        if model.record is None or model.bad:
            self._bad_models.append(model)

    # Blobs

    def _look_at_blobs(self, wanted: dict[str, list[VersionRecord]]) -> dict[str, int]:
        """Hash every blob; the digests by which they're named, and their sizes."""
        names = [entry.path for entry in inspection.blob_files(self._layout, self._note_unknown)]
        hashed: dict[str, int] = {}
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for path, look in zip(names, threads.map(_look_at_blob, names), strict=True):
                if look is None:
                    continue
                name = os.path.basename(path)
                hashed[name] = look.size
                if look.fault:
                    self._note_blob("damaged blob" if look.read else "unreadable blob", name, look.fault, wanted[name])
        return hashed

    def _look_for_blobs(self, wanted: dict[str, list[VersionRecord]], hashed: dict[str, int]) -> None:
        """Hold every sidecar against its blob."""
        damaged = {damage.path for damage in self._damage}
        for name, versions in wanted.items():
            if name in hashed:
                sizes = {version.size for version in versions} - {hashed[name]}
                if sizes and self._blob_path(name) not in damaged:
                    self._note_blob(
                        "damaged blob", name, f"it has {hashed[name]} bytes, {max(sizes)} are recorded", versions
                    )
            elif lacking := [version for version in versions if not self._has_come_or_gone(version)]:
                self._note_blob("missing blob", name, "it is missing", lacking)

    def _has_come_or_gone(self, version: VersionRecord) -> bool:
        """Whether a version has no blob only because it was being deleted, or stored again: see above."""
        if not self._read_only:
            return False
        blob = self._layout.blob(bytes.fromhex(version.sha256))
        sidecar = self._layout.version_sidecar(version.model_id, version.version_number)
        for _ in range(LOOKS):
            before = _identity(sidecar)
            if before is None or blob.exists():
                return True
            if _identity(sidecar) == before:
                return False
        return True

    def _note_blob(self, kind: Kind, name: str, reason: str, versions: Iterable[VersionRecord]) -> None:
        affected = [(version.model_id, version.version_number) for version in versions]
        self._note(kind=kind, path=self._blob_path(name), reason=reason, versions=affected)

    # Repairs

    def _repair(self) -> None:
        for model in self._bad_models:
            recovery.settle(self._layout, model, silent_logger())
        for place, damage in enumerate(self._damage):
            if damage.kind == "damaged blob":
                path = self._layout.root / damage.path
                durable.move_away(path, self._layout.quarantine_place(path.name))
            if damage.kind not in ("missing blob", "unreadable blob"):
                self._damage[place] = attrs.evolve(damage, repaired=True)

    def _note(self, *, kind: Kind, path: str, reason: str, versions: Sequence[tuple[str, int]] = ()) -> None:
        self._damage.append(Damage(kind=kind, path=path, reason=reason, versions=sorted(versions)))

    def _note_unknown(self, path: str) -> None:
        self._unknown.add(self._relative(path))

    def _blob_path(self, name: str) -> str:
        return self._relative(self._layout.blob(bytes.fromhex(name)))

    def _relative(self, path: str | Path) -> str:
        return os.path.relpath(path, self._layout.root)


@attrs.frozen
class _Look:
    """What is known of a blob's file."""

    size: int
    # Empty where nothing is wrong.
    fault: str = ""
    # Whether its bytes were read, or it has none.
    read: bool = True


def _look_at_blob(path: str) -> _Look | None:
    """Hash a blob; None where it isn't there any more.

    Raises:
        PermissionError: it may not be read.
    """
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except PermissionError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP and os.path.islink(path):
                return _Look(0, "a symbolic link")
            if error.errno == errno.ENXIO:
                return _Look(0, "not a regular file")  # a socket
            return _Look(0, f"it can't be opened ({error.strerror})", read=False)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return _Look(0, "not a regular file")
            if hashing.sha256(fd).hex() == os.path.basename(path):
                return _Look(status.st_size)
            look = _Look(status.st_size, "its content has changed")
        except OSError as error:
            look = _Look(0, f"it can't be read ({error.strerror})", read=False)
        finally:
            os.close(fd)
        if _identity(path) == (status.st_ino, status.st_ctime_ns):
            return look


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What a file has that another of its name hasn't; None where there's none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns
