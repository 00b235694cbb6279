"""``modelreg watch``: tells of new versions, and runs a command with each."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

import click

from modelreg.cli.outcome import INCOMPLETE
from modelreg.cli.remote import VERSION_COLUMNS, Session, connecting, model_argument, version_document

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a command that is run with a version finds in its environment, and where it's from.
VARIABLES = {
    "MODELREG_MODEL": "model",
    "MODELREG_VERSION": "version",
    "MODELREG_SIZE": "size",
    "MODELREG_STORED": "stored",
    "MODELREG_SHA256": "sha256",
}


@click.command("watch")
@model_argument
@click.option(
    "--after",
    metavar="NUMBER",
    type=click.IntRange(min=0),
    help="Begin with the versions newer than this one, in place of the latest.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0,
    help="How long to wait for MODEL to be there.  [default: not at all]",
)
@click.option("--count", metavar="NUMBER", type=click.IntRange(min=1), help="End after so many versions.")
@click.option(
    "--exec", "command", metavar="COMMAND", help="Run this in a shell with each version, one after the other."
)
@connecting
def watch_command(
    session: Session, model: str, after: int | None, wait: float, count: int | None, command: str | None
) -> None:
    """Tell the latest version of MODEL, then each new one as soon as it's there.

    It goes on when the registry is started again, and leaves out no version that is available. COMMAND finds the version in MODELREG_MODEL,
    MODELREG_VERSION, MODELREG_SIZE, MODELREG_STORED and MODELREG_SHA256, and as JSON on its standard input. Where it fails, the watch goes on, and
    ends with 1. After --timeout, if that comes first, the watch ends with 26, once the command that runs then has ended.
    """
    if command is None:
        session.output.needed()
    began = time.monotonic()
    left = session.timeout
    if wait:
        session.registry.wait_for_model(model, wait if left is None else min(wait, left))
        if left is not None:
            left = max(0.0, left - (time.monotonic() - began))
    with session.registry.iteration_updates(model, after=after, timeout=left) as updates:
        for info in itertools.islice(updates, count):
            document = version_document(info)
            session.output.line(document, VERSION_COLUMNS)
            if command is not None and (code := _run(command, document)) != 0:
                session.output.note(f"modelreg: the command for version {info.iteration} ended with {code}")
                session.outcome.exit_code = INCOMPLETE


def _run(command: str, document: Mapping[str, object]) -> int:
    variables = {
        variable: json.dumps(value) if isinstance(value := document[name], bool) else str(value)
        for variable, name in VARIABLES.items()
    }
    ended = subprocess.run(  # noqa: S602 (a shell's command is what it's given)
        command,
        shell=True,
        input=json.dumps(document, ensure_ascii=False).encode(),
        env={**os.environ, **variables},
        check=False,
    )
    return ended.returncode
