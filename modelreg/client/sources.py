"""Where a model's data comes from: memory, a file, or pieces that are made while they're sent.

    bytes-like            sent from where it lies, nothing is copied
    a path                read while it's sent; may be sent again
    a binary file         from its position to its end; may be sent again where it can seek
    iterables of pieces   sync (its code runs in a worker thread) or async; can be sent once, and the size has to be given

Data that can be read twice is hashed first, so that the registry refuses it when it arrives changed. Other data is hashed on the
way, and compared with the registry's hash of it. A file that changes between the moment in which its size is taken and the end of its
last reading is refused here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import IO, Protocol, cast

from typing_extensions import Buffer

from modelreg.client.advice import named, unsendable
from modelreg.client.workers import in_thread

PIECE_BYTES = 1024 * 1024
"""How much goes into one message: with its few bytes of framing a frame of the size that the server takes."""

READ_BYTES = 4 * 1024 * 1024
"""How much is read from a file at once."""

HASH_BYTES = 16 * 1024 * 1024
"""How much is hashed between two looks whether the call was cancelled, and two reports of progress."""

INLINE_BYTES = 128 * 1024
"""Less than this is hashed on the spot: a thread costs more."""

LARGEST_LIE = 64 * 1024
"""The largest page there is: a file of /sys says that it has so many bytes, whatever is in it."""

# The formats whose bytes are the data, and no pointers to it (PEP 3118 and the struct module): numbers, characters, padding, their shapes and
# byte orders, and structures of these with their fields' names. One digit at a time: `\d+` in a repetition tries each way to cut a number.
_PLAIN_FORMAT = re.compile(r"([xcbB?hHiIlLqQnNefdgspuw]|Z[fdg]|[@=<>!^|]|\d|\([\d,]+\)|T\{|\}|:[^:]*:|\s)*")

Model = Buffer | os.PathLike[str] | IO[bytes] | Iterable[Buffer] | AsyncIterable[Buffer]
"""What can be sent. `Buffer` is bytes, bytearray, memoryview, array, mmap, a NumPy array, and others that have a buffer."""

Hashed = Callable[[int], object]
"""Told how many bytes are hashed, on the event loop."""


class Source(Protocol):
    """A model's data.

    Attributes:
        size: in bytes.
        repeatable: whether `pieces` may be asked for again.
    """

    size: int
    repeatable: bool

    async def digest(self, hashed: Hashed) -> bytes | None:
        """SHA-256 of the data; None where that would use it up. Raises `OSError`."""

    def pieces(self) -> AsyncIterator[memoryview]:
        """The data, in pieces of up to `PIECE_BYTES`. Raises `OSError`, after the last piece for a file that has changed."""


@asynccontextmanager
async def opened(model: Model, size: int | None) -> AsyncIterator[Source]:
    """The source of a model, with the size and the position that it has now.

    Raises:
        TypeError: the object is no model.
        ValueError: a size is missing or wrong, or the data doesn't lie together, or a file is at its end.
        OSError: a file can't be read.
    """
    if isinstance(model, str):
        raise TypeError("a model can't be a text: for the name of a file, give a pathlib.Path")
    with ExitStack() as stack:
        source: Source
        view = _view(model)
        if view is not None:
            source = MemorySource(view)
        elif isinstance(model, os.PathLike):
            source = await in_thread(_open_path, model, stack)
        elif hasattr(model, "read"):
            source = await in_thread(_open_file, model, size, stack)
        elif (why := unsendable(model)) is not None:
            raise TypeError(why)
        elif isinstance(model, AsyncIterable):
            source = StreamSource(model, _required(size))
        elif isinstance(model, Iterable):
            source = StreamSource(_from_iterable(model), _required(size))
        else:
            raise TypeError(
                f"a model can't be {named(model)}: give bytes (of pickle.dumps, for example), a path, a binary file "
                "or pieces of bytes"
            )
        if size is not None and size != source.size:
            raise ValueError(f"the model has {source.size} bytes, and the size given is {size}")
        yield source


def _view(thing: object) -> memoryview | None:
    """The memory of an object that has a buffer. Raises `ValueError` for one whose memory isn't its data."""
    try:
        return memoryview(thing)  # type: ignore[arg-type]
    except TypeError:
        return None
    except (ValueError, BufferError) as error:  # NumPy's of dates, for example
        raise ValueError(f"{named(thing)} can't be sent from where it lies, make bytes of it: {error}") from None


