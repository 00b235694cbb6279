"""What boot does with an archive directory that it has taken: sweep it, read it, put it right.

Records that were read and are wrong go to ``quarantine/`` with a line in the log, and never stop the boot. One that
can't be read ends it: nothing is known of such a record, so nothing takes its place. What isn't the registry's is left
alone. A number, once given, stays given: that of a record in quarantine counts as well. All of this blocks: it runs in
a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import structlog

from modelreg.storage import durable, inspection, sidecars
from modelreg.storage.inspection import InspectedModel, Unknown
from modelreg.storage.layout import HIGHEST_NUMBER, OWN_NAMES, Layout, decode_id, versions_in
from modelreg.storage.sidecars import ModelRecord, VersionRecord
from modelreg.storage.threads import FILE_THREADS
from modelreg.storage.unusable import unusable

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


def recover(layout: Layout, logger: Logger) -> list[FoundModel]:
    """Sweep a locked directory and read its records.

    Raises:
        ArchiveUnusable: something in it can't be read or written.
    """
    with unusable(layout):
        _tell_of_foreign_files(layout, logger)
        _sweep(layout, logger)
        directories = inspection.model_directories(layout, _unknown(layout, logger))
        models = [model for directory in directories if (model := _read_model(layout, directory, logger))]
        damaged = _settle_blobs(layout, models, logger)
        if damaged:
            models = [attrs.evolve(model, damaged=damaged & model.contents) for model in models]
        _make_durable(layout, models)
    return models


def _tell_of_foreign_files(layout: Layout, logger: Logger) -> None:
    foreign = sorted(set(os.listdir(layout.root)) - OWN_NAMES)
    if foreign:
        logger.warning(
            "the archive directory holds files that aren't modelreg's, which are left alone",
            files=len(foreign),
            first=foreign[0],
        )


def _make_durable(layout: Layout, models: Sequence[FoundModel]) -> None:
    """Sync the directories that name what is served from now on, and make sure that they can be written.

    A server that was killed between a link and its sync leaves a version that a power cut can still take away. Clients
    see that version, and take it for stored.
    """
    directories = {layout.root, layout.models, layout.blobs}
    filled: set[int] = set()
    for model in models:
        directory = layout.model(model.record.model_id)
        directories |= {directory, versions_in(directory)}
        filled.update(digest[0] for digest in model.contents)
    blob_directories = layout.blob_directories
    directories.update(blob_directories[byte] for byte in filled)
    for path in sorted(directories.union(blob_directories), key=str):
        _check_access(path, os.R_OK | os.W_OK | os.X_OK)
    # 20,000 of them, of 10,000 models, take 0.8 s by 16 threads and 4.6 s one by one: each flushes the disk's cache.
    with ThreadPoolExecutor(FILE_THREADS) as threads:
        ordered = list(directories)
        for _ in threads.map(_sync_all, [ordered[first::FILE_THREADS] for first in range(FILE_THREADS)]):
            pass


def _sync_all(directories: Sequence[Path]) -> None:
    for directory in directories:
        durable.sync_directory(directory)


def _check_access(path: str | Path, mode: int) -> None:
    if not os.access(path, mode, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _sweep(layout: Layout, logger: Logger) -> None:
    """Remove what is in ``tmp/``: unfinished files, deleted models."""
    left = inspection.unfinished(layout, _unknown(layout, logger))
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
            logger.warning("it stays where it is", file=os.path.relpath(bad_path, layout.root), error=error.strerror)
    versions = versions_in(inspected.directory)
    if not inspection.is_directory(versions):  # nothing could be stored
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
    user = os.geteuid()
    needed = inspection.records_in_quarantine(layout) > 0 or any(model.stuck for model in models)
    found, damaged, kept = set(), set(), 0
    for entry in inspection.blob_files(layout, _unknown(layout, logger)):
        digest = entry.name
        status = entry.stat(follow_symlinks=False)
        if digest in wanted:
            found.add(digest)
            if stat.S_ISREG(status.st_mode) and (status.st_uid != user or not status.st_mode & stat.S_IRUSR):
                _check_access(entry.path, os.R_OK)
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
