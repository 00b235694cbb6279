"""Row 9 again: the disk has lost what the page cache still holds."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelreg.storage.archive import Archive
from modelreg.storage.blobs import Damaged
from tests.faults.mounts import Disk, open_disk
from tests.storage.surroundings import archive_at, model_record, pattern, store

CONTENT = pattern(500_000)
DIGEST = hashlib.sha256(CONTENT).digest()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with open_disk(tmp_path, 16 << 20) as disk:
        yield disk


def damage(disk: Disk, image: Path) -> None:
    """Change one byte of the content below the file system."""
    disk.sync()
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        place = memory.find(CONTENT[:4096]) + 5
        memory[place] ^= 1


def scrub(archive: Archive) -> None:
    with closing(archive.blobs.open(DIGEST, len(CONTENT))) as blob, pytest.raises(Damaged):
        for _ in blob.scrub():
            pass


async def test_readers_get_to_know_what_the_scrub_has_found(disk: Disk, tmp_path: Path) -> None:
    async with archive_at(disk.directory / "archive") as archive:
        await archive.write_model(model_record("m"))
        await store(archive, "m", 1, CONTENT)
        assert archive.blobs.read(DIGEST, len(CONTENT)) == CONTENT
        damage(disk, tmp_path / "image")
        scrub(archive)
        with pytest.raises(Damaged):
            archive.blobs.read(DIGEST, len(CONTENT))
        assert archive.blobs.damaged == {DIGEST}
        await store(archive, "m", 2, CONTENT)
        scrubbed = archive.blobs.open(DIGEST, len(CONTENT))
        with closing(scrubbed):
            assert sum(scrubbed.scrub()) == len(CONTENT)
        assert not archive.blobs.damaged
