"""``modelreg verify``: looks at all of an archive directory, and says what is damaged."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import attrs
import click

from modelreg.cli.outcome import INCOMPLETE, Invocation
from modelreg.cli.output import Format, format_option
from modelreg.settings import Settings

if TYPE_CHECKING:
    from modelreg.storage.verify import Damage, Report


@click.command("verify")
@click.option("--archive_dir", "--archive-dir", help="The directory to look at, as for serve.")
@click.option(
    "--repair",
    is_flag=True,
    help="Move what is damaged to the archive's quarantine directory; no server may be running on it.",
)
@format_option
@click.pass_obj
def verify_command(invocation: Invocation, archive_dir: str | None, repair: bool, output: Format) -> None:
    """Hash everything that is stored, and say what is damaged.

    Beside a running server it only reads. Ends with 0 where all is well, with 1 where something is damaged, also if it has been repaired. A repair deletes
    nothing: what is bad is kept in quarantine, and versions whose data is lost stay listed until the same data is stored again.
    """
    from modelreg.storage import layout, verify  # what --help doesn't need

    settings = Settings.read({} if archive_dir is None else {"archive_dir": archive_dir}, os.environ)
    report = verify.verify(layout.Layout(settings.archive_dir), repair=repair)
    click.echo(json.dumps(attrs.asdict(report), indent=2) if output == "json" else _table(report))
    if report.damage:
        invocation.outcome.exit_code = INCOMPLETE


def _table(report: Report) -> str:
    lines = []
    if report.read_only:
        lines.append(f"only read, not locked: {report.read_only}")
    lines.append(
        f"{report.models} models, {report.versions} stored versions, {report.blobs} blobs of {report.bytes} bytes in all"
    )
    if report.leftovers:
        lines.append(f"{report.leftovers} leftovers that nothing refers to: modelreg gc lists them")
    if report.quarantined:
        lines.append(f"{report.quarantined} things in quarantine")
    lines += [f"not modelreg's: {path}" for path in report.unknown]
    rows = [_row(damage) for damage in report.damage]
    if not rows:
        return "\n".join([*lines, "no damage found"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join([*lines, f"{len(rows)} damaged"])


def _row(damage: Damage) -> tuple[str, ...]:
    versions = ", ".join(f"version {number} of {model_id}" for model_id, number in damage.versions)
    return damage.kind, damage.path, damage.reason, versions, "moved to quarantine" if damage.repaired else ""
