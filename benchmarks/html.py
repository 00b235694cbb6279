"""The report as one HTML file that needs nothing else: charts drawn here as SVG, light or dark as the reader's system is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

import attrs

from benchmarks import report
from benchmarks.measure import Summary
from benchmarks.runner import Result, Row
from benchmarks.scenarios import LESS_IS_BETTER, Point, bytes_text
from benchmarks.targets import NULL

WIDTH, HEIGHT = 430, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 34

_STYLE = """
:root { --paper: #fbfbfa; --card: #fff; --ink: #1d2126; --soft: #667079; --line: #e2e5e8; --bad: #b3261e;
  --c0: #1f6feb; --c1: #8250df; --c2: #d9730d; --c3: #0a8f6c; --c4: #c2255c; --c5: #866a00; --null: #8a939b; --floor: #98a1a9; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e4e7ea; --soft: #98a2ab; --line: #31373d;
  --bad: #ff8a80; --c0: #6cb0ff; --c1: #b99aff; --c2: #ffa657; --c3: #4fd1a5; --c4: #ff7eb0; --c5: #e3c35b; --null: #7d8790; --floor: #69737c; } }
* { box-sizing: border-box } html { color-scheme: light dark }
body { margin: 0 auto; padding: 2.2rem 1.4rem 5rem; max-width: 1460px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.6rem 0 .2rem } h3 { font-size: .95rem; margin: 0 }
p { margin: .3rem 0; max-width: 62rem } .soft, dt, figcaption span { color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; font-size: .9rem } dd { margin: 0 }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; position: sticky; top: 0; padding: .6rem 0; background: var(--paper);
  border-bottom: 1px solid var(--line); font-size: .9rem; z-index: 1 }
