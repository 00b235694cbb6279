"""What boot does with an archive directory, before anybody else touches it: lock it, sweep it, read it.

Bad records go to ``quarantine/`` with a line in the log, and never stop the boot; what isn't known is left alone. A number, once
given, stays given: that of a record in quarantine counts as well. All of this blocks: it runs in a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import structlog

from modelreg.errors import ArchiveInUse, ArchiveUnusable, ForeignArchive
from modelreg.storage import cogment, durable, sidecars
from modelreg.storage.layout import (
    FORMAT_NAME,
    FORMAT_VERSION,
    HIGHEST_NUMBER,
    RECORD_SUFFIX,
    Layout,
    decode_id,
    encode_id,
    is_blob_name,
    sidecar_number,
)
from modelreg.storage.sidecars import BadRecord, ModelRecord, VersionRecord

Logger = structlog.typing.FilteringBoundLogger

# How long a blob may lie around that nothing refers to, in seconds.
ORPHAN_AGE = 24 * 60 * 60

# A lost model record takes the number ceiling with it. Transient versions may have been given any number of numbers above the
# stored ones, so that many are skipped.
NUMBERS_SKIPPED = 1_000_000


@attrs.frozen(kw_only=True)
class FoundModel:
    """A model as boot found it."""

    record: ModelRecord
    # By number.
    versions: Sequence[VersionRecord]
    # The highest number that a sidecar has, or had before it went to quarantine; 0 for none.
    highest_number: int


def lock(layout: Layout) -> int:
    """Take the directory, creating it where it isn't there: the file descriptor that holds it for as long as it's open.

    Raises:
        ArchiveInUse: another server has it.
        ForeignArchive: it's something else.
        ArchiveUnusable: it can't be created, read or written, or is of a newer format.
    """
    try:
        durable.make_directories(layout.root)
        _refuse_foreign(layout)
        fd = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, durable.RECORD_MODE)
        try:
            _take_lock(fd, layout)
            _make_directories(layout)
        except (OSError, ArchiveInUse, durable.DirectorySyncError):
            os.close(fd)
            raise
    except OSError as error:
        msg = f"the archive directory {str(layout.root)!r} can't be used: {error.strerror or error}"
        raise ArchiveUnusable(msg) from error
    except durable.DirectorySyncError as error:
        msg = f"the archive directory {str(layout.root)!r} can't be used: {error}"
        raise ArchiveUnusable(msg) from error
    return fd


def _take_lock(fd: int, layout: Layout) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
        msg = f"the archive directory {str(layout.root)!r} is in use by {holder}: stop that server, or choose another --archive_dir"
        raise ArchiveInUse(msg) from None
    with contextlib.suppress(OSError):  # it's for people only: a full disk can be served, and versions deleted from it
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _refuse_foreign(layout: Layout) -> None:
    """Raise unless the directory is ours, or empty."""
    where = f"the archive directory {str(layout.root)!r}"
    try:
        document = json.loads(layout.format_file.read_bytes())
        name, version = document["format"], document["version"]
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, KeyError, RecursionError):
        msg = f"{where} has a FORMAT file that can't be read: restore it, or choose another --archive_dir"
        raise ForeignArchive(msg) from None
    else:
        if name != FORMAT_NAME:
            msg = f"{where} belongs to {name!r}: choose another --archive_dir"
            raise ForeignArchive(msg)
        if version != FORMAT_VERSION:
            msg = f"{where} has format {version}, this program knows format {FORMAT_VERSION}: use the modelreg that wrote it"
            raise ArchiveUnusable(msg)
        return
    # A first start that was killed has made some of our directories, and the FORMAT file last.
    names = {entry.name for entry in os.scandir(layout.root)}
    if cogment.model_directories(layout.root):
        msg = f"{where} was written by the Cogment Model Registry: choose another --archive_dir for modelreg"
        raise ForeignArchive(msg)
    # mkfs makes lost+found: the root of a new ext4 volume has it.
    if foreign := sorted(names - {"LOCK", "blobs", "models", "tmp", "quarantine", "lost+found"}):
        msg = f"{where} holds files that aren't modelreg's ({foreign[0]!r}): choose an empty directory"
        raise ForeignArchive(msg)


def _make_directories(layout: Layout) -> None:
    """Make what's missing of the layout: the FORMAT file last."""
    for directory in (layout.models, layout.tmp, layout.quarantine, layout.blobs.parent, layout.blobs):
        if not directory.is_dir():
            durable.make_directory(directory)
    missing = [path for path in (layout.blobs / f"{byte:02x}" for byte in range(256)) if not path.is_dir()]
    for path in missing:
        path.mkdir()
    if missing:
        durable.sync_directory(layout.blobs)
    if not layout.format_file.exists():
        data = json.dumps({"format": FORMAT_NAME, "version": FORMAT_VERSION}).encode() + b"\n"
        durable.replace(durable.write_sealed(layout.tmp, data, durable.RECORD_MODE), layout.format_file)


def recover(layout: Layout, logger: Logger) -> list[FoundModel]:
    """Sweep a locked directory and read its records.

    Raises:
        ArchiveUnusable: it can't be read.
    """
    try:
        _sweep(layout, logger)
        models = [model for entry in _entries(layout.models) if (model := _read_model(layout, entry, logger))]
        _settle_blobs(layout, models, logger)
    except (OSError, durable.DirectorySyncError) as error:
        msg = f"the archive directory {str(layout.root)!r} can't be read: {error}"
        raise ArchiveUnusable(msg) from error
    return models


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _sweep(layout: Layout, logger: Logger) -> None:
    """Empty ``tmp/``: unfinished files, deleted models."""
    left = _entries(layout.tmp)
    for entry in left:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    if left:
        logger.info("removed what an earlier run left unfinished", files=len(left))


