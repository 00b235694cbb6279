"""How a command ends: whatever stops it becomes one line on standard error and an exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator

import attrs
import click

from modelreg.errors import StartupError
from modelreg.settings import InvalidOption, Settings

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

Run = Callable[[Settings], Awaitable[None]]

OK = 0
USAGE = 2  # as click and shells have it
SOFTWARE = 70  # EX_SOFTWARE of sysexits.h: a bug
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@attrs.define
class Outcome:
    exit_code: int = OK
    with_traceback: bool = False
    """Whether an exception that nobody expected is also shown in full."""


@attrs.frozen
class Invocation:
    """What a subcommand gets from ``main``: what ``serve`` runs, and where to leave how it went."""

    run: Run
    outcome: Outcome


@contextlib.contextmanager
def reported() -> Iterator[Outcome]:
    """Say in one line what stopped the block, if anything did, and leave the exit code in the outcome."""
    outcome = Outcome()
    try:
        yield outcome
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001 (the program ends here)
        line, outcome.exit_code = _explain(error)
        if outcome.exit_code == SOFTWARE:
            if outcome.with_traceback:
                _say("".join(traceback.format_exception(error)).rstrip())
            else:
                line += " (--log_level=debug shows where)"
        _say(f"modelreg: {line}")


def _explain(error: BaseException) -> tuple[str, int]:
    """The line and the exit code for *error*. A group, which nurseries raise, is explained by its weightiest member."""
    explained = [_explain_one(leaf) for leaf in _leaves(error)]
    # A bug is never hidden by something expected that came of it; an interrupt explains nothing that something else does.
    return max(explained, key=lambda line_and_code: (line_and_code[1] == SOFTWARE, line_and_code[1] != INTERRUPTED))


def _explain_one(error: BaseException) -> tuple[str, int]:
    if isinstance(error, StartupError):
        return str(error), error.exit_code
    if isinstance(error, InvalidOption):
        return str(error), USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted", INTERRUPTED
    what = " ".join(str(error).split())
    return f"internal error: {type(error).__name__}" + (f": {what}" if what else ""), SOFTWARE


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _say(text: str) -> None:
    try:
        click.echo(text, err=True)
    except (OSError, ValueError):
        pass  # nobody is listening; the exit code still tells
