"""``modelreg verify``: looks at all of an archive directory, and says what is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from modelreg.cli.archive import archive_option
from modelreg.cli.outcome import INCOMPLETE, Invocation
from modelreg.cli.output import Format, Output, format_option

if TYPE_CHECKING:
    from modelreg.storage.verify import Damage, Report


@click.command("verify")
@archive_option("The directory to look at, as for serve.")
@click.option(
    "--repair",
    is_flag=True,
    help="Move what is damaged to the archive's quarantine directory; no server may be running on it.",
)
@format_option
@click.pass_obj
def verify_command(invocation: Invocation, archive_dir: Path, repair: bool, output: Format) -> None:
    """Hash all stored data, and report damage.

    Beside a running server it only reads. Ends with 0 where all is well, with 1 where something is damaged, also if it has been repaired. A repair deletes
    nothing: what is bad is kept in quarantine, and versions whose data is lost stay listed until the same data is stored again.
    """
    from modelreg.storage import layout, verify  # what --help doesn't need

    report = verify.verify(layout.Layout(archive_dir), repair=repair)
    sink = Output(output)
    document = _document(report)
    if output == "text":
        document |= {"read_only": report.read_only or "no", "unknown": report.unknown or 0}
    sink.report(document, "damage", ("kind", "path", "reason", "versions", "repaired"))
    if report.leftovers:
        sink.note("'modelreg gc' lists the leftovers, which nothing refers to")
    if report.damage:
        invocation.outcome.exit_code = INCOMPLETE
        if not repair:
            sink.note("--repair moves what is damaged to quarantine; data that is stored again heals")


def _document(report: Report) -> dict[str, object]:
    damage = [_damage_document(damage) for damage in report.damage]
    return {**attrs.asdict(report), "damaged": len(damage), "damage": damage}


def _damage_document(damage: Damage) -> dict[str, object]:
    versions = [{"model": model, "version": number} for model, number in damage.versions]
    return {**attrs.asdict(damage), "versions": versions}
