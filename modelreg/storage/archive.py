"""The archive that a running server holds: content and records, written durably.

A store is: the content into a temporary file (``writers.py``), made durable under its hash (``blobs.py``), then the
sidecar, made durable under its number. Only after that does anybody hear of the version.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import structlog
import trio

from modelreg.errors import ResourceExhausted, Unavailable
from modelreg.storage import durable, lock, recovery, sidecars
from modelreg.storage.blobs import BlobStore
from modelreg.storage.buffers import Budget, BufferPool
from modelreg.storage.layout import Layout
from modelreg.storage.recovery import FoundModel
from modelreg.storage.sidecars import ModelRecord, VersionRecord
from modelreg.storage.threads import Threads
from modelreg.storage.writers import (
    DIRECT_BYTES,
    ContentWriter,
    FileWriter,
    MemoryWriter,
    RunInThread,
    bypass_page_cache,
    file_writer,
    small_writer,
)

DEFAULT_UPLOAD_BUFFER_BYTES = 256 << 20

# One in so many bytes of it is for small content, which then never waits for large content.
SMALL_SHARE = 8


class Incoming:
    """Content on its way into the archive; made by :meth:`Archive.incoming` only."""

    def __init__(self, writer: ContentWriter) -> None:
        self._writer = writer
        self.digest = b""
        self.installed = False

    async def write(self, data: memoryview) -> None:
        """Take the next bytes; *data* may be reused when this returns."""
        await self._writer.write(data)

    def room(self, limit: int) -> memoryview | None:
        """Memory for up to *limit* of the next bytes, in place of :meth:`write`; None where there's none just now."""
        return self._writer.room(limit)

    def filled(self, count: int) -> None:
        """The next *count* bytes are where :meth:`room` has said."""
        self._writer.filled(count)

    async def finish(self) -> bytes:
        """No more bytes come: the SHA-256 of all there were. Nothing is durable yet."""
        self.digest = await self._writer.finish()
        return self.digest

    def install(self, blobs: BlobStore) -> None:
        """Make the content durable under its digest. This blocks."""
        raise NotImplementedError


class _SmallIncoming(Incoming):
    def __init__(self, writer: MemoryWriter) -> None:
        super().__init__(writer)
        self._content = writer.data

    def install(self, blobs: BlobStore) -> None:
        blobs.install_bytes(self._content, self.digest)
        self.installed = True


class _LargeIncoming(Incoming):
    def __init__(self, writer: FileWriter, temporary: _Temporary, size: int) -> None:
        super().__init__(writer)
        self._temporary = temporary
        self._size = size

    def install(self, blobs: BlobStore) -> None:
        self._temporary.seal()
        blobs.install(self._temporary.path, self.digest, self._size)
        self.installed = True


class _PresentIncoming(Incoming):
    """Content that the archive has already: it's only hashed."""

    def __init__(self, writer: FileWriter, size: int) -> None:
        super().__init__(writer)
        self._size = size

    def install(self, blobs: BlobStore) -> None:
        if not blobs.keep(self.digest, self._size):
            raise Unavailable("the archive has lost the same content meanwhile: send it again")
        self.installed = True


class _Temporary:
    """A temporary file that's removed at the end, unless it has got another name by then."""

    def __init__(self, directory: Path, *, past_page_cache: bool) -> None:
        self.fd, self.path = durable.create_temporary(directory)
        self._open = True
        if past_page_cache:
            bypass_page_cache(self.fd)

    def seal(self) -> None:
        self._open = False
        durable.seal(self.fd, durable.CONTENT_MODE)

    def remove(self) -> None:
        if self._open:
            with contextlib.suppress(OSError):  # nobody wants what's in it
                os.close(self.fd)
        durable.discard(self.path)


