"""Version numbers: from 1, rising by one, none ever given twice, whatever happens in between.

A stored version's number is durable with its sidecar. A transient version leaves nothing on disk, so before it gets a
number a whole block of them is reserved, with one durable write of the model's *number ceiling*; a clean shutdown takes
back what is left of the block. After a crash numbers go on above the ceiling: a gap is fine, a number used again is
not.

Versions become visible in order of their numbers, each as soon as all lower ones are there or have failed. Somebody who
follows a model by "what comes after N" would otherwise miss the one that took longer.
"""

from __future__ import annotations

import trio

from modelreg.errors import ResourceExhausted
from modelreg.storage.layout import HIGHEST_NUMBER

# One durable write, a couple of milliseconds, for so many transient versions; also the longest gap after a crash.
BLOCK = 100


class VersionNumbers:
    """The numbers of one model.

    Arguments:
        highest: the highest that's durably known to have been given, by a sidecar or by the ceiling.
        ceiling: up to where numbers are reserved.
    """

    def __init__(self, highest: int, ceiling: int) -> None:
        self._highest = max(highest, ceiling)
        self.ceiling = ceiling
        self._under_way: dict[int, trio.Event] = {}

    @property
    def highest(self) -> int:
        """The highest number given so far."""
        return self._highest

    @property
    def reserved(self) -> bool:
        """Whether the next number may go to a transient version."""
        return self._highest < self.ceiling

    def next_ceiling(self) -> int:
        """The ceiling to write before the next number goes to a transient version.

        Raises ResourceExhausted as :meth:`take` does.
        """
        self._check_left()
        return min(self._highest + BLOCK, HIGHEST_NUMBER)

    def take(self) -> int:
        """The next number.

        Raises:
            ResourceExhausted: there's none left; the wire has 32 bits for them.
        """
        self._check_left()
        self._highest += 1
        self._under_way[self._highest] = trio.Event()
        return self._highest

    def _check_left(self) -> None:
        if self._highest >= HIGHEST_NUMBER:
            msg = f"all version numbers up to {HIGHEST_NUMBER} have been given: go on with a new model"
            raise ResourceExhausted(msg)

    async def turn(self, number: int) -> None:
        """Wait until every lower number has been settled."""
        while next(iter(self._under_way)) != number:
            await self._under_way[number].wait()

    def settle(self, number: int, *, given: bool) -> None:
        """A number's version is visible, or (not *given*) never will be; nobody has heard of it then, and it may be
        taken again.
        """
        del self._under_way[number]
        if not given and number == self._highest:
            self._highest -= 1
        if self._under_way:
            next(iter(self._under_way.values())).set()
