"""Where a model's data comes from: memory, a file, or pieces that are made while they're sent.

    bytes-like            sent from where it lies, nothing is copied
    a path                read while it's sent; may be sent again
    a binary file         from its position to its end; may be sent again where it can seek
    iterables of pieces   sync (its code runs in a worker thread) or async; can be sent once, and the size has to be given

What can be read twice is hashed first, so that the registry refuses it when it arrives changed. What can't is hashed on the
way, and compared with what the registry says it has.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import IO, Protocol, cast

import anyio.to_thread
from typing_extensions import Buffer

PIECE_BYTES = 1024 * 1024
"""How much goes into one message: with its few bytes of framing a frame of the size that the server takes."""

READ_BYTES = 4 * 1024 * 1024
"""How much is read from a file at once."""

INLINE_BYTES = 128 * 1024
"""Less than this is hashed on the spot: a thread costs more."""

Model = Buffer | os.PathLike[str] | IO[bytes] | Iterable[Buffer] | AsyncIterable[Buffer]
"""What can be sent. `Buffer` is whatever has one: bytes, bytearray, memoryview, array, mmap, a NumPy array."""


class Source(Protocol):
    """A model's data.

    Attributes:
        size: in bytes.
        repeatable: whether `pieces` may be asked for again.
    """

    size: int
    repeatable: bool

    async def digest(self) -> bytes | None:
        """SHA-256 of the data; None where that would use it up."""

    def pieces(self) -> AsyncIterator[memoryview]:
        """The data, in pieces of up to `PIECE_BYTES`."""


def open_source(model: Model, size: int | None) -> Source:
    """What *model* stands for. Raises `TypeError` for what is no model, `ValueError` where a size is missing or wrong, `OSError`."""
    source: Source
    if isinstance(model, str):
        raise TypeError("a model can't be a text: for the name of a file, give a pathlib.Path")
    view = _view(model)
    if view is not None:
        source = MemorySource(view)
    elif isinstance(model, os.PathLike):
        return PathSource(model, size)
    elif hasattr(model, "read"):
        return _open_file(model, size)
    elif isinstance(model, AsyncIterable):
        return StreamSource(model, _required(size))
    elif isinstance(model, Iterable):
        return StreamSource(_from_iterable(model), _required(size))
    else:
        raise TypeError(
            f"a model can't be a {type(model).__name__}: give bytes, a path, a binary file or pieces of bytes"
        )
    if size is not None and size != source.size:
        raise ValueError(f"the model has {source.size} bytes, and the size given is {size}")
    return source


def _view(model: object) -> memoryview | None:
    """The memory of what has a buffer."""
    try:
        return memoryview(model)  # type: ignore[arg-type]
    except TypeError:
        return None


def flat(view: memoryview) -> memoryview:
    """The bytes of a piece of memory. Raises `ValueError` where they don't lie together."""
    if not view.nbytes:
        return memoryview(b"")  # a shape with a zero in it can't be cast
    try:
        return view.cast("B")
    except TypeError as error:
        raise ValueError(f"this can't be sent from where it lies, make bytes of it: {error}") from None


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

    async def digest(self) -> bytes | None:
        if self.size < INLINE_BYTES:
            return hashlib.sha256(self._view).digest()
        return await anyio.to_thread.run_sync(lambda: hashlib.sha256(self._view).digest())

    async def pieces(self) -> AsyncIterator[memoryview]:
        for piece in _slices(self._view):
            yield piece


class FileSource:
    """A binary file that can seek, from its position to its end, or to `size` bytes after its position."""

    repeatable = True

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file = file
        self._start = start
        self.size = size

    async def digest(self) -> bytes | None:
        def read_all() -> bytes:
            sha = hashlib.sha256()
            self._file.seek(self._start)
            left = self.size
            while left:
                data = self._file.read(min(READ_BYTES, left))
                if not data:
                    break
                left -= len(data)
                sha.update(data)
            return sha.digest()

        return await anyio.to_thread.run_sync(read_all)

    async def pieces(self) -> AsyncIterator[memoryview]:
        await anyio.to_thread.run_sync(self._file.seek, self._start)
        left = self.size
        while left:
            data = await anyio.to_thread.run_sync(self._file.read, min(READ_BYTES, left))
            if not data:
                return
            left -= len(data)
            for piece in _slices(memoryview(data)):
                yield piece


class PathSource:
    """A file, opened anew each time it's read."""

    repeatable = True

    def __init__(self, path: os.PathLike[str], size: int | None) -> None:
        self._path = path
        self.size = os.stat(path).st_size
        if size is not None and size != self.size:
            raise ValueError(f"{os.fspath(path)} has {self.size} bytes, and the size given is {size}")

    async def digest(self) -> bytes | None:
        with open(self._path, "rb", buffering=0) as file:  # noqa: ASYNC230  # the reading is what takes long
            return await FileSource(file, 0, self.size).digest()

    async def pieces(self) -> AsyncIterator[memoryview]:
        with open(self._path, "rb", buffering=0) as file:  # noqa: ASYNC230
            async for piece in FileSource(file, 0, self.size).pieces():
                yield piece


class StreamSource:
    """Pieces that come once."""

    repeatable = False

    def __init__(self, pieces: AsyncIterable[Buffer], size: int) -> None:
        self._pieces = pieces
        self.size = size

    async def digest(self) -> bytes | None:
        return None

    async def pieces(self) -> AsyncIterator[memoryview]:
        try:
            async for data in self._pieces:
                for piece in _slices(flat(memoryview(data))):
                    yield piece
        finally:
            close = getattr(self._pieces, "aclose", None)  # an async generator that isn't wanted to its end
            if close is not None:
                await close()


def _open_file(file: object, size: int | None) -> Source:
    binary = cast(IO[bytes], file)
    if isinstance(file, io.TextIOBase):
        raise TypeError("the file is open as text: open it as binary, with mode 'rb'")
    if not binary.seekable():
        return StreamSource(_from_iterable(_read(binary.read)), _required(size))
    start = binary.tell()
    end = binary.seek(0, os.SEEK_END)
    binary.seek(start)
    if size is not None and size != end - start:
        raise ValueError(f"the file has {end - start} bytes left, and the size given is {size}")
    return FileSource(binary, start, max(0, end - start))


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
            view = flat(memoryview(piece))
            found.append(view)
            size += len(view)
            if size >= PIECE_BYTES:
                break
        return found

    while found := await anyio.to_thread.run_sync(some):
        for piece in found:
            yield piece
