"""What lies in an archive and is of no use: blobs that nothing refers to, and what unfinished work has left.

A boot empties ``tmp/`` and deletes such blobs after a day. This is for whoever can't wait.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import attrs

from modelreg.errors import ArchiveUnusable
from modelreg.storage import durable, inspection, lock
from modelreg.storage.layout import Layout
from modelreg.storage.unusable import unusable


@attrs.frozen(kw_only=True)
class Leftover:
    """A file or directory that can go."""

    kind: Literal["blob", "unfinished"]
    # Relative to the archive directory.
    path: str
    # Bytes; a file of several names counts with each.
    size: int


@attrs.frozen(kw_only=True)
class Leftovers:
    """What can go, and what speaks against it."""

    found: Sequence[Leftover]
    # Things in quarantine that may refer to any of the blobs.
    records_in_quarantine: int
    # Where the paths begin while the archive is locked.
    root: Path


@contextmanager
def open_leftovers(path: Path) -> Iterator[Leftovers]:
    """Find what can go; the archive is locked until the context ends.

    Raises:
        ArchiveInUse: a server has it.
        ForeignArchive: it's something else.
        ArchiveUnusable: there's no archive there, it can't be read, or there are records whose blobs can't be told, as
            they can't be read.
    """
    layout = Layout(path)
    with unusable(layout), closing(lock.take_existing(layout)) as taken:
        layout = taken.layout
        yield Leftovers(
            found=[*_unreferenced_blobs(layout), *_unfinished(layout)],
            records_in_quarantine=inspection.records_in_quarantine(layout),
            root=layout.root,
        )


def delete(leftovers: Leftovers) -> None:
    """Delete what was found; the archive has to be locked still. Raises OSError."""
    for leftover in leftovers.found:
        place = leftovers.root / leftover.path
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            durable.unlink_if_there(place)


def _unreferenced_blobs(layout: Layout) -> Iterator[Leftover]:
    wanted: set[str] = set()
    for directory in inspection.model_directories(layout, _ignore):
        model = inspection.inspect_model(directory, _ignore)
        if model.bad:
            msg = (
                f"{model.directory.name!r} in the archive has records that can't be read, so that no blob can be told "
                "from one that nothing refers to: run modelreg verify first"
            )
            raise ArchiveUnusable(msg)
        wanted.update(version.sha256 for version in model.versions)
    for entry in inspection.blob_files(layout, _ignore):
        if entry.name not in wanted:
            size = entry.stat(follow_symlinks=False).st_size
            yield Leftover(kind="blob", path=os.path.relpath(entry.path, layout.root), size=size)


def _unfinished(layout: Layout) -> Iterator[Leftover]:
    for entry in inspection.unfinished(layout, _ignore):
        yield Leftover(kind="unfinished", path=os.path.relpath(entry.path, layout.root), size=_size(Path(entry.path)))


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(entry) for entry in path.iterdir())


def _ignore(_: str) -> None:
    pass
