"""What is measured: a table. `runner` interprets it; there is no code for a scenario but what its kind needs.

A scenario is measured at several points (size, chunk, how many at once). They lie on lines through one middle, not everywhere:
how it behaves by size, by chunk and by concurrency can be read off, and a full run ends within the hour.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal

import attrs

from benchmarks import GIB, KIB, MIB

ROUND_BYTES = 32 * MIB  # small versions are repeated in a round until they make up as much...
ROUND_VERSIONS = 100  # ... or are as many, or four times as many of all clients together
DEFAULT = 0  # as chunk: what the server sends unless it is told otherwise

Kind = Literal["upload", "download", "fetch", "lookup", "beside", "watch", "boot"]
Unit = Literal["MB/s", "1/s", "ms", "s", "MB"]
LESS_IS_BETTER = frozenset({"ms", "s", "MB"})


@attrs.frozen
class Point:
    """*chunk*: bytes of version data in a message, sent by the client or the server, whose doing is measured. *at_once*: clients
    with a process and a connection each; calls in flight of one (lookup); watchers. *count*: calls of a lookup, publishes of a
    watch, versions of a boot; versions a client moves in a round, where it is not 0 (as many as make sense).
    """

    size: int = 64 * MIB
    chunk: int = MIB
    at_once: int = 1
    count: int = 0

    def versions(self) -> int:
        most = min(ROUND_VERSIONS, 4 * ROUND_VERSIONS // self.at_once, ROUND_BYTES // max(1, self.size))
        return self.count or max(1, most)

    def bytes(self) -> int:
        """Those that one round moves, of one target."""
        return self.size * self.versions() * self.at_once

    def rounds(self, usual: int) -> int:
        """How many make sense: fewer of those that take long."""
        return 1 if self.bytes() >= 4 * GIB else min(usual, 3) if self.bytes() >= 256 * MIB else usual

    def __str__(self) -> str:
        chunk = bytes_text(min(self.chunk, self.size)) if self.chunk else "default"
        parts = [f"{bytes_text(self.size)} in {chunk} chunks"] if self.size else []
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
    own: bool = False  # of modelreg only, with its own Python client beside the scenario's
    slow: frozenset[str] = frozenset()  # targets left out, as it would take them minutes or more memory than there is

    def place(self, point: Point) -> str:
        return f"{point.count:,} versions" if self.kind == "boot" else str(point)

    def text(self, point: Point) -> str:
        return f"{self.name}  {self.place(point)}"


def around(
    middle: Point, *, sizes: Sequence[int] = (), chunks: Sequence[int] = (), at_once: Sequence[int] = ()
) -> tuple[Point, ...]:
    """Points that differ from the middle in one thing."""
    return (
        *(attrs.evolve(middle, size=size) for size in sizes),
        *(attrs.evolve(middle, chunk=chunk) for chunk in chunks),
        *(attrs.evolve(middle, at_once=clients) for clients in at_once),
    )


UP, DOWN = (
    Point(),
    Point(chunk=DEFAULT),
)  # the middles: what is sent is ours to choose, what is received the server's default
LARGE = (256 * MIB, GIB)
SIZES = (64 * KIB, MIB, 64 * MIB, *LARGE)
CHUNKS = (16 * KIB, 64 * KIB, 256 * KIB, 4 * MIB)
TOY = Point(size=100_000, chunk=30_000, at_once=2, count=2)
SMALL = Point(size=64 * KIB, chunk=64 * KIB)
CALLS = Point(size=0, count=1000)
TINY = Point(size=1000, chunk=1000)

_CLIENTS = {"ccore": "the C-core client", "frames-16k": "16 KiB frames, as Go's", "frames-1m": "1 MiB frames"}
_UPLOADS = {
    "stored/ccore": around(UP, sizes=SIZES, chunks=CHUNKS, at_once=(4, 16)),
    "stored/frames-16k": around(UP, sizes=LARGE),
    "stored/frames-1m": around(UP, sizes=LARGE),
    "transient/ccore": around(UP, sizes=SIZES[:3]),
    "transient/frames-16k": around(UP, sizes=LARGE[:1]),
    "transient/frames-1m": around(UP, sizes=LARGE),
}
_DOWNLOADS = {
    "stored/ccore": around(DOWN, sizes=SIZES, chunks=(*CHUNKS, MIB), at_once=(4, 16)),
    "stored/frames-16k": around(DOWN, sizes=LARGE[:1]) + around(UP, sizes=LARGE[:1]),
    "stored/frames-1m": around(DOWN, sizes=LARGE) + around(UP, sizes=LARGE[:1]),
    "transient/ccore": around(DOWN, sizes=SIZES[:3]),
    "transient/frames-16k": around(DOWN, sizes=LARGE[:1]),
    "transient/frames-1m": around(DOWN, sizes=LARGE),
}
_TRANSFERS: tuple[tuple[Kind, Point, dict[str, tuple[Point, ...]]], ...] = (
    ("upload", UP, _UPLOADS),
    ("download", DOWN, _DOWNLOADS),
)
_QUICK = {"stored/ccore": around(UP, sizes=(MIB, 64 * MIB)), "stored/frames-16k": (UP,), "transient/frames-1m": (UP,)}

SCENARIOS: tuple[Scenario, ...] = (
    *(
        Scenario(
            name=f"{kind}/{name}",
            question=f"{kind} of {storage} versions, {_CLIENTS[client]}",
            kind=kind,
            points=points,
            quick=tuple(attrs.evolve(point, chunk=middle.chunk) for point in _QUICK.get(name, ())),
            toy=TOY,
            client=client,
            stored=storage == "stored",
        )
        for kind, middle, table in _TRANSFERS
        for name, points in table.items()
        for storage, client in (name.split("/"),)
    ),
    *(
        Scenario(
            name=f"publish/{storage}/{client}",
            question="small versions published a second, by each client one after the other",
            kind="upload",
            points=around(SMALL, at_once=(1, 4, 16) if client == "ccore" else (1,)),
            quick=(SMALL,) if client == "ccore" else (),
            toy=attrs.evolve(TINY, count=5),
            client=client,
            stored=storage == "stored",
            unit="1/s",
        )
        for storage in ("transient", "stored")
        for client in ("ccore", "frames-16k")
    ),
    *(
        Scenario(
            name=f"client/{storage}-{kind}",
            question=f"modelreg's own Python client beside the C core's: {kind} of {storage} versions, hashed by the own client",
            kind=kind,
            points=around(middle, sizes=(64 * KIB, *LARGE) if storage == "stored" else LARGE[:1]),
            quick=(),
            toy=TOY,
            stored=storage == "stored",
            own=True,
        )
        for kind, middle, _ in _TRANSFERS
        for storage in ("stored", "transient")
    ),
    *(
        Scenario(
            name=f"lookup/{client}",
            question="one version looked up, calls a second",
            kind="lookup",
            points=around(CALLS, at_once=(1, 20)),
            quick=around(CALLS, at_once=(20,)) if client == "ccore" else (),
            toy=attrs.evolve(CALLS, at_once=4, count=20),
            client=client,
            unit="1/s",
        )
        for client in ("ccore", "frames-16k")
    ),
    Scenario(
        name="lookup/beside-download",
        question="a version looked up again and again while another is downloaded, on the same connection",
        kind="beside",
        points=(Point(size=GIB, chunk=DEFAULT, count=1),),
        quick=(),
        toy=attrs.evolve(TOY, size=5_000_000, at_once=1, count=1),
        client="frames-16k",
        unit="ms",
    ),
    *(
        Scenario(
            name=f"store-then-fetch/{client}",
            question="a version stored by one, then at once fetched by eight: until the last has it",
            kind="fetch",
            points=around(Point(chunk=DEFAULT, at_once=8, count=1), sizes=sizes),
            quick=(Point(chunk=DEFAULT, at_once=8, count=1),) if client == "frames-16k" else (),
            toy=attrs.evolve(TOY, at_once=3),
            client=client,
            unit="s",
        )
        for client, sizes in (("ccore", (64 * MIB, 256 * MIB)), ("frames-16k", (256 * MIB,)))
    ),
    Scenario(
        name="same-content/ccore",
        question="the same content stored again and again: what deduplication gives",
        kind="upload",
        points=(UP, SMALL),
        quick=(),
        toy=TOY,
        fresh=False,
    ),
    Scenario(
        name="watch",
        question="from the start of a publish until the last watcher has it",
        kind="watch",
        points=around(attrs.evolve(TINY, count=20), at_once=(1, 100, 1000)),
        quick=(attrs.evolve(TINY, count=10, at_once=100),),
        toy=attrs.evolve(TINY, count=3, at_once=5),
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
    *(
        Scenario(
            name=f"memory/{kind}",
            question=f"peak memory of one large {kind}",
            kind=kind,
            points=(attrs.evolve(middle, size=4 * GIB, count=1),),
            quick=(attrs.evolve(middle, size=256 * MIB, count=1),) if kind == "upload" else (),
            toy=TOY,
            client="frames-1m",
            unit="MB",
            warm=False,
        )
        for kind, middle, _ in _TRANSFERS
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
        slow=frozenset({"purerpc", "docker-registry"}),
    ),
)

Case = tuple[Scenario, Point]


def choose(
    patterns: Sequence[str], sizes: Sequence[int], chunks: Sequence[int], at_once: Sequence[int], *, full: bool
) -> list[Case]:
    """The cases to run. Sizes, chunks and concurrencies replace those of the scenarios' points, all combinations of them. A
    scenario that is named runs in full where the short default has nothing of it.
    """
    cases: dict[Case, None] = {}
    for scenario in SCENARIOS:
        if patterns and not any(fnmatch.fnmatch(scenario.name, pattern) for pattern in patterns):
            continue
        points = scenario.points if full or (patterns and not scenario.quick) else scenario.quick
        for point in points:
            for size in (
                sizes if scenario.kind in ("upload", "download", "fetch", "beside") and sizes else (point.size,)
            ):
                for chunk in chunks if point.size and chunks else (point.chunk,):
                    for clients in at_once or (point.at_once,):
                        cases[scenario, attrs.evolve(point, size=size, chunk=chunk, at_once=clients)] = None
    return list(cases)


def bytes_text(value: int) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if value >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value} B"
