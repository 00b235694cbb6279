"""The command: chooses cases, runs them with a progress bar, prints the table, and writes JSON, Markdown and HTML."""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import click

from benchmarks import GIB, KIB, MIB, html, report
from benchmarks.load import Load
from benchmarks.runner import Result, Runner
from benchmarks.scenarios import SCENARIOS, choose
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
    "--scenario",
    "patterns",
    multiple=True,
    metavar="GLOB",
    help="Those to run: upload/*, */ccore, watch. Default: all.",
)
@click.option(
    "--size", "sizes", type=size, metavar="SIZE", multiple=True, help="Sizes of versions, instead of the scenarios'."
)
@click.option(
    "--chunk", "chunks", type=size, metavar="SIZE", multiple=True, help="Sizes of chunks, instead of the scenarios'."
)
@click.option(
    "--concurrency",
    "at_once",
    type=click.IntRange(1),
    multiple=True,
    help="How many at once, instead of the scenarios'.",
)
@click.option("--rounds", type=click.IntRange(1), help="Default: 3, or 5 with --full.")
@click.option(
    "--target", "names", multiple=True, metavar="NAME|HOST:PORT", help="Default: all that are installed. Repeatable."
)
@click.option(
    "--quick/--full", "quick", default=True, help="A short selection of about two minutes (the default), or everything."
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Where archives are put: the file system matters. Default: TMPDIR.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-report"), show_default=True
)
@click.option("--json/--no-json", "want_json", default=True, help="Write report.json.")
@click.option("--html/--no-html", "want_html", default=True, help="Write report.html.")
@click.option("--list", "only_list", is_flag=True, help="Say what would run, and on what.")
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
    want_json: bool,
    want_html: bool,
    only_list: bool,
) -> None:
    if 0 in chunks:
        raise click.BadParameter("a chunk has at least one byte", param_hint="--chunk")
    cases = choose(patterns, sizes, chunks, at_once, full=not quick)
    targets = [named(name) for name in names] or available()
    rounds = rounds or (3 if quick else 5)
    if not cases:
        raise click.UsageError(f"no scenario of that name; there are: {', '.join(one.name for one in SCENARIOS)}")
    if only_list:
        for target in targets:
            click.echo(f"{target.name:18} {target.meaning}")
        for scenario, point in cases:
            click.echo(f"{scenario.text(point):50} {scenario.question}")
        return
    signal.signal(signal.SIGTERM, _interrupt)  # servers and directories are cleaned up as after Ctrl-C
    results: list[Result] = []
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    facts: dict[str, str] = {}
    interrupted = False
    try:
        with (
            tempfile.TemporaryDirectory(prefix="modelreg-bench-", dir=directory, ignore_cleanup_errors=True) as scratch,
            Load() as load,
        ):
            facts = report.machine(Path(scratch))
            runner = Runner(load, Path(scratch), targets, rounds)
            current = ""
            bar: click._termui_impl.ProgressBar[int] = click.progressbar(
                length=sum(map(runner.steps, cases)), file=sys.stderr, item_show_func=lambda _: current, width=30
            )
            with bar:
                for case in cases:
                    current = case[0].text(case[1])
                    bar.render_progress()
                    results.append(runner.run(case, lambda: bar.update(1)))
    except KeyboardInterrupt:
        interrupted = True
        click.echo(f"\ninterrupted after {len(results)} of {len(cases)} cases", err=True)
    finally:  # an error nobody expected, too, leaves what was measured until then
        text = report.markdown(results, facts)
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(text)
        options: dict[str, object] = {
            "scenario": patterns, "size": sizes, "chunk": chunks, "concurrency": at_once, "rounds": rounds, "full": not quick,
            "targets": [target.name for target in targets],
        }  # fmt: skip
        if want_json:
            (out / "report.json").write_text(json.dumps(report.to_json(results, facts, options), indent=1))
        if want_html:
            (out / "report.html").write_text(html.page(results, facts))
        click.echo(text)
        for line in report.failures(results):
            click.echo(line, err=True)
        click.echo(f"written to {out}/", err=True)
    if interrupted:
        sys.exit(130)


def _interrupt(_number: int, _stack: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
