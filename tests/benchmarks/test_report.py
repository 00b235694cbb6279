from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

import modelreg
from benchmarks import html, measure, report
from benchmarks.__main__ import main, size
from benchmarks.runner import Result, Round, Row, Runner
from benchmarks.scenarios import SCENARIOS, Point

UPLOAD, PUBLISH, WATCH = (
    next(one for one in SCENARIOS if one.name == name)
    for name in ("upload/stored/ccore", "publish/stored/ccore", "watch")
)


def row(name: str, *seconds: float, reason: str = "", floor: bool = False, busiest: float = 0.1) -> Row:
    rounds = [
        Round(
            seconds=one,
            bytes=10**8,
            samples=(one / 2,) * 15,
            server_cpu=one,
            client_cpu=one / 10,
            busiest=busiest,
            peak=5e7,
        )
        for one in seconds
    ]
    return Row(name=name, floor=floor, reason=reason, rounds=rounds)


def results() -> list[Result]:
    rows = (
        row("modelreg", 0.1, 0.2, 0.3),
        row("a<b", reason="it said <script>no</script>"),
        row("10.0.0.1:9000", 0.4, 0.4, 0.4, busiest=0.95),
        row("null server", 0.05, 0.05),
        row("sha256", 0.1, 0.1, floor=True),
    )
    sizes = [Result(scenario=UPLOAD, point=Point(size=size), rows=rows) for size in (1 << 20, 64 << 20, 1 << 30)]
    return [
        *sizes,
        Result(scenario=PUBLISH, point=Point(size=1000), rows=rows),
        Result(scenario=WATCH, point=Point(), rows=rows),
    ]


def test_ratios_say_how_many_times_as_good() -> None:
    upload, *_, watch = results()
    ours, failed, other, *_ = upload.rows
    assert upload.ratio(ours, other) == pytest.approx(2)  # 500 MB/s against 250
    assert watch.ratio(ours, other) == pytest.approx(2)  # 100 ms against 200
    assert upload.ratio(ours, failed) is None


def test_table() -> None:
    header, ours, failed, other, null, floor = report.details(results()[0])
    figures = dict(zip(header, ours, strict=True))
    assert figures["MB/s"] == "500"
    assert figures["low–high"] == "333–1,000"
    assert figures["×10.0.0.1:9000"] == "2.00"
    assert figures["×sha256"] == "0.50"
    assert (figures["server CPU s/GB"], figures["client CPU s/GB"], figures["peak MB"]) == ("2.00", "0.20", "50.0")
    assert (figures["p50 ms"], figures["p99 ms"]) == ("100", "–")  # 45 samples are too few for the latter
    assert failed[1] == "failed"
    assert other[1] == "250" + report.MARK
    assert null[1] == "2,000"
    assert floor[0] == "sha256 (floor)"
    lines = report.grid([["a", "b"], ["long", "1"]]).splitlines()
    assert lines == ["| a    | b |", "|------|--:|", "| long | 1 |"]


def test_a_client_that_may_be_what_was_measured_is_marked() -> None:
    def marked(one: Row) -> bool:
        null = row("null server", 0.1)
        return report.limited(one, Result(scenario=UPLOAD, point=Point(), rows=(one, null)))

    assert not marked(row("a", 0.2))
    assert marked(row("a", 0.2, busiest=0.9))
    assert marked(row("a", 0.11))  # nearly as good as the null server
    assert not marked(attrs.evolve(row("a", 0.11), client="http"))  # which another client was measured with

    cores = len(os.sched_getaffinity(0))

    def full(client: float, server: float) -> Row:
        one = attrs.evolve(row("a", 2.0).rounds[0], client_cpu=client * cores * 2, server_cpu=server * cores * 2)
        return Row(name="a", rounds=[one])

    assert marked(full(0.45, 0.5))
    assert not marked(full(0.45, 0.4))
    assert not marked(full(0.1, 0.9))
    assert not marked(full(1.0, math.nan))


def test_nothing_that_failed_is_left_out() -> None:
    text = report.markdown(results(), {"CPU": "some"})
    assert "failed" in text
    assert len(report.failures(results())) == len(results())
    page = html.page(results(), {"CPU": "some"})
    assert "it said &lt;script&gt;no&lt;/script&gt;" in page
    assert "<script" not in page


