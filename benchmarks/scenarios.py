"""What is measured: a table. `runner` interprets it; there is no code for a scenario but what its kind needs.

A scenario is measured at several points (size, chunk, how many at once). Lines through one middle point, not every combination:
how it behaves by size, by chunk and by concurrency can be read off, and a run ends the same day.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Literal

import attrs

from benchmarks import GIB, KIB, MIB

ROUND_BYTES = 32 * MIB  # small versions are repeated in a round until they make up as much...
ROUND_VERSIONS = 100  # ... or are as many

Kind = Literal["upload", "download", "fetch", "lookup", "watch", "boot"]
Unit = Literal["MB/s", "1/s", "ms", "s", "MB"]
LESS_IS_BETTER = frozenset({"ms", "s", "MB"})


@attrs.frozen
class Point:
    """*at_once*: clients with a process and a connection each; calls in flight of one (lookup); watchers. *count*: calls of a
    lookup, publishes of a watch, versions of a boot; versions a client moves in a round, where it is not 0 (as many as make sense).
    """

    size: int = 64 * MIB
    chunk: int = MIB
    at_once: int = 1
    count: int = 0

    def versions(self) -> int:
        return self.count or max(1, min(ROUND_VERSIONS, ROUND_BYTES // max(1, self.size)))

    def __str__(self) -> str:
        parts = [f"{bytes_text(self.size)} in {bytes_text(min(self.chunk, self.size))}"] if self.size else []
        return " ".join([*parts, f"×{self.at_once}"])


@attrs.frozen(kw_only=True)
class Scenario:
    name: str
    question: str
    kind: Kind
    points: tuple[Point, ...]
    quick: tuple[Point, ...]  # of the short default
    toy: Point  # of the tests
    client: str = "ccore"
    stored: bool = True
    unit: Unit = "MB/s"  # of the figure that rounds are summed up by
    fresh: bool = True  # false: the same content each time
    warm: bool = True  # downloads: each version has been downloaded once before it is measured

    def place(self, point: Point) -> str:
        return f"{point.count:,} versions" if self.kind == "boot" else str(point)

    def text(self, point: Point) -> str:
        return f"{self.name}  {self.place(point)}"


SIZES = (64 * KIB, MIB, 64 * MIB, GIB)
CHUNKS = (16 * KIB, 64 * KIB, 256 * KIB, 2 * MIB, 4 * MIB)
LINES = (
    *(Point(size=size) for size in SIZES),
    *(Point(chunk=chunk) for chunk in CHUNKS),
    *(Point(at_once=clients) for clients in (4, 16)),
)
MIDDLE = Point()
TOY = Point(size=100_000, chunk=30_000, at_once=2, count=2)
SMALL = Point(size=64 * KIB, chunk=64 * KIB)
NOTHING = Point(size=0, chunk=MIB)
_CLIENTS = {"ccore": "the C-core client", "frames-16k": "16 KiB frames, as Go's", "frames-1m": "1 MiB frames"}
_QUICK = {
    ("upload", True, "ccore"): (Point(size=MIB), MIDDLE, Point(chunk=64 * KIB)),
    ("download", True, "ccore"): (Point(size=MIB), MIDDLE, Point(chunk=64 * KIB)),
}


def _transfers(kind: Kind) -> Iterable[Scenario]:
    for stored in (True, False):
        for client, words in _CLIENTS.items():
            storage = "stored" if stored else "transient"
            quick = _QUICK.get((kind, stored, client), (MIDDLE,) if stored or client == "frames-1m" else ())
            yield Scenario(
                name=f"{kind}/{storage}/{client}",
                question=f"{kind} of {storage} versions, {words}",
                kind=kind,
                points=LINES,
                quick=quick,
                toy=TOY,
                client=client,
                stored=stored,
            )


SCENARIOS: tuple[Scenario, ...] = (
    *_transfers("upload"),
    *_transfers("download"),
    *(
        Scenario(
            name=f"first-download/{client}",
            question="download of stored versions that nobody has read since they were stored",
            kind="download",
            points=(Point(count=1), Point(size=GIB, count=1)),  # of several, all but one would be warm
            quick=(),
            toy=attrs.evolve(TOY, count=1),
            client=client,
            warm=False,
        )
        for client in ("ccore", "frames-1m")
    ),
    *(
        Scenario(
            name=f"publish/{'stored' if stored else 'transient'}/{client}",
            question="small versions published a second, by each client one after the other",
            kind="upload",
            points=tuple(attrs.evolve(SMALL, at_once=clients) for clients in (1, 4, 16)),
            quick=(SMALL,) if client == "ccore" else (),
            toy=Point(size=1000, chunk=1000, count=5),
            client=client,
            stored=stored,
            unit="1/s",
        )
        for stored in (False, True)
        for client in ("ccore", "frames-16k")
    ),
    *(
        Scenario(
            name=f"lookup/{client}",
            question="one version looked up, calls a second",
            kind="lookup",
            points=tuple(attrs.evolve(NOTHING, at_once=calls, count=2000) for calls in (1, 20)),
            quick=tuple(attrs.evolve(NOTHING, at_once=calls, count=1000) for calls in (1, 20)),
            toy=attrs.evolve(NOTHING, at_once=4, count=20),
            client=client,
            unit="1/s",
        )
        for client in ("ccore", "frames-16k")
    ),
    *(
        Scenario(
            name=f"store-then-fetch/{client}",
            question="a version stored by one, then at once fetched by eight: until the last has it",
            kind="fetch",
            points=(Point(at_once=8), Point(size=256 * MIB, at_once=8)),
            quick=(Point(at_once=8),) if client == "frames-16k" else (),
            toy=attrs.evolve(TOY, at_once=3),
            client=client,
            unit="s",
        )
        for client in ("ccore", "frames-16k", "frames-1m")
    ),
    Scenario(
        name="same-content/ccore",
        question="the same content stored again and again: what deduplication gives",
        kind="upload",
        points=(MIDDLE, SMALL),
        quick=(MIDDLE,),
        toy=TOY,
        fresh=False,
    ),
    Scenario(
        name="watch",
        question="from the reply of a publish until the last watcher has it",
        kind="watch",
        points=tuple(Point(size=1000, chunk=1000, at_once=watchers, count=20) for watchers in (1, 100, 1000)),
        quick=(Point(size=1000, chunk=1000, at_once=100, count=10),),
        toy=Point(size=1000, chunk=1000, at_once=5, count=3),
        client="frames-16k",
        stored=False,
        unit="ms",
    ),
    Scenario(
        name="boot",
        question="from the start of the process until the first call is answered",
        kind="boot",
        points=tuple(Point(size=64, chunk=64, count=versions) for versions in (1_000, 10_000, 100_000)),
        quick=(Point(size=64, chunk=64, count=1_000),),
        toy=Point(size=64, chunk=64, count=100),
        client="frames-16k",
        unit="s",
    ),
    Scenario(
        name="memory/upload",
        question="peak memory of one large upload",
        kind="upload",
        points=(Point(size=4 * GIB, count=1),),
        quick=(Point(size=256 * MIB, count=1),),
        toy=TOY,
        client="frames-1m",
        unit="MB",
    ),
    Scenario(
        name="memory/download",
        question="peak memory of one large download",
        kind="download",
        points=(Point(size=4 * GIB, count=1),),
        quick=(),
        toy=TOY,
        client="frames-1m",
        unit="MB",
    ),
    Scenario(
        name="memory/many-uploads",
        question="peak memory of a hundred uploads at once; the latencies say whether one starves",
        kind="upload",
        points=(Point(size=256 * MIB, at_once=100, count=1),),
        quick=(),
        toy=attrs.evolve(TOY, at_once=4),
        client="frames-1m",
        unit="MB",
    ),
)

Case = tuple[Scenario, Point]


def choose(
    patterns: Sequence[str], sizes: Sequence[int], chunks: Sequence[int], at_once: Sequence[int], *, full: bool
) -> list[Case]:
    """The cases to run. Sizes, chunks and concurrencies replace those of the scenarios' points, all combinations of them. A
    scenario that is named runs in full where the short default has nothing of it.
    """
    cases: list[Case] = []
    for scenario in SCENARIOS:
        if patterns and not any(fnmatch.fnmatch(scenario.name, pattern) for pattern in patterns):
            continue
        points = scenario.points if full or (patterns and not scenario.quick) else scenario.quick
        for point in points:
            for size in sizes if scenario.kind in ("upload", "download", "fetch") and sizes else (point.size,):
                for chunk in chunks if point.size and chunks else (point.chunk,):
                    for clients in at_once or (point.at_once,):
                        case = (scenario, attrs.evolve(point, size=size, chunk=chunk, at_once=clients))
                        if case not in cases:
                            cases.append(case)
    return cases


def bytes_text(value: int) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if value >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value} B"
