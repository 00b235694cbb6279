"""Takes an archive directory: makes sure that it is the registry's, that no other server has it, and that it works.

Two locks are taken, both by flock(2). The one on the directory itself can't be deleted. The one on ``LOCK`` keeps out
older servers, and those on other machines where the file system tells machines of each other's locks.

What is taken is the directory, not its path: the paths of a :class:`Lock` lead to it wherever it is moved. All of this
blocks: it runs in a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from modelreg.errors import ArchiveInUse, ArchiveUnusable, ForeignArchive
from modelreg.storage import cogment, durable, sidecars
from modelreg.storage.inspection import is_directory
from modelreg.storage.layout import (
    FORMAT_NAME,
    FORMAT_VERSION,
    OWN_NAMES,
    Layout,
    is_quarantine_name,
    is_temporary_name,
    record_in,
    sidecar_number,
    versions_in,
)
from modelreg.storage.threads import NO_SPACE_ERRNOS
from modelreg.storage.unusable import unusable

_HOLDER = re.compile(rb"process \d+ on .*\n")
_BLOBS_DIRECTORY = re.compile("[0-9a-f]{2}")


@attrs.frozen
class Lock:
    """An archive directory that has been taken.

    Attributes:
        layout: its paths. They lead to the directory that was taken, also when it is moved.
    """

    layout: Layout
    _descriptors: contextlib.ExitStack

    def close(self) -> None:
        """Give the directory back."""
        self._descriptors.close()


def take(layout: Layout) -> Lock:
    """Take a directory, creating it and what is missing in it.

    Raises:
        ArchiveInUse: another server has it.
        ForeignArchive: it is something else.
        ArchiveUnusable: it can't be created, read or written, or is of a newer format.
    """
    with contextlib.ExitStack() as stack, unusable(layout):
        durable.make_directories(layout.root)
        layout = _take_directory(layout, stack)
        _take_lock_file(layout, stack)
        _make_directories(layout)
        _try_out(layout)
        _write_format(layout)
        return Lock(layout, stack.pop_all())


def take_existing(layout: Layout) -> Lock:
    """Take a directory that holds an archive, and change nothing in it.

    Raises:
        ArchiveInUse: a server has it.
        ForeignArchive: it is something else.
        ArchiveUnusable: it can't be read, there is no archive there, or one of a newer format.
        PermissionError: it can only be read.
    """
    with contextlib.ExitStack() as stack:
        with unusable(layout):
            there = layout.root.is_dir()
            if there:
                layout = _take_directory(layout, stack)
            if not there or not os.path.lexists(layout.format_file):
                msg = f"{layout.title} holds no archive: name one that a server has served with --archive_dir"
                raise ArchiveUnusable(msg)
        try:
            _take_lock_file(layout, stack)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise PermissionError(error.errno, error.strerror) from error
            with unusable(layout):
                raise
        return Lock(layout, stack.pop_all())


def holder(layout: Layout) -> str:
    """Say who has the lock."""
    with contextlib.suppress(OSError, sidecars.BadRecord):
        return sidecars.read_file(layout.lock_file)[:200].decode(errors="replace").strip() or "another process"
    return "another process"


def _take_directory(layout: Layout, stack: contextlib.ExitStack) -> Layout:
    """Lock the directory itself; the layout with paths that lead to it."""
    fd = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    layout = _layout_of(fd, layout)
    _refuse_foreign(layout)
    _flock(fd, layout)
    return layout


def _layout_of(fd: int, layout: Layout) -> Layout:
    """The layout whose paths go through an open descriptor, see proc_pid_fd(5). Without /proc they stay as they are."""
    path = Path(f"/proc/self/fd/{fd}")
    try:
        there = os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        there = False
    return Layout(path, layout.given) if there else layout


def _take_lock_file(layout: Layout, stack: contextlib.ExitStack) -> None:
    fd = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, durable.RECORD_MODE)
    stack.callback(os.close, fd)
    _flock(fd, layout)
    with contextlib.suppress(OSError):  # it's for people only: a full disk can be served, and versions deleted from it
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _flock(fd: int, layout: Layout) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        msg = f"{layout.title} is in use by {holder(layout)}: stop that server, or choose another --archive_dir"
        raise ArchiveInUse(msg) from None


# What is in it


def _refuse_foreign(layout: Layout) -> None:
    """Raise where the directory, or something with one of the registry's names in it, belongs to another program."""
    try:
        document = json.loads(sidecars.read_file(layout.format_file))
        name, version = document["format"], document["version"]
    except FileNotFoundError:
        _refuse_foreign_names(layout)
        return
    except (sidecars.BadRecord, ValueError, TypeError, KeyError, RecursionError):
        msg = f"{layout.title} has a FORMAT file that can't be read: restore it, or choose another --archive_dir"
        raise ForeignArchive(msg) from None
    if name != FORMAT_NAME:
        msg = f"{layout.title} belongs to {name!r}: choose another --archive_dir"
        raise ForeignArchive(msg)
    if version != FORMAT_VERSION:
        ours = f"this program knows format {FORMAT_VERSION}"
        msg = f"{layout.title} has format {version}, {ours}: use the modelreg that wrote it"
        raise ArchiveUnusable(msg)


