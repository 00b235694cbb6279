"""``modelreg import-archive``: takes over the archive of a Cogment Model Registry."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from modelreg.cli.archive import archive_option
from modelreg.cli.outcome import INCOMPLETE, Invocation
from modelreg.cli.output import Format, Output, format_option

if TYPE_CHECKING:
    from modelreg.registry.importing import Entry

_COLUMNS = ("outcome", "model", "version", "reason")


@click.command("import-archive")
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@archive_option("The directory to import into, as for serve.")
@format_option
@click.pass_obj
def import_command(invocation: Invocation, source: Path, archive_dir: Path, output: Format) -> None:
    """Import SOURCE, an archive directory of the Cogment Model Registry.

    Numbers, timestamps, hashes and user data are kept. SOURCE isn't changed; no server may be running on the directory that's imported into.
    What's there already is passed over, so an import can be run again. Ends with 1 where something could not be imported.
    """
    counts = trio.run(_import, source, archive_dir, Output(output))
    if counts["damaged"] or counts["unreadable"] or counts["conflict"]:
        invocation.outcome.exit_code = INCOMPLETE


async def _import(source: Path, archive_dir: Path, output: Output) -> Counter[str]:
    # What --help doesn't need.
    from modelreg.log import silent_logger
    from modelreg.registry.importing import Outcome, import_cogment
    from modelreg.storage.archive import open_archive
    from modelreg.storage.cogment import model_directories

    counts: Counter[str] = Counter()
    async with open_archive(archive_dir, silent_logger()) as archive:
        async with aclosing(import_cogment(model_directories(source), archive)) as entries:
            async for entry in entries:
                counts[entry.outcome.value] += 1
                output.line(_document(entry), _COLUMNS)
    output.note(", ".join(f"{counts[outcome.value]} {outcome.value}" for outcome in Outcome))
    if not counts:
        output.note(f"no model is in {click.format_filename(source)}: it should be what --archive_dir was for Cogment")
    return counts


def _document(entry: Entry) -> dict[str, object]:
    return {
        "model": entry.model_id,
        "version": entry.number,
        "outcome": entry.outcome.value,
        "reason": entry.reason,
    }
