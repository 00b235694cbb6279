"""Hashes what is stored, again and again and slowly, so that damage shows before somebody needs what is damaged.

It reads from the disk itself: what this process has read before may be sound in the page cache and gone on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import structlog
import trio

from modelreg.errors import ModelregError, NotFound
from modelreg.registry.records import VersionInfo
from modelreg.registry.registry import Registry
from modelreg.storage.archive import Archive
from modelreg.storage.blobs import Damaged

# What a version costs beside its bytes: a seek, a thread. It keeps a million small ones from being read at full speed.
BYTES_FOR_A_VERSION = 64 << 10

# How long the scrub rests before it begins again, in seconds.
REST_SECONDS = 60.0


async def scrub(
    registry: Registry,
    archive: Archive,
    bytes_per_second: int,
    logger: structlog.typing.FilteringBoundLogger,
) -> None:
    """Hash each stored content, then all again, until cancelled.

    Damage shows as when a reader meets it: see :class:`BlobStore`.
    """
    while True:
        seen: set[bytes] = set()
        size = damaged = 0
        for version in _stored(registry):
            if version.digest not in seen:
                seen.add(version.digest)
                size += version.size
                damaged += not await _scrub(version, archive, bytes_per_second)
        logger.info("scrubbed", blobs=len(seen), bytes=size, damaged=damaged)
        await trio.sleep(REST_SECONDS)


def _stored(registry: Registry) -> Iterator[VersionInfo]:
    """The stored versions, each as it is when it's asked for."""
    for model in registry.models():
        try:
            for version in registry.versions(model.model_id):
                if version.stored and version is registry.version(model.model_id, version.number):
                    yield version
        except NotFound:  # deleted meanwhile
            continue


async def _scrub(version: VersionInfo, archive: Archive, bytes_per_second: int) -> bool:
    """Hash one content; whether it's as it should be, as far as that can be told."""
    blobs, threads = archive.blobs, archive.threads
    blobs.retain(version.digest, version.size)
    try:
        await trio.sleep(BYTES_FOR_A_VERSION / bytes_per_second)
        blob = await threads.file(blobs.open, version.digest, version.size)
        with closing(blob), closing(blob.scrub()) as pieces:
            while size := await threads.hash(next, pieces, 0):  # noqa: ASYNC110  # sleeping is the pace
                await trio.sleep(size / bytes_per_second)
    except Damaged:
        return False
    except ModelregError:  # it couldn't be looked at, which is in the log
        return True
    finally:
        blobs.release(version.digest, version.size)
        await blobs.collect()
    return True
