"""Content-addressed blobs: each content lies once, under its SHA-256, for as long as anybody refers to it.

**References.** A stored version, a transient version of the same content, a reader and a commit each hold one. The blob
goes when the last one does. A commit that comes while the blob is on its way out waits, and then stores it again.

**Trust.** What this process wrote or has read through since it started is known to be sound, for as long as the file's
inode, size and change time stay as they were. Everything else is hashed again while it's read, in a thread, and the
last piece is only given out when the hash is right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import attrs
import structlog
import trio

from modelreg.errors import ModelregError
from modelreg.storage import durable, hashing
from modelreg.storage.layout import Layout
from modelreg.storage.threads import Threads

READ_BYTES = 1 << 20


class Damaged(Exception):
    """A blob isn't what its name says; the text says what's wrong with it."""


@attrs.frozen
class Fingerprint:
    """What changes when a file's bytes do: nobody can set a change time (``st_ctim`` in inode(7))."""

    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        return cls(status.st_ino, status.st_size, status.st_ctime_ns)


def _fingerprint(path: Path) -> Fingerprint | None:
    """That of the file, or symbolic link, of a name; None where there is none."""
    try:
        return Fingerprint.of(path.lstat())
    except FileNotFoundError:
        return None


class BlobStore:
    """The blobs of one archive.

    Arguments:
        damage_changed: called, from any thread, when content was found damaged, healed or deleted.

    Attributes:
        bytes: the size of all blobs that are referred to.
        damage_found: how often damage was met since the start.
        damaged: those known to be damaged now.
    """

    def __init__(
        self,
        layout: Layout,
        threads: Threads,
        logger: structlog.typing.FilteringBoundLogger,
        damage_changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._damage_changed = damage_changed
        self._layout = layout
        self._threads = threads
        self._logger = logger
        self._references: dict[bytes, int] = {}
        self._sound: dict[bytes, Fingerprint] = {}
        self._leaving: dict[bytes, trio.Event] = {}
        self._unreferenced: set[bytes] = set()
        # Held while a blob is replaced, and while somebody says what it is like.
        self._healing = threading.Lock()
        self.bytes = 0
        self.damage_found = 0
        self.damaged: set[bytes] = set()

    def is_sound(self, digest: bytes) -> bool:
        """Whether a blob is referred to, and was sound when it was last looked at."""
        return digest in self._references and digest in self._sound

    def may_be_sound(self, digest: bytes) -> bool:
        """Whether a blob is referred to, and isn't known to be damaged."""
        return digest in self._references and digest not in self.damaged

    # References. A digest that isn't referred to has no entry, so that "is it stored?" is "does it have one?".

    def retain(self, digest: bytes, size: int) -> None:
        """Add a reference to a blob that has one already, or, at boot, its first."""
        references = self._references.get(digest, 0)
        self._references[digest] = references + 1
        if not references:
            self.bytes += size

    async def retain_for_commit(self, digest: bytes, size: int) -> None:
        """Add a reference for whoever is about to install the blob; one on its way out is gone when this returns."""
        while digest in self._leaving:
            await self._leaving[digest].wait()
        self.retain(digest, size)

    def release(self, digest: bytes, size: int) -> None:
        """Take a reference away. After the last one, :meth:`collect` deletes the blob."""
        self._references[digest] -= 1
        if not self._references[digest]:
            del self._references[digest]
            self._unreferenced.add(digest)
            self.bytes -= size

    async def collect(self) -> None:
        """Delete the blobs that nobody refers to any more.

        One that can't be deleted is the next boot's to deal with, and nobody's failure.
        """
        if not self._unreferenced:
            return
        gone = {
            digest for digest in self._unreferenced if digest not in self._references and digest not in self._leaving
        }
        self._unreferenced.clear()
        if not gone or self._threads.failed.is_set():
            return
        for digest in gone:
            self._leaving[digest] = trio.Event()
        try:
            # A few unlinks. What can't be removed is logged, and lies around until a boot deletes it.
            with trio.CancelScope(shield=True), contextlib.suppress(ModelregError):
                await self._threads.file(self._unlink, gone)
        finally:
            for digest in gone:
                self._sound.pop(digest, None)
                self._mend(digest)
                self._leaving.pop(digest).set()

    def _unlink(self, digests: Iterable[bytes]) -> None:
        # Not synced: a blob that a power cut brings back is one that nothing refers to.
        for digest in digests:
            try:
                durable.unlink_if_there(self._layout.blob(digest))
            except OSError as error:
                self._logger.warning("a blob could not be deleted", sha256=digest.hex(), error=error.strerror)

    # What follows blocks: it's for a thread.

    def install(self, temporary: Path, digest: bytes, size: int) -> None:
        """Give a sealed temporary file, known to hold this content, its name. Content that's there already isn't stored
        twice, but made durable, as its first writer may not have come to that; damaged content goes to quarantine and
        is replaced.

        Raises:
            OSError, durable.DirectorySyncError: see there. The temporary file may be left.
        """
        final = self._layout.blob(digest)
        try:
            durable.publish(temporary, final)
        except FileNotFoundError:  # somebody has tidied an empty directory away
            durable.make_directory(final.parent)
            durable.publish(temporary, final)
        except FileExistsError:
            while True:
                with self._healing:
                    found = _fingerprint(final)
                if self.keep(digest, size):
                    durable.discard(temporary)
                    return
                if self._heal(temporary, final, digest, found):
                    return
        self.trust(digest, Fingerprint.of(final.stat()))

    def keep(self, digest: bytes, size: int) -> bool:
        """Make content durable that is there and sound, as its first writer may not have come to that.

        False where it isn't there, isn't sound, or can't be synced: its bytes may never get to the disk then, whatever
        a second sync says. It has to be replaced.

        Raises:
            durable.DirectorySyncError: see there.
        """
        final = self._layout.blob(digest)
        seen = _fingerprint(final)
        if seen is None or not self.is_whole(digest, size):
            return False
        try:
            durable.sync_file(final)
        except OSError as error:
            self.report_damage(digest, f"it can't be synced ({error.strerror})", seen)
            return False
        durable.sync_directory(final.parent)
        return True

    def _heal(self, temporary: Path, final: Path, digest: bytes, found: Fingerprint | None) -> bool:
        """Put a sealed file in the place of a damaged blob that looked like *found*, and keep that in quarantine.

        False where it looks different now: another upload has healed it, and what is good must not go to quarantine.
        Where files can be exchanged, the name never lacks one. Blobs of other users and directories are exchanged, too.
        """
        with self._healing:
            if _fingerprint(final) != found:
                return False
            exchanged = found is not None and durable.exchange(temporary, final)
            if not exchanged:
                if found is not None:
                    durable.move_away(final, self._layout.quarantine_place(final.name))
                durable.replace(temporary, final)
            self.trust(digest, Fingerprint.of(final.lstat()))
            if exchanged:
                durable.move_away(temporary, self._layout.quarantine_place(final.name))
        return True

    def install_bytes(self, content: bytes | bytearray, digest: bytes) -> None:
        """Write small content, known to have this digest, durably under its name.

        Raises:
            OSError, durable.DirectorySyncError: see there. Nothing is left of it.
        """
        if self.keep(digest, len(content)):
            return
        temporary = durable.write_sealed(self._layout.tmp, content, durable.CONTENT_MODE)
        try:
            self.install(temporary, digest, len(content))
        except OSError:
            durable.discard(temporary)
            raise

    def has_size(self, digest: bytes, size: int) -> bool:
        """Whether a file of this size is there. This blocks."""
        found = _fingerprint(self._layout.blob(digest))
        return found is not None and found.size == size

    def is_whole(self, digest: bytes, size: int) -> bool:
        """Whether a blob is sound, as far as that is known. It is hashed where it hasn't been."""
        with self._healing:
            damaged = digest in self.damaged  # on the disk: it may look sound still in the page cache
        return not damaged and self._damage(digest, size) is None

    def _damage(self, digest: bytes, size: int) -> Damaged | None:
        try:
            with contextlib.closing(self.open(digest, size)) as blob:
                blob.check(size)
        except Damaged as damage:
            return damage
        return None

    def open(self, digest: bytes, size: int) -> OpenBlob:
        """Open a blob.

        Raises:
            Damaged: it's missing, not a regular file, or its size is another one.
            OSError: it could not be opened.
        """
        try:
            # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
            fd = os.open(self._layout.blob(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
                raise
            reason = "it is missing" if error.errno == errno.ENOENT else "it's not a regular file"
            raise self.report_damage(digest, reason) from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise self.report_damage(digest, "it's not a regular file")
        fingerprint = Fingerprint.of(status)
        if fingerprint.size != size:
            os.close(fd)
            raise self.report_damage(digest, f"it has {fingerprint.size} bytes in place of {size}")
        return OpenBlob(self, fd, digest, fingerprint, sound=self._sound.get(digest) == fingerprint)

    def read(self, digest: bytes, size: int) -> bytes:
        """All of a blob, checked. Raises what :meth:`open` raises, and what :meth:`OpenBlob.check` does."""
        with contextlib.closing(self.open(digest, size)) as blob:
            return blob.read()

    def trust(self, digest: bytes, fingerprint: Fingerprint) -> None:
        """A blob has been written, or read through, while it had this fingerprint, and is sound."""
        self._sound[digest] = fingerprint
        self._mend(digest)

    def _mend(self, digest: bytes) -> None:
        """A blob isn't damaged, or isn't there, any more."""
        if digest in self.damaged:
            self.damaged.discard(digest)
            self._damage_changed()

    def report_damage(self, digest: bytes, reason: str, seen: Fingerprint | None = None) -> Damaged:
        """A blob is damaged: count it, say it in the log, and make the exception to raise.

        *seen* is the file that was looked at; where another has taken its place meanwhile, that one is sound.
        """
        self.damage_found += 1
        with self._healing:
            now = _fingerprint(self._layout.blob(digest))
            if seen is None or now is None or now.inode == seen.inode:
                self._sound.pop(digest, None)
                self.damaged.add(digest)
                self._damage_changed()
        self._logger.error("a blob is damaged", sha256=digest.hex(), reason=reason)
        return Damaged(reason)


class OpenBlob:
    """A blob that's being read; made by :meth:`BlobStore.open` only."""

    def __init__(self, store: BlobStore, fd: int, digest: bytes, fingerprint: Fingerprint, *, sound: bool) -> None:
        self.fd = fd
        self.size = fingerprint.size
        self.sound = sound
        self._store = store
        self._digest = digest
        self._fingerprint = fingerprint
        self._hash = hashlib.sha256()
        self._checked = 0

    def _damaged(self, reason: str) -> Damaged:
        return self._store.report_damage(self._digest, reason, self._fingerprint)

    def close(self) -> None:
        os.close(self.fd)

    def check(self, end: int) -> None:
        """Hash on, up to *end*; at the blob's end its hash has to be right. A sound blob isn't hashed. This blocks.

        Raises:
            Damaged: it isn't right.
            OSError: it could not be read.
        """
        if self.sound:
            return
        for _ in self._read_on(end):
            pass
        if self._checked == self.size:
            self._conclude()

    @property
    def touched(self) -> bool:
        """Whether the file may have changed since it was opened. This doesn't block: the system has an open file's status at hand.

        Nobody changes a blob in place, except by mistake. A new link or another mode changes the fingerprint, too: then
        the content decides (:meth:`recheck`).
        """
        try:
            return Fingerprint.of(os.fstat(self.fd)) != self._fingerprint
        except OSError:
            return True

    def recheck(self) -> None:
        """Hash all of it again. This blocks. Raises what :meth:`check` raises."""
        self._fingerprint = Fingerprint.of(os.fstat(self.fd))
        if self._fingerprint.size != self.size:
            raise self._damaged(f"it has {self._fingerprint.size} bytes in place of {self.size}")
        self._hash = hashlib.sha256()
        self._checked = 0
        self.sound = False
        self.check(self.size)

    def read(self) -> bytes:
        """All of it, checked. This blocks. Raises what :meth:`check` raises."""
        content = b"".join(self._read_on(self.size))
        self._conclude()
        return content

    def scrub(self) -> Generator[int, None, None]:
        """Hash all of it from the disk itself, sound or not, a piece at a time; yields their sizes. This blocks.

        Raises:
            Damaged: it isn't right.
        """
        digest = hashlib.sha256()
        try:
            for piece in hashing.pieces(self.fd):
                digest.update(piece)
                yield len(piece)
        except OSError as error:
            raise self._damaged(f"it can't be read ({error.strerror})") from error
        if digest.digest() != self._digest:
            # The page cache may still hold the right bytes. Readers would hash those and trust the blob.
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            raise self._damaged("its content has changed")
        if self._digest in self._store.damaged:
            self._store.trust(self._digest, self._fingerprint)

    def _read_on(self, end: int) -> Iterator[bytes]:
        while self._checked < end:
            try:
                piece = os.pread(self.fd, min(READ_BYTES, end - self._checked), self._checked)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                raise self._damaged("it can't be read") from error
            if not piece:
                raise self._damaged(f"it ends after {self._checked} bytes of {self.size}")
            self._hash.update(piece)
            self._checked += len(piece)
            yield piece

    def _conclude(self) -> None:
        if self._hash.digest() != self._digest:
            raise self._damaged("its content has changed")
        self.sound = True
        self._store.trust(self._digest, self._fingerprint)
