"""What boot does with an archive directory, before anybody else touches it: lock it, sweep it, read it.

Bad records go to ``quarantine/`` with a line in the log, and never stop the boot; what isn't known is left alone. A
number, once given, stays given: that of a record in quarantine counts as well. All of this blocks: it runs in a worker
thread.
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
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import attrs
import structlog

from modelreg.errors import ArchiveInUse, ArchiveUnusable, ForeignArchive
from modelreg.storage import cogment, durable, inspection, sidecars
from modelreg.storage.inspection import InspectedModel, Unknown
from modelreg.storage.layout import FORMAT_NAME, FORMAT_VERSION, HIGHEST_NUMBER, Layout, decode_id, versions_in
from modelreg.storage.sidecars import ModelRecord, VersionRecord

Logger = structlog.typing.FilteringBoundLogger

# How long a blob may lie around that nothing refers to, in seconds.
ORPHAN_AGE = 24 * 60 * 60

# A lost model record takes the number ceiling with it. Transient versions may have been given any number of numbers
# above the stored ones, so that many are skipped.
NUMBERS_SKIPPED = 1_000_000


@attrs.frozen(kw_only=True)
class FoundModel:
    """A model as boot found it."""

    record: ModelRecord
    # By number.
    versions: Sequence[VersionRecord]
    # The highest number that a sidecar has, or had before it went to quarantine; 0 for none.
    highest_number: int
    # Contents that are missing, or of another size; none of them has been read.
    damaged: AbstractSet[bytes] = frozenset()
    # How many bad sidecars couldn't be moved to quarantine either, and lie where they were.
    stuck: int = 0

    @property
    def contents(self) -> AbstractSet[bytes]:
        """The SHA-256 of all its contents."""
        return {bytes.fromhex(version.sha256) for version in self.versions}


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
        reason = f"{error.strerror or error}: make it writable, or choose another --archive_dir"
        msg = f"the archive directory {str(layout.root)!r} can't be used: {reason}"
        raise ArchiveUnusable(msg) from error
    except durable.DirectorySyncError as error:
        msg = f"the archive directory {str(layout.root)!r} can't be used: {error}"
        raise ArchiveUnusable(msg) from error
    return fd


def lock_existing(layout: Layout) -> int:
    """Take a directory that holds an archive, and change nothing in it; what :func:`lock` returns.

    Raises:
        ArchiveInUse: a server has it.
        ForeignArchive: it's something else.
        ArchiveUnusable: it can't be read, there's no archive there, or one of a newer format.
        PermissionError: it can only be read.
    """
    where = f"the archive directory {str(layout.root)!r}"
    try:
        _refuse_foreign(layout)
        if not layout.format_file.exists():
            msg = f"{where} is empty: name one that a server has served with --archive_dir"
            raise ArchiveUnusable(msg)
        fd = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, durable.RECORD_MODE)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise PermissionError(error.errno, error.strerror) from error
        msg = f"{where} can't be used: {error.strerror or error}: name one that a server has served with --archive_dir"
        raise ArchiveUnusable(msg) from error
    try:
        _take_lock(fd, layout)
    except ArchiveInUse:
        os.close(fd)
        raise
    return fd


def _take_lock(fd: int, layout: Layout) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        where = f"the archive directory {str(layout.root)!r}"
        msg = f"{where} is in use by {holder(layout)}: stop that server, or choose another --archive_dir"
        raise ArchiveInUse(msg) from None
    with contextlib.suppress(OSError):  # it's for people only: a full disk can be served, and versions deleted from it
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def holder(layout: Layout) -> str:
    """Who has the lock, for people."""
    with contextlib.suppress(OSError):
        text = layout.lock_file.read_bytes()[:200].decode(errors="replace").strip()
        return text or "another process"
    return "another process"


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
            ours = f"this program knows format {FORMAT_VERSION}"
            msg = f"{where} has format {version}, {ours}: use the modelreg that wrote it"
            raise ArchiveUnusable(msg)
        return
    # A first start that was killed has made some of our directories, and the FORMAT file last.
    names = {entry.name for entry in os.scandir(layout.root)}
    if cogment.model_directories(layout.root):
        msg = (
            f"{where} was written by the Cogment Model Registry: "
            "import it into another --archive_dir by modelreg import-archive"
        )
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
        directories = inspection.model_directories(layout, _unknown(layout, logger))
        models = [model for directory in directories if (model := _read_model(layout, directory, logger))]
        damaged = _settle_blobs(layout, models, logger)
        if damaged:
            models = [attrs.evolve(model, damaged=damaged & model.contents) for model in models]
        _make_durable(layout, models)
    except (OSError, durable.DirectorySyncError) as error:
        msg = f"the archive directory {str(layout.root)!r} can't be read: {error}"
        raise ArchiveUnusable(msg) from error
    return models


def _make_durable(layout: Layout, models: Sequence[FoundModel]) -> None:
    """Sync the directories that name what is served from now on.

    A server that was killed between a link and its sync leaves a version that a power cut can still take away. Clients
    see that version, and take it for stored.
    """
    directories = {layout.root, layout.models, layout.blobs}
    for model in models:
        directory = layout.model(model.record.model_id)
        directories |= {directory, versions_in(directory)}
        directories |= {layout.blob(digest).parent for digest in model.contents}
    for path in sorted(directories):
        durable.sync_directory(path)


def _sweep(layout: Layout, logger: Logger) -> None:
    """Empty ``tmp/``: unfinished files, deleted models."""
    left = inspection.entries(layout.tmp)
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
        try:
            durable.link_also(Path(path), place)
        except OSError:  # not every file may be linked: fs.protected_hardlinks in proc(5)
            durable.move_away(Path(path), place)
        return
    durable.move_away(Path(path), place)


def _read_model(layout: Layout, directory: Path, logger: Logger) -> FoundModel | None:
    inspected = inspection.inspect_model(directory, _unknown(layout, logger))
    if inspected.unfinished:
        _forget(layout, directory, logger)
        return None
    return settle(layout, inspected, logger)


def settle(layout: Layout, inspected: InspectedModel, logger: Logger) -> FoundModel | None:
    """Put a model's directory right: what's bad in it goes to quarantine, and a lost record is made again.

    None where nothing says what model it is; the whole directory is in quarantine then.
    """
    if inspected.record_fault:
        path = inspected.record_path
        _quarantine(layout, str(path), inspected.record_fault, logger, keep=not path.is_dir())
    record, highest = inspected.record, inspected.highest_number
    if record is None:
        model_id = inspected.versions[0].model_id if inspected.versions else decode_id(inspected.directory.name)
        if model_id is None:
            _forget(layout, inspected.directory, logger)
            return None
        record = ModelRecord(
            model_id=model_id, user_data={}, number_ceiling=min(highest + NUMBERS_SKIPPED, HIGHEST_NUMBER)
        )
        sidecars.write_model(layout, record)
        logger.error(
            "restored a lost model record, without its user data", model=model_id, versions=len(inspected.versions)
        )
    elif inspected.bad and highest > record.number_ceiling:
        record = attrs.evolve(record, number_ceiling=highest)
        sidecars.write_model(layout, record)
    stuck = 0
    for bad_path, reason in inspected.bad:
        try:
            _quarantine(layout, bad_path, reason, logger)
        except OSError as error:
            stuck += 1
            logger.warning("it stays where it is", file=os.path.relpath(bad_path, layout.root), error=str(error))
    versions = versions_in(inspected.directory)
    if not versions.is_dir():  # nothing could be stored
        if os.path.lexists(versions):
            _quarantine(layout, str(versions), "it's in the place of a directory", logger)
        durable.make_directory(versions)
    return FoundModel(record=record, versions=inspected.versions, highest_number=highest, stuck=stuck)


def _unknown(layout: Layout, logger: Logger) -> Unknown:
    return lambda path: logger.warning("left alone an unknown file", file=os.path.relpath(path, layout.root))


def _forget(layout: Layout, directory: Path, logger: Logger) -> None:
    """Take away a model's directory that holds no record: what's in it goes to quarantine."""
    try:
        with contextlib.suppress(FileNotFoundError):
            versions_in(directory).rmdir()
        directory.rmdir()
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        _quarantine(layout, str(directory), "no record in it says what model it is", logger)


def _settle_blobs(layout: Layout, models: Sequence[FoundModel], logger: Logger) -> set[bytes]:
    """Compare the blobs with the sidecars: tell of what's damaged, delete what nothing has referred to for a day.

    Of what nothing refers to, a record in quarantine, or one that ought to be there, may be the last to tell: as long
    as there's one, nothing is deleted.
    """
    wanted = {version.sha256: version.size for model in models for version in model.versions}
    oldest = time.time() - ORPHAN_AGE
    needed = inspection.records_in_quarantine(layout) > 0 or any(model.stuck for model in models)
    found, damaged, kept = set(), set(), 0
    for entry in inspection.blob_files(layout, _unknown(layout, logger)):
        digest = entry.name
        status = entry.stat(follow_symlinks=False)
        if digest in wanted:
            found.add(digest)
            if status.st_size != wanted[digest]:
                damaged.add(bytes.fromhex(digest))
                logger.error("a blob is damaged", sha256=digest, size=status.st_size, expected=wanted[digest])
        elif status.st_mtime < oldest:
            if needed:
                kept += 1
            else:
                logger.info("deleted a blob that nothing refers to", sha256=digest, size=status.st_size)
                os.unlink(entry.path)
    if kept:
        logger.warning("kept blobs that nothing refers to, as bad records may", blobs=kept)
    for digest in sorted(wanted.keys() - found):
        damaged.add(bytes.fromhex(digest))
        logger.error("a blob is missing", sha256=digest)
    return damaged
