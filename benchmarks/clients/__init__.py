"""What puts load on a target: the tasks that a load process gets, their payload, and what every client can do."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

import attrs

from benchmarks import MIB

# The C core's client where it does what this project's Python client does, and that one: on asyncio, the same when it's given the hash
# of what it uploads, and the twin without an event loop.
OWN_CLIENTS = ("ccore-checking", "asyncio", "asyncio-hashed", "blocking")

BLOCK_BYTES = 16 * MIB  # of random bytes, made anew for each round by each load process: 50 ms

TaskKind = Literal["create", "delete", "verify", "upload", "download", "lookup", "beside", "watch"]


class WrongReply(Exception):
    """A target answered, but not with what was sent to it."""


@attrs.frozen(kw_only=True)
class Task:
    """One load process's part of a round."""

    kind: TaskKind
    client: str
    address: str  # host:port
    model: str
    stored: bool = True
    size: int = 0  # of each version, bytes
    chunk: int = MIB
    count: int = 1  # of versions, calls or publishes
    at_once: int = 1  # calls in flight, or watchers
    seed: bytes = b""  # payload is random and fresh unless this is given: then it is always the same
    version: int = 0  # to download; 0: one that is uploaded while the task is prepared
    warm: bool = False  # download it once before the clock starts
    checked: bool = True  # compare digests and sizes with what was sent
    timeout: float = 60.0


@attrs.frozen(kw_only=True)
class Outcome:
    """What a load process did between two readings of CLOCK_MONOTONIC, which all processes of a machine share."""

    start: float
    end: float
    cpu: float  # seconds of this process's
    bytes: int
    samples: tuple[float, ...]  # seconds: of each version, call, or publish


class Payload:
    """The content of a version: a block of random bytes over and over, with a stamp in front of each chunk that no other chunk
    has. So content is new to everything that looks at whole versions or at chunks, at next to no cost.
    """

    def __init__(self, size: int, chunk: int, seed: bytes = b"") -> None:
        self.size, self.chunk = size, chunk
        block = min(max(chunk, BLOCK_BYTES), max(size, 1))
        self._nonce = seed or os.urandom(8)
        self._block = memoryview(hashlib.shake_128(seed).digest(block) if seed else os.urandom(block))

    def fresh(self) -> Payload:
        """Another version's worth, with the same block."""
        other = Payload.__new__(Payload)
        other.__dict__.update(self.__dict__, _nonce=os.urandom(8))
        return other

    def pieces(self) -> Iterator[tuple[bytes, memoryview]]:
        """For each chunk its stamp and the rest. An empty version is one empty chunk."""
        per_block = max(1, len(self._block) // self.chunk)
        for number, start in enumerate(range(0, self.size or 1, self.chunk)):
            length = min(self.chunk, self.size - start)
            stamp = (self._nonce + number.to_bytes(8, "little"))[:length]
            at = number % per_block * self.chunk
            yield stamp, self._block[at + len(stamp) : at + length]

    def digest(self) -> str:
        """SHA-256 as the interface writes it: standard base64."""
        sha = hashlib.sha256()
        for stamp, rest in self.pieces():
            sha.update(stamp)
            sha.update(rest)
        return base64.b64encode(sha.digest()).decode()


Work = Callable[[], object]


class Client(Protocol):
    """A connection to a target. What costs time and is not the target's work happens in the `prepare_` methods."""

    def create_model(self, model: str) -> None: ...

    def delete_model(self, model: str) -> None: ...

    def prepare_upload(self, task: Task, payload: Payload) -> Callable[[], int]:
        """The call that uploads this version and returns its number. Raises where the reply isn't what was sent."""

    def prepare_download(self, task: Task, version: int, digest: str) -> Work:
        """The call that downloads it, without looking at the bytes unless a digest is given."""

    def lookups(self, task: Task, version: int) -> list[float]:
        """Looks one version up *count* times, *at_once* in flight; the seconds each took."""

    def idle(self, pipe: Connection[Any, Any]) -> None:
        """Returns when something can be read from *pipe*, and answers until then what the server asks (PING)."""

    def close(self) -> None: ...
