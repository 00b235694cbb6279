"""The ``modelreg`` command. Importing this takes no time, so that the program can prepare itself before it imports the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelreg.cli.start import hold_signals, ignore_signals, prepare_streams

if TYPE_CHECKING:
    from modelreg.cli.outcome import Run

__all__ = ["main"]


def main(args: Sequence[str] | None = None, *, run: Run | None = None) -> int:
    """Run the command with *args* (those of the process by default), and return its exit code.

    *run* is what ``serve`` runs in place of the server.
    """
    if args is None:
        return _program(sys.argv[1:])
    from modelreg.cli.command import run_command

    return run_command(args, run)


def _program(args: Sequence[str]) -> int:
    """Run the command that this process is."""
    prepare_streams()
    hold_signals(args)
    try:
        return main(args)
    except KeyboardInterrupt:  # while importing: later ones are the command's
        sys.stderr.write("modelreg: interrupted\n")
        return 130
    finally:
        ignore_signals(args)
