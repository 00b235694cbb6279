"""What became of uploads whose requests named themselves.

A client that lost its connection can't know whether its upload was committed. If it sends the same request id again, it
gets the version that came of the first one, and nothing is stored twice. A stored version's sidecar holds its request
id, so that holds across a restart; after one, transient versions are gone, and publishing again is right.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

import trio

from modelreg.registry.records import VersionInfo

# How many requests of a model are remembered: those that a client may still be trying again are the last ones.
REMEMBERED = 1000

# Characters; a UUID has 36.
LONGEST_REQUEST_ID = 128


class RequestMemory:
    """The last requests of one model, and their versions."""

    def __init__(self, versions: Iterable[tuple[str, VersionInfo]] = ()) -> None:
        self._versions: dict[str, VersionInfo] = {}
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        for request_id, version in versions:
            self.remember(request_id, version)

    def find(self, request_id: str) -> VersionInfo | None:
        """The version that came of a request."""
        return self._versions.get(request_id)

    def remember(self, request_id: str, version: VersionInfo) -> None:
        """A request has been committed."""
        self._versions[request_id] = version
        if len(self._versions) > REMEMBERED:
            del self._versions[next(iter(self._versions))]

    def lock(self, request_id: str) -> trio.Lock:
        """Held while a request is committed, so that the same one, sent again meanwhile, waits for what comes of it."""
        return self._locks.setdefault(request_id, trio.Lock())
