"""What became of uploads whose requests named themselves.

A client that lost its connection can't know whether its upload was committed. If it sends the same request id again, it
gets the version that came of the first one, and nothing is stored twice. A stored version's sidecar holds its request
id, so that holds across a restart. Once a transient version is gone, publishing it again is right.

Only numbers are remembered: a version that is gone leaves nothing else behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

import trio

# How many requests of a model are remembered: those that a client may still be trying again are the last ones.
REMEMBERED = 1000

# Characters; a UUID has 36.
LONGEST_REQUEST_ID = 128


class RequestMemory:
    """The last requests of one model, and the numbers of their versions."""

    def __init__(self, numbers: Iterable[tuple[str, int]] = ()) -> None:
        self._numbers: dict[str, int] = {}
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        for request_id, number in numbers:
            self.remember(request_id, number)

    def find(self, request_id: str) -> int | None:
        """Return the number of the version that came of a request."""
        return self._numbers.get(request_id)

    def remember(self, request_id: str, number: int) -> None:
        """Note that a request has been committed."""
        self._numbers.pop(request_id, None)  # so that it is the last one
        self._numbers[request_id] = number
        if len(self._numbers) > REMEMBERED:
            del self._numbers[next(iter(self._numbers))]

    def lock(self, request_id: str) -> trio.Lock:
        """Held while a request is committed, so that the same one, sent again meanwhile, waits for what comes of it."""
        return self._locks.setdefault(request_id, trio.Lock())