class Archive:
    """An archive directory, locked and read.

    Attributes:
        blobs: the content.
        threads: where blocking work on it runs.
        found: the models and stored versions that were there at boot.
    """

    def __init__(
        self,
        layout: Layout,
        threads: Threads,
        blobs: BlobStore,
        found: Sequence[FoundModel],
        nursery: trio.Nursery,
        upload_buffer_bytes: int,
    ) -> None:
        self.threads = threads
        self.blobs = blobs
        self.found = found
        self._layout = layout
        self._nursery = nursery
        self._small_budget = Budget(upload_buffer_bytes // SMALL_SHARE)
        self._budget = Budget(upload_buffer_bytes - upload_buffer_bytes // SMALL_SHARE)
        self._pool = BufferPool(self._budget, nursery)

    # Models. Callers see to it that no two of these run for one model at once.

    async def write_model(self, record: ModelRecord) -> None:
        """Write a model's record durably, creating its directory where it isn't there."""
        await self.threads.file(sidecars.write_model, self._layout, record)

    async def delete_model(self, model_id: str) -> None:
        """Delete a model's records: all at once, by moving its directory away. Its blobs are the caller's to release."""
        await self.threads.file(self._delete_model, model_id)

    def _delete_model(self, model_id: str) -> None:
        directory = self._layout.model(model_id)
        going = durable.temporary_path(self._layout.tmp)
        durable.move_away(directory, going)
        with contextlib.suppress(OSError):  # it doesn't ignore all errors; what is left goes at the next boot
            shutil.rmtree(going, ignore_errors=True)

    # Versions.

    @asynccontextmanager
    async def incoming(self, size: int, digest: bytes | None = None) -> AsyncIterator[Incoming]:
        """A place for *size* bytes of content; what hasn't been installed when the context ends leaves no trace.

        Content of this *digest* that the archive has already takes no room. The caller makes sure that what comes has
        that digest.

        Raises:
            ResourceExhausted, StorageFailed, Unavailable: as :meth:`Threads.file`.
        """
        with self.small_writer(size) as gathering:
            if gathering is not None:
                yield _SmallIncoming(gathering)
                return
        async with self._present(size, digest) as present:
            if present:
                async with self.file_writer(None) as writer:
                    yield _PresentIncoming(writer, size)
                return
        temporary = await self.threads.file(self._make_temporary, size)
        try:
            async with self.file_writer(temporary.fd) as writer:
                yield _LargeIncoming(writer, temporary, size)
        finally:
            with trio.CancelScope(shield=True):  # an unlink
                await trio.to_thread.run_sync(temporary.remove)

    @asynccontextmanager
    async def _present(self, size: int, digest: bytes | None) -> AsyncIterator[bool]:
        """Whether content is there and sound. It stays for as long as the context lasts.

        An announced size that isn't the file's says nothing about the file, so neither damage nor a reference comes of it.
        """
        if (
            digest is None
            or not self.blobs.may_be_sound(digest)
            or not await self.threads.hash(self.blobs.has_size, digest, size)
            or not self.blobs.may_be_sound(digest)  # still
        ):
            yield False
            return
        self.blobs.retain(digest, size)
        try:
            yield await self.threads.hash(self.blobs.is_whole, digest, size)
        finally:
            self.blobs.release(digest, size)
            await self.blobs.collect()

    @asynccontextmanager
    async def file_writer(self, fd: int | None, run: RunInThread | None = None) -> AsyncIterator[FileWriter]:
        """A pipeline to an open file, out of the memory that all uploads share; see :func:`writers.file_writer`."""
        async with file_writer(fd, self._pool, self.threads, self._nursery, run) as writer:
            yield writer

    def small_writer(self, size: int) -> AbstractContextManager[MemoryWriter | None]:
        """A writer for small content, out of the memory that all uploads share; None for what has to go to a file."""
        return small_writer(self._small_budget, size)

    def _make_temporary(self, size: int) -> _Temporary:
        free = os.statvfs(self._layout.tmp)
        if size > free.f_bavail * free.f_frsize:
            msg = f"{size} bytes don't fit in the archive directory: make room, or start with another --archive_dir"
            raise ResourceExhausted(msg)
        return _Temporary(self._layout.tmp, past_page_cache=size >= DIRECT_BYTES)

    async def install_large(self, incoming: Incoming) -> None:
        """Make content durable that takes a while; small content goes along with its sidecar, in :meth:`store_version`."""
        if isinstance(incoming, _LargeIncoming):
            await self.threads.file(incoming.install, self.blobs)

    async def store_version(self, record: VersionRecord, incoming: Incoming) -> None:
        """Make a version's content, where it isn't yet, and then its sidecar durable."""
        await self.threads.file(self._store_version, record, incoming)

    def _store_version(self, record: VersionRecord, incoming: Incoming) -> None:
        if not incoming.installed:
            incoming.install(self.blobs)
        sidecars.write_version(self._layout, record)


@asynccontextmanager
async def open_archive(
    path: Path,
    logger: structlog.typing.FilteringBoundLogger,
    *,
    upload_buffer_bytes: int = DEFAULT_UPLOAD_BUFFER_BYTES,
    damage_changed: Callable[[], object] = lambda: None,
) -> AsyncIterator[Archive]:
    """Lock an archive directory, creating it where it isn't there, put right what a crash left behind, and read it.

    *damage_changed* is called when content is found damaged, or is healed or deleted, after that.

    Raises:
        ArchiveUnusable, ArchiveInUse, ForeignArchive: it can't be served; each says why.
    """
    taken = await trio.to_thread.run_sync(lock.take, Layout(path))
    layout = taken.layout
    try:
        recovered = await trio.to_thread.run_sync(functools.partial(recovery.recover, layout, logger))
        threads = Threads(logger, layout.explain)
        soon = functools.partial(trio.lowlevel.current_trio_token().run_sync_soon, damage_changed, idempotent=True)
        blobs = BlobStore(layout, threads, logger, soon)
        for model in recovered:
            blobs.damaged |= model.damaged
            for version in model.versions:
                blobs.retain(bytes.fromhex(version.sha256), version.size)
        async with trio.open_nursery() as nursery:
            yield Archive(layout, threads, blobs, recovered, nursery, upload_buffer_bytes)
            nursery.cancel_scope.cancel()
    finally:
        taken.close()
