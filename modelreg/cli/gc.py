"""``modelreg gc``: says what lies in an archive directory that nothing refers to, and deletes it when told to."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from modelreg.cli.archive import archive_option
from modelreg.cli.output import Format, Output, format_option


@click.command("gc")
@archive_option("The directory to look at, as for serve.")
@click.option("--yes", is_flag=True, help="Delete what is listed.")
@format_option
def gc_command(archive_dir: Path, yes: bool, output: Format) -> None:
    """List files that nothing refers to: data of deleted models, and uploads that a crash cut short.

    A start deletes the latter, and data that is a day old. No server may be running on the directory. What is in quarantine stays.
    """
    from modelreg.storage.leftovers import delete, open_leftovers  # what --help doesn't need

    sink = Output(output)
    if not yes:
        sink.needed()
    with open_leftovers(archive_dir) as leftovers:
        if yes:
            delete(leftovers)
    total = sum(leftover.size for leftover in leftovers.found)
    document = {
        "deleted": yes,
        "files": len(leftovers.found),
        "bytes": total,
        "found": [attrs.asdict(leftover) for leftover in leftovers.found],
        "records_in_quarantine": leftovers.records_in_quarantine,
    }
    sink.report(document, "found", ("size", "kind", "path"))
    if leftovers.found and not yes:
        if leftovers.records_in_quarantine:
            sink.note("records in quarantine may refer to data listed here: look at them before it's gone")
        sink.note("--yes deletes what is listed")
