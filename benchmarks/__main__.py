"""The command: chooses cases, runs them with a progress bar, prints the table, and writes JSON, Markdown and HTML."""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import click

from benchmarks import GIB, KIB, MIB, html, report
from benchmarks.load import Load
from benchmarks.runner import Result, Runner
from benchmarks.scenarios import SCENARIOS, Case, choose
from benchmarks.targets import TARGETS, Target, available

_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB}


def size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(?:ib?)?", text.strip().lower())
    if not match:
        raise click.BadParameter(f"{text!r} is not a size: try 65536, 64k, 64KiB, 1g")
    return int(match[1]) * _FACTORS[match[2]]


def named(name: str) -> Target:
    """A target by its name, or one that runs already by its address."""
    for target in TARGETS:
        if target.name == name:
            return target
    if not re.fullmatch(r"\S+:\d+", name):
        names = ", ".join(target.name for target in TARGETS)
        raise click.BadParameter(f"{name!r} is neither HOST:PORT nor one of {names}", param_hint="--target")
    # The harness can't restart it.
    kinds = frozenset(kind for target in TARGETS for kind in target.kinds) - {"boot"}
    return Target(name=name, meaning="runs already", address=name, kinds=kinds)


@click.command(help=__doc__)
@click.option(
    "--scenario", "patterns", multiple=True, metavar="GLOB", help="Which: upload/*, */ccore, watch. Default: all."
)
@click.option(
    "--size", "sizes", type=size, multiple=True, metavar="SIZE", help="Of versions, instead of the scenarios'."
)
@click.option("--chunk", "chunks", type=size, multiple=True, metavar="SIZE", help="Instead of the scenarios'.")
@click.option("--concurrency", "at_once", type=click.IntRange(1), multiple=True, help="Instead of the scenarios'.")
@click.option("--rounds", type=click.IntRange(1), help="Default: 3, or 5 with --full; fewer of those that take long.")
@click.option("--target", "names", multiple=True, metavar="NAME|HOST:PORT", help="Default: all that are installed.")
@click.option("--quick/--full", default=True, help="A selection of about two minutes (the default), or everything.")
@click.option("--dir", "directory", type=Path, help="Where archives are put: the file system matters. Default: TMPDIR.")
@click.option("--out", type=Path, default=Path("bench-report"), show_default=True, help="Where the report is put.")
@click.option("--list", "only_list", is_flag=True, help="Say what would run, on what, and about how long that takes.")
def main(
    *,
    patterns: tuple[str, ...],
    sizes: tuple[int, ...],
    chunks: tuple[int, ...],
    at_once: tuple[int, ...],
    rounds: int | None,
    names: tuple[str, ...],
    quick: bool,
    directory: Path | None,
    out: Path,
    only_list: bool,
) -> None:
    if 0 in chunks:
        raise click.BadParameter("a chunk has at least one byte", param_hint="--chunk")
    chosen = choose(patterns, sizes, chunks, at_once, full=not quick)
    if not chosen:
        raise click.UsageError(f"no scenario of that name; there are: {', '.join(one.name for one in SCENARIOS)}")
    targets = [named(name) for name in names] or available()
    results: list[Result] = []
    facts: dict[str, str] = {}
    cases: list[Case] = []
    interrupted = False
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="modelreg-bench-", dir=directory, ignore_cleanup_errors=True) as scratch,
            Load() as load,
        ):
            runner = Runner(load, Path(scratch), targets, rounds, usual=3 if quick else 5)
            cases = [case for case in chosen if runner.targets_of(case[0])]
            if only_list:
                _list(runner, targets, cases)
                return
            facts = report.machine(Path(scratch))
            # Its unit is a millisecond of what each measurement should take.
            shares = {case: int(1000 * runner.seconds(case) / runner.steps(case)) for case in cases}
            current = ""
            bar: click._termui_impl.ProgressBar[int] = click.progressbar(
                length=sum(runner.steps(case) * share for case, share in shares.items()),
                file=sys.stderr,
                item_show_func=lambda _: current,
                width=30,
            )
            with bar:
                for case, share in shares.items():
                    current = case[0].text(case[1])
                    bar.render_progress()
                    if not sys.stderr.isatty():
                        click.echo(f"{time.strftime('%H:%M:%S')} {len(results) + 1}/{len(cases)} {current}", err=True)
                    results.append(runner.run(case, partial(bar.update, share)))
    except KeyboardInterrupt:
        interrupted = True
        click.echo(f"\ninterrupted after {len(results)} of {len(cases)} cases", err=True)
    finally:  # an error nobody expected, too, leaves what was measured until then
        if facts:
            options: dict[str, object] = {
                "scenario": patterns, "size": sizes, "chunk": chunks, "concurrency": at_once, "rounds": rounds, "full": not quick,
                "targets": [target.name for target in targets],
            }  # fmt: skip
            _write(out, results, facts, options)
    if interrupted:
        sys.exit(130)


def _list(runner: Runner, targets: Sequence[Target], cases: Sequence[Case]) -> None:
    for target in targets:
        click.echo(f"{target.name:18} {target.meaning}")
    for case in cases:
        click.echo(
            f"{case[0].text(case[1]):64} {runner.rounds(case)} rounds, {runner.seconds(case):4.0f} s  {case[0].question}"
        )
    moved = sum(sum(runner.moved(case)) * runner.rounds(case) * len(runner.targets_of(case[0])) for case in cases)
    minutes = sum(map(runner.seconds, cases)) / 60
    click.echo(
        f"{len(cases)} cases, about {minutes:.0f} minutes; {moved / 1e9:,.0f} GB travel, never more than a case's on the disk"
    )


def _write(out: Path, results: list[Result], facts: dict[str, str], options: dict[str, object]) -> None:
    text = report.markdown(results, facts)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text)
    (out / "report.json").write_text(json.dumps(report.to_json(results, facts, options), indent=1))
    (out / "report.html").write_text(html.page(results, facts))
    click.echo(text)
    for line in report.failures(results):
        click.echo(line, err=True)
    click.echo(f"written to {out}/", err=True)


def _interrupt(_number: int, _stack: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # servers and directories are cleaned up as after Ctrl-C
    main()