def flat(view: memoryview) -> memoryview:
    """The bytes of a piece of memory. Raises `ValueError` where they don't lie together, or aren't the data."""
    if not _PLAIN_FORMAT.fullmatch(view.format):
        raise ValueError(
            f"an array of Python objects or pointers (of format {view.format!r}) has no data of its own: "
            "make bytes of it, with pickle.dumps for example"
        )
    if not view.nbytes:
        return memoryview(b"")  # a shape with a zero in it can't be cast
    try:
        return view.cast("B")
    except TypeError as error:
        raise ValueError(f"this can't be sent from where it lies, make bytes of it: {error}") from None


def _piece(thing: object) -> memoryview:
    """The bytes of one of the pieces that a model comes in."""
    view = _view(thing)
    if view is None:
        what = "a text" if isinstance(thing, str) else named(thing)
        raise TypeError(f"the pieces of a model have to be bytes, and one is {what}")
    return flat(view)


def _required(size: int | None) -> int:
    if size is None:
        raise ValueError("a model that comes in pieces needs its size in bytes: size=…")
    if size < 0:
        raise ValueError("a size can't be negative")
    return size


def _slices(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


class MemorySource:
    """A bytes-like object."""

    repeatable = True

    def __init__(self, view: memoryview) -> None:
        self._view = flat(view)
        self.size = len(self._view)

    async def digest(self, hashed: Hashed) -> bytes | None:
        if self.size < INLINE_BYTES:
            return hashlib.sha256(self._view).digest()
        sha = hashlib.sha256()
        for start in range(0, self.size, HASH_BYTES):
            part = self._view[start : start + HASH_BYTES]
            await in_thread(sha.update, part)
            hashed(start + len(part))
        return sha.digest()

    async def pieces(self) -> AsyncIterator[memoryview]:
        for piece in _slices(self._view):
            yield piece


class FileSource:
    """A binary file that can seek, from a position on.

    Arguments:
        file: where the data is.
        start: of the data.
        size: of the data, in bytes.
        name: of the file, for messages.
    """

    repeatable = True

    def __init__(self, file: IO[bytes], start: int, size: int, name: str | None = None) -> None:
        self._file = file
        self._start = start
        self._name = name
        self._state = _state(file)
        self.size = size

    async def digest(self, hashed: Hashed) -> bytes | None:
        sha = hashlib.sha256()
        done = 0

        def some() -> int:
            at, end = done, min(done + HASH_BYTES, self.size)
            while at < end:
                data = self._read(at)
                sha.update(data)
                at += len(data)
            return at

        while done < self.size:
            done = await in_thread(some)
            hashed(done)
        return sha.digest()

    async def pieces(self) -> AsyncIterator[memoryview]:
        done = 0
        while done < self.size:
            data = await in_thread(self._read, done)
            done += len(data)
            for piece in _slices(memoryview(data)):
                yield piece

    def _read(self, done: int) -> bytes:
        """Some of the data, after so many bytes of it. Raises `OSError` where the file has changed, after its last bytes at the latest."""
        if not done:
            self._file.seek(self._start)
        data = self._file.read(min(READ_BYTES, self.size - done))
        if not data:
            raise _changed(self._name, f"it ended after {done} bytes, and its size was {self.size}")
        if done + len(data) == self.size and _state(self._file) != self._state:
            raise _changed(self._name, "it was changed while it was read")
        return data


def _state(file: IO[bytes]) -> tuple[int, ...]:
    """What tells that a file was changed: its size, and the time of its last change where it has one."""
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError):  # none of the operating system's
        position = file.tell()
        size = file.seek(0, os.SEEK_END)
        file.seek(position)
        return (size,)
    return (status.st_size, status.st_mtime_ns)


