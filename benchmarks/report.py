"""Results as tables (Markdown, which reads as plain text too) and as JSON; and what machine they are from."""

from __future__ import annotations

import math
import os
import platform
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import attrs

import modelreg
from benchmarks import measure
from benchmarks.measure import Summary
from benchmarks.runner import BUSY, Result, Round, Row
from benchmarks.targets import NULL, ROOT

LIBRARIES = ("grpcio", "protobuf", "purerpc", "h2", "hpack", "trio")
MARK = "°"  # at figures that may be the client's


def machine(directory: Path) -> dict[str, str]:
    """What a reader must know to compare with another run."""
    cpu = measure.fact(Path("/proc/cpuinfo"), "model name") or platform.processor()
    memory = int((measure.fact(Path("/proc/meminfo"), "MemTotal") or "0 kB").split()[0]) * 1024
    facts = {
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "CPU": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory / 1e9:.1f} GB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": measure.file_system(directory),
        "Python": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}",
    }
    facts["modelreg"] = " ".join(filter(None, (modelreg.__version__, commit())))
    facts.update({library: metadata.version(library) for library in LIBRARIES})
    if shutil.which("docker-registry"):
        facts["docker-registry"] = subprocess.run(
            ["docker-registry", "--version"], capture_output=True, text=True, check=False, timeout=10
        ).stdout.split()[-1]
    return facts


def commit() -> str:
    """What is checked out, where this is a checkout and git is there."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10).stdout.strip()


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None or math.isnan(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3}f}"


def latencies(row: Row) -> dict[str, float]:
    """Percentiles in milliseconds over all rounds."""
    return {
        name: value * 1e3 for name, value in measure.quantiles(s for one in row.rounds for s in one.samples).items()
    }


def per_gb(value: float, one: Round) -> float:
    """CPU seconds for 10⁹ bytes; NaN for what moves no bytes to speak of."""
    return value / one.bytes * 1e9 if one.bytes >= 1e6 else math.nan


def limited(row: Row, result: Result) -> bool:
    """Whether the client may be what was measured: a busy core or machine, or close to what it reaches against the null server."""
    if row.name == NULL.name or row.floor:
        return False
    ceiling = next((other for other in result.rows if other.name == NULL.name), None)
    ratio = result.ratio(row, ceiling) if ceiling else None
    return row.client_bound or (ratio is not None and ratio >= BUSY)


def grid(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned for those who read it as it is. The first line is the header."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def text(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {first[0]:<{first[1]}} | " + " | ".join(f"{cell:>{width}}" for cell, width in others) + " |"

    rule = "|" + "|".join(
        "-" * (width + 2) if index == 0 else "-" * (width + 1) + ":" for index, width in enumerate(widths)
    )
    return "\n".join([text(lines[0]), rule + "|", *map(text, lines[1:])])


def details(result: Result) -> list[list[str]]:
    """One case: a line for each target and floor, and how many times as good it is as each other."""
    unit = result.scenario.unit
    others = [row for row in result.rows if not row.reason]
    columns = [unit, "low–high", *(f"×{row.name}" for row in others)]
    columns += ["server CPU s/GB", "client CPU s/GB", "peak MB", "p50 ms", "p99 ms", "slowest ms"]
    lines = [["target", *columns]]
    for row in result.rows:
        summary = row.summary(unit)
        if summary is None:
            lines.append([row.name, "failed", *[""] * (len(columns) - 1)])
            continue
        line = [f"{row.name}{' (floor)' if row.floor else ''}"]
        line.append(number(summary.median) + (MARK if limited(row, result) else ""))
        line.append(f"{number(summary.low)}–{number(summary.high)}")
        line += ["" if row is other else number(result.ratio(row, other)) for other in others]
        if row.floor:
            line += [""] * 6
        else:
            spread = latencies(row)
            line += [
                number(_median(row.of(lambda one: per_gb(one.server_cpu, one)))),
                number(_median(row.of(lambda one: per_gb(one.client_cpu, one)))),
                number(_high(row.of(lambda one: one.peak / 1e6))),
                number(spread.get("p50")),
                number(spread.get("p99")),
                number(spread.get("p100")),
            ]
        lines.append(line)
    return lines


def summary(results: Sequence[Result]) -> list[list[str]]:
    """All cases, a line each: the medians of the targets, then the floors."""
    names = list(dict.fromkeys(row.name for result in results for row in result.rows if not row.floor))
    floors = list(dict.fromkeys(row.name for result in results for row in result.rows if row.floor))
    lines = [["scenario", "unit", *names, *(f"*{name}*" for name in floors)]]
    for result in results:
        rows = {row.name: row for row in result.rows}
        line = [result.scenario.text(result.point), result.scenario.unit]
        for name in (*names, *floors):
            row = rows.get(name)
            value = row.summary(result.scenario.unit) if row else None
            if row is None:
                line.append("")
            elif value is None:
                line.append("failed")
            else:
                line.append(number(value.median) + (MARK if limited(row, result) else ""))
        lines.append(line)
    return lines


def failures(results: Iterable[Result]) -> list[str]:
    return [
        f"{result.scenario.text(result.point)}: {row.name} failed: {row.reason}"
        for result in results
        for row in result.rows
        if row.reason
    ]


LEGEND = f"""\
Medians of interleaved rounds. MB are 10⁶ bytes; for ms, s and MB less is better, and ×name says in every unit how many times as
good as `name`. Upload figures include fsync where versions are stored. {MARK}: the client used {BUSY:.0%} of a core or more, or much of a
machine that was as full, or came within {1 - BUSY:.0%} of what it reaches against the null server, so the target may be faster than shown. Floors are one core, one stream."""


def markdown(results: Sequence[Result], facts: dict[str, str]) -> str:
    parts = ["\n".join(f"- {name}: {value}" for name, value in facts.items()), LEGEND, grid(summary(results))]
    parts.extend(
        "\n\n".join(
            [f"### {one.scenario.text(one.point)}", one.scenario.question, grid(details(one)), *failures([one])]
        )
        for one in results
    )
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[Result], facts: dict[str, str], options: dict[str, object]) -> dict[str, object]:
    """Everything, rounds too, but latencies as percentiles. Ratios are those of the medians."""
    return {
        "machine": facts,
        "options": options,
        "cases": [
            {
                "scenario": result.scenario.name,
                "kind": result.scenario.kind,
                "client": result.scenario.client,
                "stored": result.scenario.stored,
                "unit": result.scenario.unit,
                "point": attrs.asdict(result.point),
                "rows": [_row(result, row) for row in result.rows],
            }
            for result in results
        ],
    }


def _row(result: Result, row: Row) -> dict[str, object]:
    unit = result.scenario.unit
    value = row.summary(unit)
    return {
        "target": row.name,
        "floor": row.floor,
        "failed": row.reason or None,
        "summary": attrs.asdict(value) if value else None,
        "client_bound": limited(row, result),
        "ratios": {other.name: result.ratio(row, other) for other in result.rows if other is not row},
        "latency_ms": {} if row.floor else latencies(row),
        "rounds": [
            {
                "figure": _plain(one.figure(unit)),
                "seconds": one.seconds,
                "bytes": one.bytes,
                "samples": len(one.samples),
                "server_cpu_seconds": _plain(one.server_cpu),
                "client_cpu_seconds": _plain(one.client_cpu),
                "busiest_client_cores": one.busiest,
                "peak_bytes": _plain(one.peak),
            }
            for one in row.rounds
        ],
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _median(value: Summary | None) -> float | None:
    return value.median if value else None


def _high(value: Summary | None) -> float | None:
    return value.high if value else None
