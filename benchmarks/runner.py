"""Runs cases: all targets of a case started side by side, in fresh directories, and measured in turn, round after round.

Each round begins with another, and over the rounds whatever one leaves behind for the next, or a machine that drifts, hurts all.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs

from benchmarks import MIB, floors, measure
from benchmarks.clients import Outcome, Task
from benchmarks.floors import Floor
from benchmarks.load import Load, LoadError
from benchmarks.measure import Summary
from benchmarks.scenarios import LESS_IS_BETTER, Case, Point, Scenario
from benchmarks.targets import NULL, OWN, TARGETS, Server, Target, TargetError

SAME_CONTENT = b"the same again"
WARM_UP_BYTES = 8 * MIB
SLOWEST = 5e6  # bytes a second; what is slower than that has failed
BUSY = 0.9  # of a core, or of all; a client above it may be what is measured
SHARE = 0.25  # of the CPU time, which clients must have used for a full machine to be their doing
TURN_SECONDS, START_SECONDS, RATE, FLOOR_RATE, FILL_RATE = (
    0.3,
    0.05,
    450e6,
    1e9,
    800,
)  # to say in advance how long it takes
FILLERS = 10  # load processes at once that fill an archive before a boot
FILLED_MODELS = 100  # that the versions of a boot belong to

_FLOORS: dict[tuple[str, bool], tuple[Floor, ...]] = {
    ("upload", True): (floors.SHA256, floors.WRITE, floors.LOOPBACK),
    ("upload", False): (floors.SHA256, floors.LOOPBACK),
    ("download", True): (floors.SHA256, floors.LOOPBACK, floors.SENDFILE),
    ("download", False): (floors.SHA256, floors.LOOPBACK, floors.SENDFILE),
}


@attrs.frozen(kw_only=True)
class Round:
    """One measurement. *server_cpu* and *peak* are NaN where the kernel doesn't tell us (a target on another machine)."""

    seconds: float
    bytes: int
    samples: tuple[float, ...] = ()
    server_cpu: float = math.nan
    client_cpu: float = math.nan
    busiest: float = 0.0  # of the client's processes: cores
    peak: float = math.nan

    def crowded(self, cores: int) -> bool:
        """Whether clients and server used all cores, and the clients much of that. Not where the server's part isn't known."""
        used = self.client_cpu + self.server_cpu
        return used >= BUSY * cores * self.seconds and self.client_cpu >= SHARE * used

    def figure(self, unit: str) -> float:
        if unit == "MB/s":
            return self.bytes / self.seconds / 1e6
        if unit == "1/s":
            return len(self.samples) / self.seconds
        if unit == "ms":
            return measure.quantile(sorted(self.samples), 50) * 1e3
        return self.peak / 1e6 if unit == "MB" else self.seconds


@attrs.define(kw_only=True)
class Row:
    """A target, or a floor, in a case. Without rounds it failed, for *reason*."""

    name: str
    client: str = ""  # the target's own, if it isn't the scenario's
    floor: bool = False
    reason: str = ""
    rounds: list[Round] = attrs.Factory(list)

    def summary(self, unit: str) -> Summary | None:
        return None if self.reason else Summary.of(one.figure(unit) for one in self.rounds)

    def of(self, value: Callable[[Round], float]) -> Summary | None:
        return None if self.reason else Summary.of(map(value, self.rounds))

    @property
    def client_bound(self) -> bool:
        """Whether a client's process had no more of its core, or the clients with the server no more of the machine."""
        cores = len(os.sched_getaffinity(0))
        return any(one.busiest >= BUSY or one.crowded(cores) for one in self.rounds)


@attrs.frozen(kw_only=True)
class Result:
    scenario: Scenario
    point: Point
    rows: tuple[Row, ...]

    def ratio(self, row: Row, other: Row) -> float | None:
        """How many times as good *row* is as *other*, by their medians. The null server says nothing about another client."""
        if NULL.name in (row.name, other.name) and row.client != other.client:
            return None
        ours, theirs = row.summary(self.scenario.unit), other.summary(self.scenario.unit)
        if ours is None or theirs is None or not ours.median or not theirs.median:
            return None
        less = self.scenario.unit in LESS_IS_BETTER
        return theirs.median / ours.median if less else ours.median / theirs.median


