"""Transient versions: their content in memory, bounded by count and by bytes; the least recently used goes first.

Use is publishing or reading. The newest version of a model only goes when nothing else is left, so that "latest" stays true for as
long as it can. A model that needs room gives up its own newest version before it takes that of another one. Memory is freed when a version is gone and its last reader has done with it, and counts until then: one
that's being read doesn't go for the sake of memory.

Small content is an object in memory, large content a file in memory (``memfd_create(2)``; where there is none, an unnamed
temporary file), so that it's sent the same way as a stored blob. Content that's stored already costs no memory: the
version then refers to the blob. A version's user data counts like its content.
"""

from __future__ import annotations

import functools
import os
import resource
import tempfile
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from itertools import chain, islice
from typing import Generic, TypeVar

import attrs
import trio
from sortedcontainers import SortedDict

from modelreg.errors import ResourceExhausted
from modelreg.storage.archive import Archive
from modelreg.storage.writers import ContentWriter, FileWriter, MemoryWriter

Key = TypeVar("Key", bound=Hashable)

# Large versions take a file descriptor each. All of them together may have one in so many of the process's.
FILES_SHARE = 4


@attrs.define(eq=False, kw_only=True)
class Content:
    """The content of a transient version: an object, a file, or (neither of them) a blob. It lives while it has users."""

    size: int
    digest: bytes
    data: bytes | bytearray | None = None
    fd: int | None = None
    users: int = 1

    @property
    def in_memory(self) -> int:
        """Bytes of memory that it takes."""
        return 0 if self.data is None and self.fd is None else self.size


@attrs.define(eq=False)
class _Entry(Generic[Key]):
    key: Key
    model: str
    content: Content
    # Bytes of memory that are kept beside the content: the version's user data.
    beside: int
    used_at: int
    newest: bool


