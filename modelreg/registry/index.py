"""The in-memory index of a model's available versions: by number, n-th to last, page by page."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from modelreg.registry.records import VersionInfo

# How many entries a walk looks up at once.
WALK = 100


class VersionIndex:
    """The versions of one model that can be had now.

    Versions are added in order of their numbers. Finding one is O(1) by number or from the end, O(log n) by what comes
    after a number.
    """

    def __init__(self, versions: Iterable[VersionInfo] = ()) -> None:
        self._by_number = {version.number: version for version in versions}
        self._numbers = sorted(self._by_number)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[VersionInfo]:
        return map(self._by_number.__getitem__, self._numbers)

    def __getitem__(self, number: int) -> VersionInfo:
        return self._by_number[number]

    @property
    def newest(self) -> VersionInfo | None:
        return self._by_number[self._numbers[-1]] if self._numbers else None

    def add(self, version: VersionInfo) -> None:
        """Add a version, whose number is higher than all there are."""
        assert not self._numbers or version.number > self._numbers[-1], "versions come in order"
        self._numbers.append(version.number)
        self._by_number[version.number] = version

    def remove(self, number: int) -> None:
        """Remove a version that's there."""
        del self._by_number[number]
        del self._numbers[bisect_left(self._numbers, number)]

    def find(self, number: int) -> VersionInfo | None:
        """Version *number*; if that's negative, the n-th to last of those available now."""
        if number >= 0:
            return self._by_number.get(number)
        if -number > len(self._numbers):
            return None
        return self._by_number[self._numbers[number]]

    def after(self, number: int) -> VersionInfo | None:
        """The oldest version that's newer than *number*."""
        position = bisect_right(self._numbers, number)
        return self._by_number[self._numbers[position]] if position < len(self._numbers) else None

    def walk(self, first: int = 0) -> Iterator[VersionInfo]:
        """The versions from number *first* on, by number. Versions may come and go meanwhile: it skips none that stays."""
        while True:
            start = bisect_left(self._numbers, first)
            numbers = self._numbers[start : start + WALK]
            if not numbers:
                return
            yield from [self._by_number[number] for number in numbers]
            first = numbers[-1] + 1