def _changed(name: str | None, why: str) -> OSError:
    message = f"{why}: send it again once no program writes to it"
    return OSError(errno.EBUSY, message) if name is None else OSError(errno.EBUSY, message, name)


class StreamSource:
    """Pieces that come once."""

    repeatable = False

    def __init__(self, pieces: AsyncIterable[Buffer], size: int) -> None:
        self._pieces = pieces
        self.size = size

    async def digest(self, hashed: Hashed) -> bytes | None:
        return None

    async def pieces(self) -> AsyncIterator[memoryview]:
        try:
            async for data in self._pieces:
                for piece in _slices(_piece(data)):
                    yield piece
        finally:
            close = getattr(self._pieces, "aclose", None)  # an async generator that isn't wanted to its end
            if close is not None:
                await close()


def _open_path(path: os.PathLike[str], stack: ExitStack) -> Source:
    file = stack.enter_context(open(path, "rb", buffering=0))  # noqa: SIM115  # the stack closes it
    return _measured(file, 0, os.fsdecode(path), stack)


def _open_file(model: object, size: int | None, stack: ExitStack) -> Source:
    if isinstance(model, io.TextIOBase):
        raise TypeError("the file is open as text: open it as binary, with mode 'rb'")
    file = cast("IO[bytes]", model)
    if hasattr(file, "readable") and not file.readable():
        raise ValueError("the file is open for writing only: open it with mode 'rb'")
    if not hasattr(file, "seekable") or not file.seekable():
        return StreamSource(_from_iterable(_read(file.read)), _required(size))
    start = file.tell()
    name = getattr(file, "name", None)
    source = _measured(file, start, name if isinstance(name, str) else None, stack)
    if start and not source.size and size != 0:
        raise ValueError(
            f"the file is at its end, after {start} bytes, so there would be nothing to store: call its seek(0) first, "
            "or give size=0 where that's meant"
        )
    return source


def _measured(file: IO[bytes], start: int, name: str | None, stack: ExitStack) -> Source:
    """A file from a position on: the file itself, or a copy of all that can be read where it doesn't tell its size."""
    try:
        end = file.seek(0, os.SEEK_END)
    except OSError:  # a path may be a pipe's
        end = 0
    else:
        file.seek(start)
    if end and not _may_lie(file, end):
        return FileSource(file, start, max(0, end - start), name)
    said = _state(file)[0]
    copy = stack.enter_context(tempfile.TemporaryFile(prefix="modelreg-"))  # noqa: SIM115
    shutil.copyfileobj(file, copy, READ_BYTES)
    if _state(file)[0] != said:  # an empty file, which is being written
        raise _changed(name, "it was changed while it was read")
    return FileSource(copy, 0, copy.seek(0, os.SEEK_END), name)


def _may_lie(file: IO[bytes], size: int) -> bool:
    """Whether a file may hold less than it says: those of /sys say a page (those of /proc say 0). They take no room."""
    try:
        return size <= LARGEST_LIE and os.fstat(file.fileno()).st_blocks == 0
    except (AttributeError, OSError):  # none of the operating system's
        return False


def _read(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while data := read(PIECE_BYTES):
        yield data


async def _from_iterable(pieces: Iterable[Buffer]) -> AsyncIterator[memoryview]:
    """Take pieces from code that may block, in a worker thread; several small ones at once."""
    iterator = iter(pieces)

    def some() -> list[memoryview]:
        found: list[memoryview] = []
        size = 0
        for piece in iterator:
            view = _piece(piece)
            found.append(view)
            size += len(view)
            if size >= PIECE_BYTES:
                break
        return found

    while found := await in_thread(some):
        for piece in found:
            yield piece
