"""``modelreg gc``: says what lies in an archive directory that nothing refers to, and deletes it when told to."""

from __future__ import annotations

import os

import attrs
import click

from modelreg.cli.output import Format, Output, format_option
from modelreg.settings import Settings


@click.command("gc")
@click.option("--archive_dir", "--archive-dir", help="The directory to look at, as for serve.")
@click.option("--yes", is_flag=True, help="Delete what is listed.")
@format_option
def gc_command(archive_dir: str | None, yes: bool, output: Format) -> None:
    """List what nothing refers to: data of deleted models, and files of uploads that a crash cut short.

    A start deletes the latter, and data that is a day old. No server may be running on the directory. What is in quarantine stays.
    """
    from modelreg.storage.leftovers import delete, open_leftovers  # what --help doesn't need

    settings = Settings.read({} if archive_dir is None else {"archive_dir": archive_dir}, os.environ)
    with open_leftovers(settings.archive_dir) as leftovers:
        if yes:
            delete(settings.archive_dir, leftovers.found)
    total = sum(leftover.size for leftover in leftovers.found)
    document = {"deleted": yes, "files": len(leftovers.found), "bytes": total, **attrs.asdict(leftovers)}
    sink = Output(output)
    sink.report(document, "found", ("size", "kind", "path"))
    if leftovers.found and not yes:
        if leftovers.records_in_quarantine:
            sink.note("records in quarantine may refer to data listed here: look at them before it's gone")
        sink.note("--yes deletes what is listed")