def test_json_says_what_was_measured() -> None:
    other = attrs.evolve(results()[0].rows[0].rounds[0], server_cpu=math.nan, peak=math.nan)
    lone = Result(scenario=UPLOAD, point=Point(), rows=(Row(name="far", rounds=[other]),))
    data = json.loads(json.dumps(report.to_json([*results(), lone], {"CPU": "some"}, {"rounds": 3}), allow_nan=False))
    case = data["cases"][0]
    assert (case["scenario"], case["unit"], case["point"]["size"]) == ("upload/stored/ccore", "MB/s", 1 << 20)
    assert case["rows"][0]["summary"] == {
        "median": pytest.approx(500),
        "low": pytest.approx(333.3, abs=1),
        "high": 1000,
    }
    assert case["rows"][0]["ratios"]["sha256"] == pytest.approx(0.5)
    assert case["rows"][1]["failed"] == "it said <script>no</script>"
    assert data["cases"][-1]["rows"][0]["rounds"][0]["peak_bytes"] is None


class Checker(HTMLParser):
    """Every element that is opened is closed, in order; nothing is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}
        self.figures += tag == "figure"
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_whole_and_needs_nothing_else() -> None:
    page = html.page(results(), report.machine(Path("/tmp")))
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    # Throughput and memory by size; bars for what is on no line; latencies of all five.
    assert checker.figures == 2 + 2 + 5
    assert "nan" not in page.lower().replace("nanosecond", "")
    assert "://" not in page
    assert "prefers-color-scheme: dark" in page


def test_html_of_nothing_but_failures() -> None:
    case = Result(scenario=UPLOAD, point=Point(), rows=(row("modelreg", reason="no"),))
    Checker().feed(html.page([case], {}))


@pytest.mark.parametrize(("text", "value"), [("65536", 65536), ("64k", 65536), ("1 MiB", 1 << 20), ("2G", 2 << 30)])
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


def test_command_lists_and_refuses() -> None:
    listed = CliRunner().invoke(main, ["--list", "--full"])
    assert listed.exit_code == 0
    assert all(scenario.name in listed.output for scenario in SCENARIOS)
    for arguments in (["--scenario", "nothing"], ["--size", "much"], ["--target", "nobody"], ["--chunk", "0"]):
        assert CliRunner().invoke(main, arguments).exit_code == 2


def test_command_writes_a_report(tmp_path: Path) -> None:
    options = [
        "--target",
        "reference",
        "--scenario",
        "upload/*/frames-1m",
        "--size",
        "100k",
        "--chunk",
        "30k",
        "--rounds",
        "1",
    ]
    done = CliRunner().invoke(main, [*options, "--dir", str(tmp_path / "dir"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "upload/stored/frames-1m" in done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.json", "report.md"}
    assert list((tmp_path / "dir").iterdir()) == []


def test_an_unexpected_error_does_not_lose_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = iter(results())
    monkeypatch.setattr(Runner, "run", lambda *_: next(done))
    monkeypatch.setattr("benchmarks.__main__.choose", lambda *_, **__: [(UPLOAD, Point(count=n)) for n in range(9)])
    ended = CliRunner().invoke(main, ["--target", "reference", "--out", str(tmp_path / "out")])
    assert isinstance(ended.exception, StopIteration)
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["cases"]) == len(results())


def test_the_commit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert report.machine(tmp_path)["modelreg"] == f"{modelreg.__version__} {report.commit()}".strip()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.commit() == ""


def test_interrupting_cleans_up_and_keeps_what_was_measured(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--target",
        "reference",
        "--rounds",
        "1000",
        "--scenario",
        "lookup/frames*",
    ]
    command += ["--dir", str(tmp_path / "dir"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stderr is not None
    children: list[int] = []
    deadline = time.monotonic() + 60
    try:
        while len(children) < 4:  # itself, two servers, a load process
            assert time.monotonic() < deadline
            children = measure.tree(process.pid)
            assert process.poll() is None
    except BaseException:
        process.kill()
        process.communicate()
        raise
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert b"interrupted" in errors
    # Those whose parent has ended are told so by the kernel, and end a moment later.
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline + 30
    assert list((tmp_path / "dir").iterdir()) == []
    assert (tmp_path / "out" / "report.html").exists()