.key i { display: inline-block; width: 1.5rem; height: 0; border-top: 3px solid; margin-right: .45rem; vertical-align: middle }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(390px, 1fr)); gap: 1rem; margin-top: .9rem }
figure { margin: 0; padding: .8rem .9rem .5rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; min-width: 0 }
figcaption { font-weight: 600; font-size: .9rem } figcaption span { font-weight: 400 }
svg { display: block; width: 100%; height: auto; font-size: 11px } svg text { fill: var(--soft) } svg text.value { fill: var(--ink) }
svg text.bad { fill: var(--bad) } .grid { stroke: var(--line) }
.scroll { overflow-x: auto; margin: .5rem 0 1.6rem } table { border-collapse: collapse; font-size: .84rem; white-space: nowrap }
th, td { padding: .22rem .65rem; text-align: right; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums }
th { color: var(--soft); font-weight: 500 } th:first-child, td:first-child { text-align: left } .bad, .bad td { color: var(--bad) }
td.fail { text-align: left; white-space: normal }
summary { cursor: pointer; padding: .15rem 0 } summary span { color: var(--soft); font-size: .85rem }
"""


def page(results: Sequence[Result], facts: dict[str, str]) -> str:
    paint = _Paint(results)
    drawn: set[int] = set()  # cases that are on a line of a chart, by their place in *results*
    charts = [
        _section("Throughput by size", "", _by(results, paint, "size", drawn)),
        _section("Throughput by chunk", "", _by(results, paint, "chunk", drawn)),
        _section("By how many there are", "Clients, calls in flight, watchers.", _by(results, paint, "at_once", drawn)),
        _section("By versions in the archive", "", _by(results, paint, "count", drawn)),
        _section(
            "Memory by size", "Peak of the server, from the kernel.", _by(results, paint, "size", set(), memory=True)
        ),
    ]
    others = [result for number, result in enumerate(results) if number not in drawn]
    charts.insert(
        0, _section("Cases on their own", "Medians; the thin line is the spread of the rounds.", _bars(others, paint))
    )
    latency = "Line: 1st to 99th percentile (95th of less than 100 samples); bar: quartiles; dot: median. Milliseconds (p50 · p99), logarithmic."
    charts.append(_section("Latency", latency, _latencies(results, paint)))
    machine = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    failed = "".join(f"<li>{escape(line)}</li>" for line in report.failures(results))
    failed = f'<h2 class="bad">Failed</h2><ul class="bad">{failed}</ul>' if failed else ""
    tables = "".join(
        f"<details><summary>{escape(one.scenario.text(one.point))} <span>{escape(one.scenario.question)}</span></summary>{_table(one)}</details>"
        for one in results
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Model registry throughput</title><style>{_STYLE}</style>"
        f"<h1>Model registry throughput</h1><dl>{machine}</dl><p class=soft>{escape(report.LEGEND)}</p>{failed}"
        f'<div class="key">{paint.key()}</div>{"".join(charts)}<h2>Figures</h2>{tables}</html>'
    )


class _Paint:
    """A colour for each target, the same in all charts; floors are grey and dashed."""

    def __init__(self, results: Sequence[Result]) -> None:
        rows = {row.name: row for result in results for row in result.rows}
        self._rows = dict(sorted(rows.items(), key=lambda item: item[1].floor))
        names = [name for name, row in rows.items() if not row.floor and name != NULL.name]
        self._colors = {name: f"var(--c{index % 6})" for index, name in enumerate(names)}
        floors = [name for name, row in self._rows.items() if row.floor]
        self._dashes = {name: f"{2 + 4 * index} 3" for index, name in enumerate(floors)}

    def color(self, row: Row) -> str:
        return "var(--floor)" if row.floor else self._colors.get(row.name, "var(--null)")

    def dash(self, row: Row) -> str:
        dashes = self._dashes.get(row.name, "1 3" if row.name == NULL.name else "")
        return f' stroke-dasharray="{dashes}"' if dashes else ""

    def key(self) -> str:
        return "".join(
            f'<span><svg style="display:inline;width:1.8rem;height:.6rem;margin-right:.4rem" viewBox="0 0 28 8"><line x2="28" y1="4" '
            f'y2="4" stroke="{self.color(row)}" stroke-width="3"{self.dash(row)}/></svg>{escape(name)}</span>'
            for name, row in self._rows.items()
        )


def _section(title: str, text: str, figures: Iterable[str]) -> str:
    charts = "".join(figures)
    return f'<h2>{title}</h2><p class="soft">{text}</p><div class="charts">{charts}</div>' if charts else ""


def _figure(title: str, note: str, body: str, height: float = HEIGHT) -> str:
    caption = f"{escape(title)} <span>{escape(note)}</span>"
    return f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {WIDTH} {height:g}" role="img">{body}</svg></figure>'


def _bars(results: Sequence[Result], paint: _Paint) -> Iterable[str]:
    for result in results:
        unit, room, step = result.scenario.unit, WIDTH - 190, 21
        values = [(row, row.summary(unit)) for row in result.rows]
        # Limits may be a thousand times what anything reaches; the bars that matter should not shrink for them.
        limits = [row for row in result.rows if row.floor or row.name == NULL.name]
        top = max((value.high for row, value in values if value and row not in limits), default=0) * 1.2 or 1
        out = []
        for index, (row, value) in enumerate(values):
            y = 6 + index * step
            out.append(f'<text x="104" y="{y + 12}" text-anchor="end">{escape(row.name)}</text>')
            if value is None:
                out.append(f'<text x="112" y="{y + 12}" class="bad">failed<title>{escape(row.reason)}</title></text>')
                continue
            width = min(1.0, value.median / top) * room
            low, high = (112 + min(1.0, end / top) * room for end in (value.low, value.high))
            fill = f'fill="{paint.color(row)}"' + (' fill-opacity=".45"' if row.floor else "")
            mark = report.MARK if report.limited(row, result) else ""
            beyond = " →" if value.median > top else ""
            out.append(
                f'<rect x="112" y="{y}" width="{width:.1f}" height="15" rx="2" {fill}/>'
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 7.5}" y2="{y + 7.5}" stroke="var(--ink)" stroke-opacity=".6"/>'
                f'<text class="value" x="{max(112 + width, high) + 5:.1f}" y="{y + 12}">{report.number(value.median)}{mark}{beyond}</text>'
            )
        better = ", less is better" if unit in LESS_IS_BETTER else ""
        yield _figure(
            result.scenario.name,
            f"{result.scenario.place(result.point)}, {unit}{better}",
            "".join(out),
            8 + len(values) * step,
        )


def _by(results: Sequence[Result], paint: _Paint, axis: str, drawn: set[int], *, memory: bool = False) -> Iterable[str]:
    """A chart for each scenario that was measured at several places of an axis, all else being equal."""
    lines: dict[tuple[str, Point], list[int]] = {}
    for number, result in enumerate(results):
        place = getattr(result.point, axis)
        if place and not (memory and result.scenario.unit != "MB/s"):
            lines.setdefault((result.scenario.name, attrs.evolve(result.point, **{axis: 0})), []).append(number)
    for (name, _), numbers in lines.items():
        if len(numbers) < 2:
            continue
        drawn.update(numbers)
        line = sorted((results[number] for number in numbers), key=lambda result: getattr(result.point, axis))
        places = [getattr(result.point, axis) for result in line]
        unit = "MB" if memory else line[0].scenario.unit
        curves: dict[str, tuple[Row, list[tuple[int, Summary]]]] = {}
        for place, result in zip(places, line, strict=True):
            for row in result.rows:
                skip = memory and (row.floor or row.name == NULL.name)
                one = None if skip else row.of(lambda one: one.peak / 1e6) if memory else row.summary(unit)
                if one:
                    curves.setdefault(row.name, (row, []))[1].append((place, one))
        text = bytes_text if axis in ("size", "chunk") else lambda place: f"{place:,}"
        point = line[0].point
        chunk = bytes_text(point.chunk) if point.chunk else "default"
        fixed = {"size": f"in {chunk} chunks", "chunk": bytes_text(point.size), "at_once": bytes_text(point.size)}.get(
            axis, ""
        )
        better = ", less is better" if unit in LESS_IS_BETTER else ""
        yield _figure(
            name, f"{fixed if point.size else ''} {unit}{better}", _lines(places, list(curves.values()), paint, text)
        )


def _lines(
    places: Sequence[int],
    curves: Sequence[tuple[Row, list[tuple[int, Summary]]]],
    paint: _Paint,
    text: Callable[[int], str],
) -> str:
    """Both axes logarithmic: sizes grow by factors, and so do the differences that matter."""
    low = min((one.low for _, points in curves for _, one in points if one.low > 0), default=1.0)
    high = max((one.high for _, points in curves for _, one in points), default=10.0)
    top = math.log10(high * 1.15)
    bottom = min(math.log10(low * 0.85), top - 0.7)
    first, last = math.log2(places[0]), math.log2(places[-1])

    def x(place: float) -> float:
        return LEFT + 12 + (math.log2(place) - first) / (last - first) * (WIDTH - LEFT - RIGHT - 30)

    def y(value: float) -> float:
        return TOP + (top - math.log10(max(value, 10**bottom))) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    out = []
    for exponent in range(math.floor(bottom), math.ceil(top)):
        for factor in (1, 2, 5):
            tick = factor * 10.0**exponent
            if bottom <= math.log10(tick) <= top:
                out.append(
                    f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
                )
                out.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    out += [
        f'<text x="{x(place):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(text(place))}</text>'
        for place in places
    ]
    for row, points in sorted(curves, key=lambda curve: not curve[0].floor):
        path = " ".join(f"{x(place):.1f},{y(one.median):.1f}" for place, one in points)
        color, width = paint.color(row), 1.5 if row.floor else 2.2
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{paint.dash(row)}/>')
        for place, one in points:
            tip = f"<title>{escape(row.name)}, {escape(text(place))}: {report.number(one.median)}</title>"
            if not row.floor:
                out.append(
                    f'<line x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{y(one.low):.1f}" y2="{y(one.high):.1f}" stroke="{color}"/>'
                )
            out.append(
                f'<circle cx="{x(place):.1f}" cy="{y(one.median):.1f}" r="{2 if row.floor else 3.5}" fill="{color}">{tip}</circle>'
            )
    return "".join(out)


def _latencies(results: Sequence[Result], paint: _Paint) -> Iterable[str]:
    step, room = 24, WIDTH - 190
    for result in results:
        rows = [(row, report.latencies(row)) for row in result.rows if not row.floor]
        rows = [(row, ms) for row, ms in rows if sum(len(one.samples) for one in row.rounds) >= 20 and not row.reason]
        if not rows:
            continue
        low = math.log10(max(1e-3, min(ms["p1"] for _, ms in rows)))
        high = max(math.log10(max(ms.get("p99", ms["p95"]) for _, ms in rows)), low + 0.3)

        def x(value: float, low: float = low, high: float = high) -> float:
            return 112 + (math.log10(max(value, 10**low)) - low) / (high - low) * room

        out = []
        for index, (row, ms) in enumerate(rows):
            y, color, far = 14 + index * step, paint.color(row), x(ms.get("p99", ms["p95"]))
            tip = ", ".join(f"{name} {report.number(value)} ms" for name, value in ms.items())
            out.append(
                f'<g><title>{escape(tip)}</title><text x="104" y="{y + 4}" text-anchor="end">{escape(row.name)}</text>'
                f'<line x1="{x(ms["p1"]):.1f}" x2="{far:.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>'
                f'<line x1="{x(ms["p25"]):.1f}" x2="{x(ms["p75"]):.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="10" '
                f'stroke-opacity=".5"/><circle cx="{x(ms["p50"]):.1f}" cy="{y}" r="4" fill="{color}"/>'
                f'<text class="value" x="{far + 7:.1f}" y="{y + 4}">{report.number(ms["p50"])} · {report.number(ms.get("p99"))}</text></g>'
            )
        yield _figure(result.scenario.name, result.scenario.place(result.point), "".join(out), 8 + len(rows) * step)


def _table(result: Result) -> str:
    header, *lines = report.details(result)
    out = ["<tr>", *(f"<th>{escape(cell)}</th>" for cell in header), "</tr>"]
    for row, line in zip(result.rows, lines, strict=True):
        if row.reason:
            out.append(
                f'<tr class="bad"><td>{escape(line[0])}</td><td class="fail" colspan="{len(line) - 1}">failed: {escape(row.reason)}</td></tr>'
            )
        else:
            out += ["<tr>", *(f"<td>{escape(cell)}</td>" for cell in line), "</tr>"]
    return f'<div class="scroll"><table>{"".join(out)}</table></div>'
