"""How a command ends: whatever stops it becomes one line on standard error and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping

import attrs
import click

from modelreg.errors import StartupError
from modelreg.settings import InvalidOption, Settings

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

Run = Callable[[Settings], Awaitable[None]]

OK = 0
INCOMPLETE = 1  # it was done, and something is wrong
USAGE = 2  # as click and shells have it
SOFTWARE = 70  # EX_SOFTWARE of sysexits.h: a bug
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
DEAF = 141  # 128 + SIGPIPE

NO_ROOM_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class FileTrouble(Exception):
    """A file on this machine can't be read or written, or is there already."""

    exit_code = 29

    def __init__(self, error: OSError, advice: str = "") -> None:
        said = [] if error.filename is None else [click.format_filename(error.filename)]
        said.append(error.strerror or str(error))
        if not advice and error.errno in NO_ROOM_ERRNOS:
            advice = "make room there"
        super().__init__(": ".join([*said, advice] if advice else said))


@contextlib.contextmanager
def spooling() -> Iterator[None]:
    """Say of what goes wrong with a temporary file that it's one, and how to have it elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM_ERRNOS:
            raise
        named = OSError(error.errno, error.strerror, f"temporary file in {tempfile.gettempdir()}")
        raise FileTrouble(named, "make room there, or set TMPDIR to another directory") from error


class OutputGone(Exception):
    """What reads standard output has closed it. Raised in place of BrokenPipeError, of which click makes exit code 1."""


@contextlib.contextmanager
def writing_output() -> Iterator[None]:
    """Raise what goes wrong with standard output as what it is."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputGone from error
    except OSError as error:
        raise FileTrouble(OSError(error.errno, error.strerror, "standard output")) from error


@attrs.frozen
class Ending:
    """How a command ends for which the client raised one of its errors.

    Attributes:
        advice: what to do, by words that the error's message holds: the first that it holds counts, and "" is in each.
    """

    exit_code: int
    meaning: str
    advice: Mapping[str, str] = {}

    def advice_for(self, message: str) -> str:
        return next((advice for words, advice in self.advice.items() if words in message), "")


_START_IT = "start it with 'modelreg serve', or say with --endpoint where it is"

_IS_IT_A_REGISTRY = "see whether --endpoint is that of a model registry"
_IS_IT_THE_DIRECTORY = (
    "see COGMENT_DIRECTORY_ENDPOINT and COGMENT_DIRECTORY_AUTHENTICATION_TOKEN, and whether the registry has registered"
)
_IS_IT_TLS = "see whether it still runs, and give --tls or --root-certificates where it speaks TLS"

# By the names of the client's errors (those that keep a server from starting have the numbers below), as importing them takes longer than most commands run.
CLIENT_ENDINGS = {
    "NotFound": Ending(
        20,
        "The model or version isn't there.",
        {"": "'modelreg models' and 'modelreg versions MODEL' list what there is"},
    ),
    "Refused": Ending(
        21,
        "The registry refuses the request: it can't be right.",
        {"the directory at": _IS_IT_THE_DIRECTORY, "there is no method": _IS_IT_A_REGISTRY},
    ),
    "Denied": Ending(
        22,
        "A token or a certificate is missing or may not do this; or the registry's own isn't trusted.",
        {
            "the directory at": _IS_IT_THE_DIRECTORY,
            "isn't trusted": "give the certificate of its CA with --root-certificates",
            "certificate": "give yours with --certificate-chain and --private-key",
            "": "give a token that may do this with --token-file",
        },
    ),
    # The registry's messages say what to do: only it knows what is full, or which of its limits it is.
    "Exhausted": Ending(23, "The registry has no room."),
    "Unavailable": Ending(
        24,
        "No registry answers at the endpoint.",
        {
            "the directory at": _IS_IT_THE_DIRECTORY,
            "seems to speak none": "leave out --tls and --root-certificates, or say with --endpoint where it is",
            "no TLS": "its log says more, with --log_level=debug",
            "doesn't keep to HTTP/2": _IS_IT_A_REGISTRY,
            "no connection": _START_IT,
            "closed the connection": _IS_IT_TLS,
            "was lost": _IS_IT_TLS,
            "": "try again later",
        },
    ),
    "OutcomeUnknown": Ending(
        25,
        "The connection was lost. The registry may have done it, or not.",
        {"": "see with 'modelreg versions' whether it was"},
    ),
    "DeadlineExceeded": Ending(26, "It took longer than --timeout allows.", {"": "try again with a longer --timeout"}),
    "Damaged": Ending(
        27, "The data that arrived has another hash than the version.", {"": "push it again from the original"}
    ),
    "Failed": Ending(
        28,
        "The registry has a fault.",
        {"instead of a gRPC answer": "", "the answer": _IS_IT_A_REGISTRY, "": "its log says more"},
    ),
}


@attrs.define
class Outcome:
    exit_code: int = OK
    serving: bool = False
    """Whether it's a server's: what it does with files is explained by the server itself."""
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
    except OutputGone:
        outcome.exit_code = DEAF  # nothing is said: who closed it knows
        _let_go_of_stdout()
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001 (the program ends here)
        if isinstance(error, OSError) and not outcome.serving:
            error = FileTrouble(error)
        line, outcome.exit_code = _explain(error)
        if outcome.exit_code == SOFTWARE:
            if outcome.with_traceback:
                _say("".join(traceback.format_exception(error)).rstrip())
            else:
                line += " (--log_level=debug shows where)"
        _say(f"modelreg: {line}")
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            _let_go_of_stdout()


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
        line = error.format_message()
        if isinstance(error, click.UsageError) and error.ctx is not None and not line.endswith("?"):
            line = f"{line.rstrip('.')}: see '{error.ctx.command_path} --help'"
        return line, error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted", INTERRUPTED
    if isinstance(error, FileTrouble):
        return str(error), error.exit_code
    ending = CLIENT_ENDINGS.get(type(error).__name__) if type(error).__module__ == "modelreg.client.errors" else None
    if ending is not None:
        line = " ".join(str(error).split())
        advice = ending.advice_for(line)
        return f"{line}: {advice}" if advice else line, ending.exit_code
    what = " ".join(str(error).split())
    return f"internal error: {type(error).__name__}" + (f": {what}" if what else ""), SOFTWARE


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _let_go_of_stdout() -> None:
    """What is left in its buffer would be written, and fail again, when the interpreter ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # none of the process's own, or closed


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 (click.echo may choose another encoding)
    except (OSError, ValueError):
        pass  # nobody is listening; the exit code still tells