def _quarantine(layout: Layout, path: str, reason: str, logger: Logger, *, keep: bool = False) -> None:
    """Move a record to quarantine; *keep* leaves it where it is as well, until something is put in its place."""
    logger.error("a bad record goes to quarantine", file=os.path.relpath(path, layout.root), reason=reason)
    place = layout.quarantine_place(os.path.relpath(path, layout.models).replace(os.sep, "+"))
    if keep:
        with contextlib.suppress(OSError):  # not every file may be linked: fs.protected_hardlinks in proc(5)
            durable.link_also(Path(path), place)
            return
    durable.move_away(Path(path), place)


def _read_model(layout: Layout, entry: os.DirEntry[str], logger: Logger) -> FoundModel | None:
    if not entry.is_dir(follow_symlinks=False):
        logger.warning("left alone an unknown file", file=os.path.relpath(entry.path, layout.root))
        return None
    directory = Path(entry.path)
    record, lost = _read_model_record(layout, directory, logger)
    versions: list[VersionRecord] = []
    bad: list[tuple[str, str]] = []
    highest = 0
    for number, path in _sidecars(layout, directory, logger):
        highest = max(highest, number)
        try:
            version = sidecars.read(path, VersionRecord)
            at_home = record is not None and version.model_id == record.model_id
            if version.version_number != number or not (at_home or encode_id(version.model_id) == directory.name):
                msg = f"it's the record of version {version.version_number} of {version.model_id!r}"
                raise BadRecord(msg)
        except BadRecord as error:
            bad.append((path, str(error)))
        else:
            versions.append(version)
    if record is None:
        model_id = versions[0].model_id if versions else decode_id(directory.name)
        if model_id is None or not (versions or bad or lost):
            # Its creation was cut short, or nothing says what it was.
            _forget(layout, directory, logger)
            return None
        record = ModelRecord(
            model_id=model_id, user_data={}, number_ceiling=min(highest + NUMBERS_SKIPPED, HIGHEST_NUMBER)
        )
        sidecars.write_model(layout, record)
        logger.error("restored a lost model record, without its user data", model=model_id, versions=len(versions))
    elif bad and highest > record.number_ceiling:
        record = attrs.evolve(record, number_ceiling=highest)
        sidecars.write_model(layout, record)
    for path, reason in bad:
        _quarantine(layout, path, reason, logger)
    return FoundModel(record=record, versions=versions, highest_number=highest)


def _read_model_record(layout: Layout, directory: Path, logger: Logger) -> tuple[ModelRecord | None, bool]:
    """A model's record, and whether there was one that can't be read."""
    path = directory / "model.json"
    try:
        record = sidecars.read(path, ModelRecord)
        if encode_id(record.model_id) != directory.name:
            msg = f"it's the record of model {record.model_id!r}"
            raise BadRecord(msg)
    except FileNotFoundError:
        return None, False
    except BadRecord as error:
        _quarantine(layout, str(path), str(error), logger, keep=not path.is_dir())
        return None, True
    return record, False


def _sidecars(layout: Layout, directory: Path, logger: Logger) -> Iterator[tuple[int, str]]:
    """The numbers and paths of a model's sidecars, by number."""
    try:
        entries = _entries(directory / "versions")
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        number = sidecar_number(entry.name)
        if number is None or not 1 <= number <= HIGHEST_NUMBER:
            logger.warning("left alone an unknown file", file=os.path.relpath(entry.path, layout.root))
        else:
            yield number, entry.path


def _forget(layout: Layout, directory: Path, logger: Logger) -> None:
    """Take away a model's directory that holds no record: what's in it goes to quarantine."""
    try:
        with contextlib.suppress(FileNotFoundError):
            (directory / "versions").rmdir()
        directory.rmdir()
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        _quarantine(layout, str(directory), "no record in it says what model it is", logger)


def _settle_blobs(layout: Layout, models: Sequence[FoundModel], logger: Logger) -> None:
    """Compare the blobs with the sidecars: tell of what's missing, delete what nothing has referred to for a day.

    Of what nothing refers to, a record in quarantine may be the last to tell: as long as there's one, nothing is deleted.
    """
    wanted = {version.sha256: version.size for model in models for version in model.versions}
    oldest = time.time() - ORPHAN_AGE
    needed = any(layout.quarantine.glob(f"*{RECORD_SUFFIX}.*"))
    found, kept = set(), 0
    for digest, entry in blob_files(layout, logger):
        status = entry.stat(follow_symlinks=False)
        if digest in wanted:
            found.add(digest)
            if status.st_size != wanted[digest]:
                logger.error("a blob is damaged", sha256=digest, size=status.st_size, expected=wanted[digest])
        elif status.st_mtime < oldest:
            if needed:
                kept += 1
            else:
                logger.info("deleted a blob that nothing refers to", sha256=digest, size=status.st_size)
                os.unlink(entry.path)
    if kept:
        logger.warning("kept blobs that nothing refers to, as records in quarantine may", blobs=kept)
    for digest in sorted(wanted.keys() - found):
        logger.error("a blob is missing", sha256=digest)


def blob_files(layout: Layout, logger: Logger) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All blobs there are, with their digests in hex. What else is among them is left alone."""
    for directory in _entries(layout.blobs):
        if not directory.is_dir(follow_symlinks=False):
            logger.warning("left alone an unknown file", file=os.path.relpath(directory.path, layout.root))
            continue
        with os.scandir(directory.path) as entries:
            for entry in entries:
                if (
                    is_blob_name(entry.name)
                    and entry.name[:2] == directory.name
                    and not entry.is_dir(follow_symlinks=False)
                ):
                    yield entry.name, entry
                else:
                    logger.warning("left alone an unknown file", file=os.path.relpath(entry.path, layout.root))
