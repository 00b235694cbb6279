"""Every scenario at toy size, against everything that is started here."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from benchmarks.clients import Task
from benchmarks.load import Load
from benchmarks.runner import Result, Round, Runner
from benchmarks.scenarios import SCENARIOS, Case, Point, Scenario, choose
from benchmarks.targets import NULL, OWN, TARGETS, Server, Target, available

KINDS = sorted({scenario.kind for scenario in SCENARIOS})


def run(directory: Path, targets: list[Target], scenarios: list[Scenario]) -> list[Result]:
    with Load() as load:
        runner = Runner(load, directory, targets, rounds=1)
        steps: list[None] = []
        results = []
        for scenario in scenarios:
            case = (scenario, scenario.toy)
            results.append(runner.run(case, lambda: steps.append(None)))
        assert len(steps) == sum(runner.steps((scenario, scenario.toy)) for scenario in scenarios)
    assert list(directory.iterdir()) == []
    return results


def check(results: list[Result]) -> None:
    for result in results:
        assert {row.name: row.reason for row in result.rows if row.reason} == {}, result.scenario.name
        for row in result.rows:
            summary = row.summary(result.scenario.unit)
            assert summary is not None
            assert summary.median > 0
            if not row.floor:
                assert row.rounds[0].peak > 1e6
                assert row.rounds[0].server_cpu >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_target_at_toy_size(kind: str, tmp_path: Path) -> None:
    """Starting all of them takes a second or two, so one scenario of a kind has to do."""
    results = run(tmp_path, available(), [next(scenario for scenario in SCENARIOS if scenario.kind == kind)])
    check(results)
    assert {row.name for row in results[0].rows} >= {"modelreg"} | (
        set() if kind == "boot" else {"purerpc", "reference"}
    )


def test_every_scenario_at_toy_size(tmp_path: Path) -> None:
    """Against what starts quickest, as it is the scenarios that are tried; those of modelreg alone have tests of their own."""
    stub = attrs.evolve(NULL, name="stub", kinds=NULL.kinds | {"beside"})
    results = run(tmp_path, [stub], [one for one in SCENARIOS if one.kind != "boot" and not one.own])
    check(results)
    assert all(result.rows for result in results)


def test_the_own_client_beside_the_other(tmp_path: Path) -> None:
    results = run(tmp_path, available(), [scenario for scenario in SCENARIOS if scenario.own])
    check(results)
    for result in results:
        assert [row.name for row in result.rows] == ["modelreg", *(target.name for target in OWN)]
        assert result.ratio(result.rows[1], result.rows[0]) is not None


@pytest.mark.parametrize("target", available(), ids=lambda target: target.name)
def test_nothing_is_left_of_a_round(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the disk need hold no more than what one target has in one round."""
    held: dict[str, list[int]] = {}
    measure_round = Runner._round

    def spy(self: Runner, case: Case, server: Server) -> Round:
        done = measure_round(self, case, server)
        files = [path.stat().st_size for path in server.directory.rglob("*") if path.is_file()]
        held.setdefault(server.target.name, []).append(sum(files))
        return done

    monkeypatch.setattr(Runner, "_round", spy)
    point = Point(size=3_000_000, count=3)
    with Load() as load:
        result = Runner(load, tmp_path, [target], rounds=2).run((SCENARIOS[0], point), lambda: None)
    check([result])
    first, second = held[target.name]
    assert first == second < 2 * point.size  # what was warmed up with stays


def test_an_interrupt_while_servers_are_closed_leaves_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers: list[Server] = []
    close = Server.close

    def interrupted(self: Server) -> None:
        servers.append(self)
        close(self)
        if len(servers) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Server, "close", interrupted)
    stubs = [attrs.evolve(NULL, name=name) for name in ("one", "two", "three")]
    with Load() as load, pytest.raises(KeyboardInterrupt):
        runner = Runner(load, tmp_path, stubs, rounds=1)
        runner.run((SCENARIOS[0], SCENARIOS[0].toy), lambda: None)
    assert len(servers) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_reason(tmp_path: Path) -> None:
    with Load() as load:
        runner = Runner(load, tmp_path, available(), rounds=1)
        result = runner.run((SCENARIOS[0], Point(size=1 << 50)), lambda: None)
        assert result.rows[0].reason.startswith("needs 1125899.9 GB")