class TransientStore(Generic[Key]):
    """The transient versions of a registry.

    Arguments:
        archive: whose blobs and upload buffers are shared.
        max_items: how many versions at most.
        max_items_of_a_model: how many of them may be of one model; 0 for no such limit.
        max_bytes: how many bytes of memory at most, with uploads under way and with what readers have of versions that are gone.
        evicted: told of each version that had to go, and for which model, before anything else happens.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        max_items: int,
        max_items_of_a_model: int = 0,
        max_bytes: int,
        evicted: Callable[[Key, str], None],
    ) -> None:
        self._archive = archive
        self._max_items = max_items
        self._max_items_of_a_model = max_items_of_a_model
        self._max_bytes = max_bytes
        self._evicted = evicted
        self._bytes = 0
        self._arriving = 0
        self._files = 0
        self._max_files = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FILES_SHARE)
        self._clock = 0
        self._entries: dict[Key, _Entry[Key]] = {}
        # Those of each model, in the order in which they were put.
        self._models: dict[str, dict[Key, _Entry[Key]]] = {}
        # Least recently used first; keyed by the time of last use, in uses.
        self._newest: SortedDict[int, _Entry[Key]] = SortedDict()
        self._others: SortedDict[int, _Entry[Key]] = SortedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def max_bytes(self) -> int:
        """How many bytes of memory all versions together take at most."""
        return self._max_bytes

    @property
    def in_memory(self) -> int:
        """Memory that versions take, in bytes, those included that are gone and still being read."""
        return self._bytes

    @asynccontextmanager
    async def incoming(self, size: int, model: str, *, beside: int = 0) -> AsyncIterator[TransientIncoming[Key]]:
        """A place for *size* bytes of content for a model; what hasn't been put when the context ends leaves no trace.

        *beside* is the memory that is kept with the version, and counts as its content does.

        Raises:
            ResourceExhausted: that much never fits.
        """
        if size + beside > self._max_bytes:
            msg = f"{size + beside} bytes are more than all transient versions together may have ({self._max_bytes}): raise --cache_max_bytes"
            raise ResourceExhausted(msg)
        with self._archive.small_writer(size) as gathering:
            if gathering is not None:
                small = _SmallIncoming(self, model, beside, gathering)
                try:
                    yield small
                finally:
                    small.close()
                return
        fd = await self._archive.threads.memory(_memory_file)
        taken = False
        try:
            async with self._archive.file_writer(fd, self._archive.threads.memory) as writer:
                large = _LargeIncoming(self, model, beside, writer, fd)
                try:
                    yield large
                finally:
                    large.close()
                    taken = large.taken
        finally:
            if not taken:
                _close(fd)

    def put(self, key: Key, incoming: TransientIncoming[Key]) -> None:
        """Add a finished version, the newest of its model, making room for it.

        Raises:
            ResourceExhausted: it's in a file, and readers hold all the files that there may be.
        """
        content, model = incoming.take(), incoming.model
        self._bytes += content.in_memory
        self._files += content.fd is not None
        try:
            self._keep_files_for_others(model)
        except ResourceExhausted:
            self.release(content)
            raise
        own = self._models.get(model, {})
        while own and 0 < self._max_items_of_a_model <= len(own):
            self._let_go(min(own.values(), key=lambda entry: entry.used_at), model)
        while self._entries and len(self._entries) >= self._max_items:
            self._evict(lambda _: True, model)
        entry = _Entry(key, model, content, incoming.beside, self._now(), newest=True)
        self._bytes += entry.beside
        self._entries[key] = entry
        self._models.setdefault(model, {})[key] = entry
        self._newest[entry.used_at] = entry

    def demote(self, key: Key) -> None:
        """A version, if it's here, isn't the newest of its model any more."""
        entry = self._entries.get(key)
        if entry is not None and entry.newest:
            del self._newest[entry.used_at]
            entry.newest = False
            self._others[entry.used_at] = entry

    def remove(self, key: Key) -> None:
        """Drop a version; whoever reads it still can."""
        entry = self._entries.pop(key)
        own = self._models[entry.model]
        del own[key]
        if not own:
            del self._models[entry.model]
        del self._row(entry)[entry.used_at]
        self._bytes -= entry.beside
        self.release(entry.content)

    def is_in_archive(self, key: Key) -> bool:
        """Return whether a version is here, and its content is a blob, not in memory."""
        entry = self._entries.get(key)
        return entry is not None and entry.content.data is None and entry.content.fd is None

    def use(self, key: Key) -> Content:
        """The content of a version, for a reader, who releases it in the end."""
        entry = self._entries[key]
        row = self._row(entry)
        del row[entry.used_at]
        entry.used_at = self._now()
        row[entry.used_at] = entry
        entry.content.users += 1
        return entry.content

    def release(self, content: Content) -> None:
        """A user of content has done with it. After the last one its memory is free; a blob may be left to collect."""
        content.users -= 1
        if content.users:
            return
        self._bytes -= content.in_memory
        self._files -= content.fd is not None
        if content.fd is not None:
            _close(content.fd)
        elif content.data is None:
            self._archive.blobs.release(content.digest, content.size)

    def close(self) -> None:
        """Drop everything."""
        for key in list(self._entries):
            self.remove(key)

    def reserve(self, size: int, model: str) -> None:
        """Make room for bytes that are about to arrive for a model.

        Raises:
            ResourceExhausted: there's no room to be made: readers and uploads under way take it all.
        """
        self._make_room(size, model)
        self._arriving += size

    def unreserve(self, size: int) -> None:
        """Bytes that arrived aren't an upload's any more."""
        self._arriving -= size

    def share_blob(self, digest: bytes, size: int) -> Content | None:
        """Content that takes no memory, if a blob known to be sound has it."""
        if not self._archive.blobs.is_sound(digest):
            return None
        self._archive.blobs.retain(digest, size)
        return Content(size=size, digest=digest)

    def _row(self, entry: _Entry[Key]) -> SortedDict[int, _Entry[Key]]:
        return self._newest if entry.newest else self._others

    def _now(self) -> int:
        self._clock += 1
        return self._clock

    def _make_room(self, size: int, model: str) -> None:
        while self._bytes + self._arriving + size > self._max_bytes:
            if not self._evict(
                lambda entry: entry.content.users == 1 and entry.content.in_memory + entry.beside > 0, model
            ):
                msg = (
                    f"downloads and uploads under way take all the memory for transient versions ({self._max_bytes} bytes): "
                    "try again when they have ended, or raise --cache_max_bytes"
                )
                raise ResourceExhausted(msg)

    def _keep_files_for_others(self, model: str) -> None:
        while self._files > self._max_files:
            if not self._evict(lambda entry: entry.content.users == 1 and entry.content.fd is not None, model):
                msg = (
                    f"downloads under way take all the files for large transient versions ({self._max_files}): "
                    "try again when they have ended, or raise the limit of open files (ulimit -n)"
                )
                raise ResourceExhausted(msg)

    def _evict(self, helps: Callable[[_Entry[Key]], bool], model: str) -> bool:
        """Let the first version go whose going helps *model*; whether there's one."""
        own = reversed(self._models.get(model, {}).values())  # its newest version comes first
        entries = chain(self._others.values(), islice(own, 1), self._newest.values())
        entry = next((entry for entry in entries if helps(entry)), None)
        if entry is None:
            return False
        self._let_go(entry, model)
        return True

    def _let_go(self, entry: _Entry[Key], model: str) -> None:
        self._evicted(entry.key, model)
        self.remove(entry.key)


