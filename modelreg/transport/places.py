"""Places: which connections a server keeps when there are as many as there may be.

A new connection always gets in. It takes the place of the first of these that there is:

1. one that never made a call, the oldest first,
2. one whose calls have all ended, or need no token, the longest idle first,
3. where one peer (an address) has more than half of the places, and it isn't the new one's: the newest of that peer's.

If there is none, the new connection gets no place, and may only make the calls that are let through for it (health checks). There are a
few of these; the oldest goes for a new one.

A connection that makes way is told by GOAWAY, and closes within seconds; one without a call is closed at once. Those that are closing
are few, too: the oldest is closed at once for a new one. So sockets are bounded by `most`.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, deque
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

SPARE = 32
"""Connections without a place, and ones that are closing, at most. No more than an eighth of the places."""


@lru_cache(1024)
def host_of(peer: str) -> str:
    """Who a peer (`host:port`, `[host]:port`) counts as: its address, of IPv6 the first 64 bits, which one subscriber has."""
    host = peer.rpartition(":")[0]
    if not host.startswith("["):
        return host
    address = ipaddress.IPv6Address(host.strip("[]").partition("%")[0])
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


class Guest(Protocol):
    """A connection."""

    host: str
    """Who its peer counts as; see `host_of`."""
    has_place: bool

    def make_way(self) -> None:
        """Close soon: another connection needs the place."""

    def close_now(self) -> None:
        """Close at once."""


G = TypeVar("G", bound=Guest)


class Places(Generic[G]):
    """The places of a server's connections."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._spare = min(SPARE, max(1, count // 8))
        # Those with a place; the oldest, the longest idle, and the longest busy first.
        self._silent: dict[G, None] = {}
        self._idle: dict[G, None] = {}
        self._busy: dict[G, None] = {}
        self._hosts: Counter[str] = Counter()
        self._without: dict[G, None] = {}
        self._leaving: deque[G] = deque()

    @property
    def most(self) -> int:
        """Sockets at most: with those without a place, those that are closing, and one that has just come."""
        return self._count + 2 * self._spare + 1

    def enter(self, guest: G) -> None:
        """A new connection."""
        if self.claim(guest):
            return
        self._without[guest] = None
        if len(self._without) > self._spare:
            oldest = next(iter(self._without))
            del self._without[oldest]
            self._leave_soon(oldest)

    def claim(self, guest: G) -> bool:
        """Give a connection without a place one, if there is one to be had."""
        if guest.has_place:
            return True
        if guest in self._leaving:
            return False
        if len(self._silent) + len(self._idle) + len(self._busy) >= self._count and not self._free_one(guest.host):
            return False
        self._without.pop(guest, None)
        self._give(guest)
        return True

    def busy(self, guest: G) -> None:
        """A connection has calls now."""
        if guest.has_place and guest not in self._busy:
            self._silent.pop(guest, None)
            self._idle.pop(guest, None)
            self._busy[guest] = None

    def idle(self, guest: G) -> None:
        """All calls of a connection have ended, but those that don't count; or one of these has just begun."""
        if guest.has_place:
            for row in (self._silent, self._busy, self._idle):
                row.pop(guest, None)
            self._idle[guest] = None

    def leave(self, guest: G) -> None:
        """A connection has closed."""
        self._without.pop(guest, None)
        if guest in self._leaving:
            self._leaving.remove(guest)
        if guest.has_place:
            self._take(guest)
            if self._without:
                oldest = next(iter(self._without))
                del self._without[oldest]
                self._give(oldest)

    def _give(self, guest: G) -> None:
        guest.has_place = True
        self._silent[guest] = None
        self._hosts[guest.host] += 1

    def _take(self, guest: G) -> None:
        guest.has_place = False
        for row in (self._silent, self._idle, self._busy):
            row.pop(guest, None)
        self._hosts[guest.host] -= 1
        if not self._hosts[guest.host]:
            del self._hosts[guest.host]

    def _free_one(self, host: str) -> bool:
        """Have a connection make way for one of a host; whether there was any that has to."""
        if self._silent:
            guest = next(iter(self._silent))
            self._take(guest)
            guest.close_now()
            return True
        if self._idle:
            guest = next(iter(self._idle))
        else:
            ((crowd, size),) = self._hosts.most_common(1)
            if crowd == host or 2 * size <= self._count:
                return False
            guest = next(guest for guest in reversed(self._busy) if guest.host == crowd)
        self._take(guest)
        self._leave_soon(guest)
        return True

    def _leave_soon(self, guest: G) -> None:
        self._leaving.append(guest)
        guest.make_way()
        if len(self._leaving) > self._spare:
            self._leaving.popleft().close_now()