def test_a_full_run_ends_within_the_hour(tmp_path: Path) -> None:
    with Load() as load:
        runner = Runner(load, tmp_path, list(TARGETS), rounds=None, usual=5)
        assert 10 < sum(map(runner.seconds, choose([], [], [], [], full=True))) / 60 < 45
        assert sum(map(runner.seconds, choose([], [], [], [], full=False))) / 60 < 6


def test_a_target_that_does_not_start_is_a_failed_row_and_tried_twice(tmp_path: Path) -> None:
    starts = []

    def command(directory: Path, chunk: int) -> list[str]:
        starts.append(directory)
        return ["python3", "-c", "import sys; sys.exit('no such option')"]

    lookups = [scenario for scenario in SCENARIOS if scenario.kind == "lookup"] * 2
    for result in run(tmp_path, [Target(name="broken", meaning="", command=command)], lookups):
        row, null = result.rows
        assert row.reason == "broken ended with code 1: no such option"
        assert result.ratio(null, row) is None
        assert not null.reason
    assert len(starts) == 2


def test_memory_that_cannot_be_read_is_a_reason(tmp_path: Path) -> None:
    away = Target(name="far:1", meaning="", address="far:1")
    (result,) = run(tmp_path, [away], [next(one for one in SCENARIOS if one.name == "memory/upload")])
    assert result.rows[0].reason == "its memory can't be read from here"


def test_a_target_that_answers_wrongly_is_a_failed_row(tmp_path: Path) -> None:
    liar = attrs.evolve(NULL, name="liar", checked=True)
    (result,) = run(tmp_path, [liar], [SCENARIOS[0]])
    assert result.rows[0].reason.startswith("WrongReply: sent")
    assert not any(row.reason for row in result.rows[1:])


def test_a_target_that_runs_already_is_found_with_its_process(tmp_path: Path) -> None:
    reference = next(target for target in available() if target.name == "reference")
    server = Server(reference, tmp_path / "server", 1000)
    try:
        server.launch()
        server.wait_until_listening()
        (tmp_path / "runs").mkdir()
        there = Target(name=server.address, meaning="", address=server.address)
        (result,) = run(tmp_path / "runs", [there], [SCENARIOS[0]])
        assert result.rows[0].rounds[0].peak > 1e6
        assert not server.died()
    finally:
        server.close()


def test_a_load_process_that_fails_says_why_and_is_replaced() -> None:
    from benchmarks.load import LoadError

    task = Task(kind="create", client="frames-16k", address="127.0.0.1:1", model="m", timeout=5)
    with Load() as load:
        for _ in range(2):
            with pytest.raises(LoadError, match="ConnectionRefusedError"):
                load.run([task])


def test_targets_take_turns_and_each_begins_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    monkeypatch.setattr(Runner, "_begin", lambda *_: None)
    monkeypatch.setattr(Runner, "_round", lambda _, __, server: turns.append(server.target.name))
    with Load() as load:
        runner = Runner(load, tmp_path, TARGETS[:2], rounds=3)
        runner.run((next(one for one in SCENARIOS if one.kind == "lookup"), Point()), lambda: None)
    assert turns == [
        *("modelreg", "purerpc", "null server"),
        *("purerpc", "null server", "modelreg"),
        *("null server", "modelreg", "purerpc"),
    ]


def test_choosing() -> None:
    assert {scenario.name for scenario, _ in choose([], [], [], [], full=True)} == {one.name for one in SCENARIOS}
    cases = choose(["upload/stored/ccore"], [1000, 2000], [100], [], full=False)
    assert [(point.size, point.chunk) for _, point in cases] == [(1000, 100), (2000, 100)]
    assert choose(["watch"], [5], [], [7], full=True) == [
        (next(one for one in SCENARIOS if one.name == "watch"), Point(size=1000, chunk=1000, at_once=7, count=20))
    ]
    assert choose(["nothing"], [], [], [], full=True) == []