class TransientIncoming(Generic[Key]):
    """Content on its way into memory; made by :meth:`TransientStore.incoming` only."""

    def __init__(self, store: TransientStore[Key], model: str, beside: int, writer: ContentWriter) -> None:
        self.model = model
        self.beside = beside
        self._store = store
        self._writer = writer
        self._reserved = 0
        self._received = 0
        self.digest = b""
        self._reserve(0)

    async def write(self, data: memoryview) -> None:
        """Take the next bytes; *data* may be reused when this returns.

        Raises:
            ResourceExhausted: there's no room for them.
        """
        self._received += len(data)
        self._reserve(0)
        await self._writer.write(data)

    def room(self, limit: int) -> memoryview | None:
        """Memory for up to *limit* of the next bytes, in place of :meth:`write`; None where there's none just now."""
        room = self._writer.room(limit)
        if room is not None:
            try:
                self._reserve(len(room))
            except ResourceExhausted:
                return None
        return room

    def filled(self, count: int) -> None:
        """The next *count* bytes are where :meth:`room` has said."""
        self._received += count
        self._writer.filled(count)

    def _reserve(self, coming: int) -> None:
        missing = self.beside + self._received + coming - self._reserved
        if missing > 0:
            self._store.reserve(missing, self.model)
            self._reserved += missing

    async def finish(self) -> bytes:
        """No more bytes come: the SHA-256 of all there were."""
        self.digest = await self._writer.finish()
        return self.digest

    def take(self) -> Content:
        """The content; its room isn't the upload's any more."""
        size = self._received
        self.close()
        return self._store.share_blob(self.digest, size) or self._content(size)

    def _content(self, size: int) -> Content:
        raise NotImplementedError

    def close(self) -> None:
        """Give back the room that the bytes took while they arrived."""
        self._store.unreserve(self._reserved)
        self._reserved = 0


class _SmallIncoming(TransientIncoming[Key]):
    def __init__(self, store: TransientStore[Key], model: str, beside: int, writer: MemoryWriter) -> None:
        super().__init__(store, model, beside, writer)
        self._data = writer.data

    def _content(self, size: int) -> Content:
        return Content(size=size, digest=self.digest, data=self._data)


class _LargeIncoming(TransientIncoming[Key]):
    def __init__(self, store: TransientStore[Key], model: str, beside: int, writer: FileWriter, fd: int) -> None:
        super().__init__(store, model, beside, writer)
        self._fd = fd
        self.taken = False

    def _content(self, size: int) -> Content:
        self.taken = True
        return Content(size=size, digest=self.digest, fd=self._fd)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("modelreg", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _close(fd: int) -> None:
    """Close a file in memory: freeing its pages takes some 60 ms a GB, so a thread does it."""
    trio.lowlevel.start_thread_soon(functools.partial(os.close, fd), lambda _: None)
