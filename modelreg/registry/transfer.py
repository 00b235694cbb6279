"""Versions on their way in and out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from modelreg.errors import DataLoss, InvalidArgument
from modelreg.registry.records import UploadHeader, VersionInfo
from modelreg.storage.archive import Archive
from modelreg.storage.blobs import Damaged, OpenBlob
from modelreg.storage.threads import Threads
from modelreg.storage.writers import SMALL_BYTES


class _Incoming(Protocol):
    async def write(self, data: memoryview) -> None: ...
    def room(self, limit: int) -> memoryview | None: ...
    def filled(self, count: int) -> None: ...
    async def finish(self) -> bytes: ...


class Upload:
    """A version on its way in; made by :meth:`Registry.upload` only.

    Attributes:
        created_model: whether the commit created the model as well.
    """

    def __init__(
        self, header: UploadHeader, incoming: _Incoming, commit: Callable[[], Awaitable[tuple[VersionInfo, bool]]]
    ) -> None:
        self.created_model = False
        self._header = header
        self._incoming = incoming
        self._commit = commit
        self._received = 0

    async def write(self, data: memoryview) -> None:
        """Take the next bytes; *data* may be reused when this returns.

        Raises:
            InvalidArgument: they are more than the header announced.
        """
        self._received += len(data)
        if self._received > self._header.size:
            msg = f"more data came than the {self._header.size} bytes that data_size announced"
            raise InvalidArgument(msg)
        await self._incoming.write(data)

    def room(self, limit: int) -> memoryview | None:
        """Memory for up to *limit* of the next bytes, in place of :meth:`write`: to be filled at once, and told to
        :meth:`filled`. None where there's none just now, or where they are more than announced: then it's for
        :meth:`write` to wait, or to say so.
        """
        return self._incoming.room(min(limit, self._header.size - self._received))

    def filled(self, count: int) -> None:
        """The next *count* bytes are where :meth:`room` has said."""
        self._received += count
        self._incoming.filled(count)

    async def commit(self) -> VersionInfo:
        """All bytes have come: give the version its number and make it available; a stored one is durable when this
        returns.

        Raises:
            InvalidArgument: they are fewer than announced, or have another hash.
            NotFound: the model has been deleted meanwhile.
        """
        if self._received < self._header.size:
            msg = f"{self._received} bytes of data came, data_size announced {self._header.size}"
            raise InvalidArgument(msg)
        digest = await self._incoming.finish()
        if self._header.digest not in (None, digest):
            raise InvalidArgument(
                "the data has another SHA-256 than data_hash announced: "
                "it was damaged on its way, or isn't what was hashed"
            )
        version, self.created_model = await self._commit()
        return version


class VersionReader:
    """The content of a version on its way out; made by :meth:`Registry.read` only.

    Attributes:
        version: which it is.
        data: all of it; None where it isn't in memory.
        fd: a file descriptor whose bytes from 0 to ``version.size`` are the content. Before a part of it is given out,
            its end has to go through :meth:`check`; when all of it has been, :meth:`confirm` has the last word. None
            where :meth:`load` reads all of it.
    """

    def __init__(self, version: VersionInfo, *, data: bytes | bytearray | None = None, fd: int | None = None) -> None:
        self.version = version
        self.data = data
        self.fd = fd

    def close(self) -> None:
        """Let go of the file, if there is one of its own."""

    async def load(self) -> bytes:
        """Read all of the content, where neither *data* nor *fd* has it: it is small then, and waits on the disk until there
        is memory for it.

        Raises:
            DataLoss: it's damaged or missing.
        """
        raise NotImplementedError

    async def check(self, end: int) -> None:
        """Make sure that the bytes up to *end* may be given out. What is damaged shows at the end at the latest.

        Raises:
            DataLoss: it's damaged.
        """

    async def confirm(self) -> None:
        """Make sure that what was given out is the content, as a file can be changed while it is read.

        Raises:
            DataLoss: it isn't.
        """

    async def recheck(self) -> None:
        """Look at all of the content, as a part of it could not be given out.

        Raises:
            DataLoss: it's damaged.
        """


class _SmallBlobReader(VersionReader):
    """A reader of a stored version's blob that is read at once."""

    def __init__(self, version: VersionInfo, archive: Archive) -> None:
        super().__init__(version)
        self._archive = archive
        self._loaded = False

    async def load(self) -> bytes:
        archive, version = self._archive, self.version
        with _damage_is_data_loss(version):
            data = await archive.threads.file(archive.blobs.read, version.digest, version.size)
        self._loaded = True
        return data

    async def confirm(self) -> None:
        if not self._loaded:  # nothing of it was given out: it's empty, for example
            await self.load()


class _BlobReader(VersionReader):
    """A reader of a stored version's blob."""

    def __init__(self, version: VersionInfo, blob: OpenBlob, threads: Threads) -> None:
        super().__init__(version, fd=blob.fd)
        self._blob = blob
        self._threads = threads

    def close(self) -> None:
        self._blob.close()

    async def check(self, end: int) -> None:
        if not self._blob.sound:
            with _damage_is_data_loss(self.version):
                await self._threads.hash(self._blob.check, end)

    async def confirm(self) -> None:
        if self._blob.touched:
            await self.recheck()

    async def recheck(self) -> None:
        with _damage_is_data_loss(self.version):
            await self._threads.hash(self._blob.recheck)


async def open_blob(version: VersionInfo, archive: Archive) -> VersionReader:
    """A reader of a stored version's blob, to be closed.

    Raises:
        DataLoss: the blob is missing or damaged. A small one tells when it's read.
    """
    if version.size <= SMALL_BYTES:
        return _SmallBlobReader(version, archive)
    with _damage_is_data_loss(version):
        blob = await archive.threads.file(archive.blobs.open, version.digest, version.size)
    return _BlobReader(version, blob, archive.threads)


@contextmanager
def _damage_is_data_loss(version: VersionInfo) -> Iterator[None]:
    try:
        yield
    except Damaged as damage:
        raise _damaged(version) from damage


def _damaged(version: VersionInfo) -> DataLoss:
    return DataLoss(
        f'the data of version "{version.number}" of model "{version.model_id}" is damaged or missing in the archive: '
        "storing the same content again heals it"
    )