def _refuse_foreign_names(layout: Layout) -> None:
    """The same without a FORMAT file: a first start that was killed has made the rest, and a person may have lost it."""
    if cogment.is_archive(layout.root):
        msg = (
            f"{layout.title} was written by the Cogment Model Registry: "
            "import it into another --archive_dir by modelreg import-archive"
        )
        raise ForeignArchive(msg)
    names = set(os.listdir(layout.root))
    ours = {
        "LOCK": _is_lock(layout.lock_file, alone=names <= OWN_NAMES),
        "blobs": _holds_only(layout.blobs.parent, lambda name: name == "sha256")
        and _holds_only(layout.blobs, lambda name: _BLOBS_DIRECTORY.fullmatch(name) is not None),
        "models": _holds_only(layout.models, lambda name: _is_model(layout.models / name)),
        "tmp": _holds_only(layout.tmp, is_temporary_name),
        "quarantine": _holds_only(layout.quarantine, is_quarantine_name),
    }
    foreign = [name for name, is_ours in ours.items() if name in names and not is_ours]
    if foreign:
        msg = f"{layout.title} holds another program's {foreign[0]!r}: choose another --archive_dir"
        raise ForeignArchive(msg)


def _is_lock(path: Path, *, alone: bool) -> bool:
    """Whether it is a LOCK of ours. An empty one could be another program's, unless nothing else is there."""
    try:
        text = sidecars.read_file(path)
    except (FileNotFoundError, sidecars.BadRecord):
        return False
    return _HOLDER.fullmatch(text) is not None or (alone and not text)


def _is_model(path: Path) -> bool:
    return _holds_only(path, {"model.json", "versions"}.__contains__) and (
        os.path.lexists(record_in(path))
        or _holds_only(versions_in(path), lambda name: sidecar_number(name) is not None)
    )


def _holds_only(path: Path, belongs: Callable[[str], bool]) -> bool:
    """Whether it is a directory that holds nothing else, or isn't there."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and all(map(belongs, os.listdir(path)))
    except FileNotFoundError:
        return True


def _make_directories(layout: Layout) -> None:
    """Make what is missing of the layout."""
    for directory in (layout.models, layout.tmp, layout.quarantine, layout.blobs.parent, layout.blobs):
        if _is_missing(directory):
            durable.make_directory(directory)
    missing = [path for path in layout.blob_directories if _is_missing(path)]
    for path in missing:
        path.mkdir()
    if missing:
        durable.sync_directory(layout.blobs)


def _write_format(layout: Layout) -> None:
    """Say that the directory is the registry's, last of all: it works."""
    if not os.path.lexists(layout.format_file):
        data = json.dumps({"format": FORMAT_NAME, "version": FORMAT_VERSION}).encode() + b"\n"
        durable.replace(durable.write_sealed(layout.tmp, data, durable.RECORD_MODE), layout.format_file)


def _is_missing(directory: Path) -> bool:
    if is_directory(directory):
        return False
    if os.path.lexists(directory):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    return True


def _try_out(layout: Layout) -> None:
    """Do what commits and deletions do: give a new file a blob's name, and move a directory into ``models`` and back.

    A crash in between leaves a blob that nothing refers to, or an unfinished model: boots remove both. A full disk can
    be served, for reading and for deleting.
    """
    try:
        _try_out_blobs(layout)
        _try_out_models(layout)
    except OSError as error:
        if error.errno not in NO_SPACE_ERRNOS:
            raise


def _try_out_blobs(layout: Layout) -> None:
    fd, temporary = durable.create_temporary(layout.tmp)
    os.close(fd)
    blob = layout.blob(secrets.token_bytes(32))
    try:
        with _reaching(layout.blobs):
            durable.give_name(temporary, blob)
        durable.unlink_if_there(blob)
    finally:
        durable.discard(temporary)


def _try_out_models(layout: Layout) -> None:
    there = durable.temporary_path(layout.tmp)
    there.mkdir()
    moved = layout.models / there.name
    try:
        with _reaching(layout.models):
            there.rename(moved)
        moved.rename(there)
    finally:
        there.rmdir()


@contextlib.contextmanager
def _reaching(directory: Path) -> Iterator[None]:
    """Let errors name the directory to which something is moved."""
    try:
        yield
    except OSError as error:
        reason = "it's on another file system than the rest of it" if error.errno == errno.EXDEV else error.strerror
        raise OSError(error.errno, reason, str(directory)) from error