class Runner:
    def __init__(
        self, load: Load, directory: Path, targets: Sequence[Target], rounds: int | None, usual: int = 3
    ) -> None:
        """*rounds* is how many of each case; None: *usual*, or fewer of those that take long."""
        self._load = load
        self._directory = directory
        self._targets = targets
        self._rounds, self._usual = rounds, usual
        self._serial = 0
        self._failed: dict[str, list[str]] = {}  # why targets did not start when they last should

    def rounds(self, case: Case) -> int:
        return self._rounds or case[1].rounds(self._usual)

    def floors_of(self, scenario: Scenario) -> tuple[Floor, ...]:
        if scenario.unit not in ("MB/s", "1/s") or scenario.own:
            return ()
        return _FLOORS.get((scenario.kind, scenario.stored), ())

    def targets_of(self, scenario: Scenario) -> list[Target]:
        """Those that can do it, and the null server where it says something."""
        able = [
            target
            for target in self._targets
            if scenario.kind in target.kinds
            and (scenario.stored or target.transient)
            and target.name not in scenario.slow
            and (not scenario.own or target is TARGETS[0])
        ]
        if able and scenario.own:
            return [*able, *OWN]
        with_limit = scenario.kind in NULL.kinds and scenario.unit != "MB" and scenario.fresh
        return [*able, NULL] if able and with_limit else able

    def steps(self, case: Case) -> int:
        return self.rounds(case) * (len(self.targets_of(case[0])) + len(self.floors_of(case[0])))

    def moved(self, case: Case) -> tuple[int, int]:
        """Bytes that go up and that come down for one measurement, those before the clock starts included."""
        scenario, point = case
        once = point.size * point.at_once
        return {
            "upload": (point.bytes(), 0),
            "download": (once, point.bytes() + once * scenario.warm),
            "fetch": (point.size, once),
            "beside": (point.size, point.size),
        }.get(scenario.kind, (0, 0))

    def seconds(self, case: Case) -> float:
        """About how long a case takes, where server and disk do some hundred MB a second."""
        scenario, point = case
        up, down = self.moved(case)
        processes = 1 if scenario.kind in ("lookup", "watch") else point.at_once
        each = 0.3 + 0.03 * processes + up / 500e6 + down / 1.2e9 + (scenario.kind == "lookup")
        lower = len(self.floors_of(scenario)) * min(point.bytes(), floors.LARGEST) / 1.5e9
        begin = 0.6 + (point.count / 800 if scenario.kind == "boot" else 0)
        targets = len(self.targets_of(scenario))
        return targets * begin + self.rounds(case) * (targets * each + lower)

    def run(self, case: Case, step: Callable[[], None]) -> Result:
        """Measures a case. *step* is called after each measurement, or instead of one that can't be made."""
        scenario, point = case
        targets, lower = self.targets_of(scenario), self.floors_of(scenario)
        rows = [Row(name=target.name, client=target.client) for target in targets]
        limits = [Row(name=floor.name, floor=True) for floor in lower]
        with ExitStack() as stack:  # which closes the others, too, where one is interrupted at it
            servers = []
            for target in targets:
                self._serial += 1
                servers.append(Server(target, self._directory / f"{self._serial}", point.chunk))
                stack.callback(servers[-1].close)
            self._begin(case, rows, servers)
            turns = [(row, self._server_turn(case, server)) for row, server in zip(rows, servers, strict=True)]
            turns += [(row, self._floor_turn(point, floor)) for row, floor in zip(limits, lower, strict=True)]
            for number in range(self.rounds(case)):
                first = number % len(turns)  # each begins with another
                for row, turn in turns[first:] + turns[:first]:
                    if not row.reason:
                        self._try(row, turn)
                    step()
        return Result(scenario=scenario, point=point, rows=(*rows, *limits))

    def _begin(self, case: Case, rows: Sequence[Row], servers: Sequence[Server]) -> None:
        """Starts the servers, all at once, and does what a case needs once."""
        # Of one target at a time, as all data goes with its round.
        needed = case[1].bytes() if case[0].stored else 0
        if needed > shutil.disk_usage(self._directory).free:
            for row in rows:
                row.reason = f"needs {needed / 1e9:.1f} GB of disk"
            return
        for row, server in zip(rows, servers, strict=True):
            if len(self._failed.get(row.name, ())) > 1:
                row.reason = self._failed[row.name][-1]  # twice in a row is enough
            else:
                self._start(row, server.launch)
        for row, server in zip(rows, servers, strict=True):
            if not row.reason:
                self._start(row, server.wait_until_listening)
        for row, server in zip(rows, servers, strict=True):
            if not row.reason:
                self._failed.pop(row.name, None)
                self._try(row, lambda server=server: self._warm_up(case, server))  # type: ignore[misc]

    def _start(self, row: Row, start: Callable[[], None]) -> None:
        try:
            start()
        except (TargetError, OSError) as error:
            row.reason = str(error)
            self._failed.setdefault(row.name, []).append(row.reason)

    def _try(self, row: Row, turn: Callable[[], Round | None]) -> None:
        try:
            one = turn()
        except (LoadError, TargetError, OSError) as error:
            row.reason = str(error)
        else:
            if one is not None:
                row.rounds.append(one)

    def _floor_turn(self, point: Point, floor: Floor) -> Callable[[], Round]:
        def turn() -> Round:
            size, count = min(point.size, floors.LARGEST), point.versions()
            seconds = floor.run(size, count, self._directory)
            return Round(seconds=seconds, bytes=size * count, samples=(seconds / count,) * count)

        return turn

    def _server_turn(self, case: Case, server: Server) -> Callable[[], Round]:
        def turn() -> Round:
            try:
                return (self._boot if case[0].kind == "boot" else self._round)(case, server)
            except LoadError as error:
                raise LoadError(f"the server died{server.last_words()}" if server.died() else str(error)) from error

        return turn

    def _task(self, case: Case, server: Server, model: str) -> Task:
        scenario, point = case
        busy = point.size * point.versions() * point.at_once / SLOWEST
        return Task(
            kind="create",
            client=server.target.client or scenario.client,
            address=server.address,
            model=model,
            stored=scenario.stored,
            size=point.size,
            chunk=point.chunk or MIB,
            count=point.versions(),
            seed=b"" if scenario.fresh else SAME_CONTENT,
            warm=scenario.warm and scenario.kind == "download",
            checked=server.target.checked,
            timeout=60 + busy,
        )

    def _warm_up(self, case: Case, server: Server) -> None:
        """A small version up and down again, looked at, so that no target is measured whose answers are wrong."""
        scenario, point = case
        if scenario.unit == "MB" and server.pid is None:
            raise TargetError("its memory can't be read from here")
        task = self._task(case, server, "warm-up")
        if not server.target.checked:
            return
        small = attrs.evolve(task, size=min(point.size, WARM_UP_BYTES), count=1)
        self._load.run([small])
        self._load.run([attrs.evolve(small, kind="verify")])
        if not scenario.fresh:
            self._load.run([attrs.evolve(task, kind="upload", count=1)])
        if scenario.kind == "boot":
            filler = attrs.evolve(task, kind="upload", count=point.count // FILLED_MODELS, timeout=600.0)
            models = [attrs.evolve(filler, model=f"filled-{number}") for number in range(FILLED_MODELS)]
            for some in (models[first : first + FILLERS] for first in range(0, FILLED_MODELS, FILLERS)):
                self._load.run([attrs.evolve(model, kind="create") for model in some])
                self._load.run(some)

    def _round(self, case: Case, server: Server) -> Round:
        """Fresh model, fresh payload, one measurement, model deleted."""
        scenario, point = case
        task = self._task(case, server, f"bench-{os.urandom(6).hex()}")
        # Models are made and deleted by a client that costs next to nothing to start.
        chore = attrs.evolve(task, client="http" if task.client == "http" else "frames-16k")
        self._load.run([chore])
        try:
            stages = _stages(scenario, point, task)
            cpu = [0.0]

            def before() -> None:
                if server.pid is not None:
                    measure.reset_peak(server.pid)
                    cpu[0] = measure.cpu_seconds(server.pid)

            results = self._load.run(*stages, before=before)
            return _round_of(results, server.pid, cpu[0])
        finally:
            if not server.died():
                self._load.run([attrs.evolve(chore, kind="delete")])
                server.sweep()

    def _boot(self, case: Case, server: Server) -> Round:
        """Stops the server and starts it on what it holds, until it answers a lookup in it."""
        if server.target.command is None:
            raise TargetError("was not started by the harness, so it can't be started again")
        server.stop()
        start = time.monotonic()
        server.launch()
        server.wait_until_listening(300.0)
        task = attrs.evolve(self._task(case, server, "warm-up"), kind="lookup", version=-1, count=1)
        while True:
            try:
                self._load.run([task])
                break
            except LoadError:  # UNAVAILABLE until the index is loaded
                if time.monotonic() > start + 300 or server.died():
                    raise
        seconds = time.monotonic() - start
        pid = server.pid
        assert pid is not None
        cpu, peak = measure.cpu_seconds(pid), measure.peak_memory(pid)
        return Round(seconds=seconds, bytes=0, samples=(seconds,), server_cpu=cpu, peak=peak)


def _stages(scenario: Scenario, point: Point, task: Task) -> list[list[Task]]:
    """Who does what, one stage after the other."""
    if scenario.kind == "fetch":
        upload = attrs.evolve(task, kind="upload", count=1)
        return [[upload], [attrs.evolve(task, kind="download", version=-1, count=1)] * point.at_once]
    if scenario.kind in ("upload", "download"):
        return [[attrs.evolve(task, kind=scenario.kind)] * point.at_once]
    assert scenario.kind != "boot"
    return [[attrs.evolve(task, kind=scenario.kind, size=task.size or 1000, at_once=point.at_once)]]


def _round_of(stages: Sequence[Sequence[Outcome]], pid: int | None, cpu_before: float) -> Round:
    """What all stages took; samples are those of the last, as fetches and the upload before them are not the same thing."""
    outcomes = [outcome for stage in stages for outcome in stage]
    seconds = max(outcome.end for outcome in outcomes) - min(outcome.start for outcome in outcomes)
    return Round(
        seconds=seconds,
        bytes=sum(outcome.bytes for outcome in outcomes),
        samples=tuple(sample for outcome in stages[-1] for sample in outcome.samples),
        server_cpu=measure.cpu_seconds(pid) - cpu_before if pid is not None else math.nan,
        client_cpu=sum(outcome.cpu for outcome in outcomes),
        busiest=max(outcome.cpu / max(1e-9, outcome.end - outcome.start) for outcome in outcomes),
        peak=measure.peak_memory(pid) if pid is not None else math.nan,
    )
