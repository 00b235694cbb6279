"""What all commands that talk to a registry share: the flags that say where it is and who calls, and the connection."""

from __future__ import annotations

import contextlib
import functools
import getpass
import logging
import os
import signal
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
from click.shell_completion import CompletionItem

from modelreg.cli.arguments import model_name
from modelreg.cli.outcome import FileTrouble, Outcome
from modelreg.cli.output import Output, as_format, format_option, time_text

if TYPE_CHECKING:
    from modelreg.client.blocking import ModelRegistry
    from modelreg.client.infos import ModelInfo, ModelIterationInfo

DEFAULT_ENDPOINT = "grpc://127.0.0.1:9002"

# Short enough for a person who mistyped the port, long enough for a registry that is started again. In seconds.
UNKNOWN_PATIENCE = 3.0
KNOWN_PATIENCE = 30.0

# How long the completion of a model's name may take, in seconds.
COMPLETION_SECONDS = 1.0

# What text shows of a version; JSON has all of it.
VERSION_COLUMNS = ("version", "created", "size", "stored", "sha256", "properties")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

CONNECTION: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--endpoint",
        metavar="URL",
        envvar="COGMENT_MODEL_REGISTRY_ENDPOINT",
        default=DEFAULT_ENDPOINT,
        show_default=True,
        show_envvar=True,
        help="URL of the registry. cogment://discover asks the Directory of COGMENT_DIRECTORY_ENDPOINT.",
    ),
    click.option(
        "--token-file",
        "--token_file",
        metavar="FILE",
        envvar="COGMENT_MODEL_REGISTRY_TOKEN_FILE",
        type=_FILE,
        show_envvar=True,
        help="File with the token for the registry. COGMENT_MODEL_REGISTRY_TOKEN holds the token itself.",
    ),
    click.option(
        "--tls",
        is_flag=True,
        default=None,
        envvar="COGMENT_MODEL_REGISTRY_TLS",
        show_envvar=True,
        help="Use TLS. Without --root-certificates, trust the system's CAs.  [default: off]",
    ),
    click.option(
        "--root-certificates",
        "--root_certificates",
        metavar="FILE",
        envvar="COGMENT_MODEL_REGISTRY_ROOT_CERTIFICATES",
        type=_FILE,
        show_envvar=True,
        help="PEM file of CA certificates to trust; implies --tls.",
    ),
    click.option(
        "--certificate-chain",
        "--certificate_chain",
        metavar="FILE",
        envvar="COGMENT_MODEL_REGISTRY_CERTIFICATE_CHAIN",
        type=_FILE,
        show_envvar=True,
        help="PEM file of the certificate to show to the registry; needs --private-key.",
    ),
    click.option(
        "--private-key",
        "--private_key",
        metavar="FILE",
        envvar="COGMENT_MODEL_REGISTRY_PRIVATE_KEY",
        type=_FILE,
        show_envvar=True,
        help="PEM file of that certificate's key, not encrypted.",
    ),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        help="Time limit of each call; a watch ends then.  [default: never]",
    ),
    click.option(
        "--patience",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        help=f"How long to try again when no registry answers.  [default: {UNKNOWN_PATIENCE:g}, "
        f"or {KNOWN_PATIENCE:g} once it has answered]",
    ),
)


@attrs.frozen
class Session:
    """What a command works with.

    Attributes:
        registry: connected when it's first called.
        output: takes what there is to say.
        outcome: of the command; its exit code.
        timeout: of the command, in seconds; None for none. The registry's calls have it already.
    """

    registry: ModelRegistry
    output: Output
    outcome: Outcome
    timeout: float | None


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags of a connection and ``--format``; it's called with a `Session` and its own parameters.

    What stops it is raised as something that `modelreg.cli.outcome` explains.
    """

    @functools.wraps(command)
    @click.pass_context
    def connected(
        context: click.Context,
        /,
        endpoint: str,
        token_file: Path | None,
        tls: bool | None,
        root_certificates: Path | None,
        certificate_chain: Path | None,
        private_key: Path | None,
        timeout: float | None,
        patience: float | None,
        output: str,
        **parameters: object,
    ) -> None:
        sink = Output(as_format(output))
        with _local_faults(), _ended_by_signals(), contextlib.ExitStack() as stack:
            registry = stack.enter_context(
                _open(
                    endpoint,
                    _token(token_file),
                    [root_certificates, certificate_chain, private_key],
                    tls=bool(tls),
                    timeout=timeout,
                    patience=patience,
                )
            )
            stack.enter_context(_told_by_client(sink))
            command(Session(registry, sink, context.obj.outcome, timeout), **parameters)

    decorated: Callable[..., None] = format_option(connected)
    for option in reversed(CONNECTION):
        decorated = option(decorated)
    return decorated


@contextlib.contextmanager
def _open(
    url: str,
    token: str | None,
    pem_files: Sequence[Path | None],
    *,
    tls: bool,
    timeout: float | None,
    patience: float | None,
) -> Iterator[ModelRegistry]:
    from modelreg.client import blocking  # what --help doesn't need

    root_certificates, certificate_chain, private_key = (
        None if path is None else path.read_text(encoding="ascii", errors="replace") for path in pem_files
    )
    endpoint = blocking.Endpoint(
        url,
        token=token,
        root_certificates=root_certificates,
        certificate_chain=certificate_chain,
        private_key=private_key,
        tls=tls,
    )
    with contextlib.ExitStack() as stack:
        try:
            context = stack.enter_context(blocking.Context(_user()))
            registry = context.get_model_registry_v2(
                endpoint,
                timeout=timeout,
                patience=blocking.Patience(UNKNOWN_PATIENCE, KNOWN_PATIENCE) if patience is None else patience,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        yield registry


def _user() -> str:
    """Return the login name of the person who calls, or the number where it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("COGMENT_MODEL_REGISTRY_TOKEN") or None
    words = path.read_text(encoding="utf-8-sig", errors="replace").split()
    if not words:
        raise click.UsageError(f"there is no token in {click.format_filename(path)}")
    if len(words) > 1:  # the server's file of tokens, perhaps
        raise click.UsageError(f"{click.format_filename(path)} should hold a token, and nothing else")
    return words[0]


@contextlib.contextmanager
def _local_faults() -> Iterator[None]:
    """What goes wrong with files of this machine, and with values that only the client can judge."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FileTrouble(error) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """What would end the process at once is an interrupt, so that no half a file is left. Only where nobody has decided otherwise."""
    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _told_by_client(output: Output) -> Iterator[None]:
    """Pass on what the client logs, like that it has lost the connection, and tries again."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            output.note(f"modelreg: {record.getMessage()}")

    handler = Notes()
    logger = logging.getLogger("modelreg.client")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def complete_model(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The models whose names begin so, as the registry has them; none where it doesn't answer at once."""
    given = context.params
    pem_files = [given.get(name) for name in ("root_certificates", "certificate_chain", "private_key")]
    try:
        token = _token(given.get("token_file"))
        url = given.get("endpoint") or DEFAULT_ENDPOINT
        tls = bool(given.get("tls"))
        with _open(url, token, pem_files, tls=tls, timeout=COMPLETION_SECONDS, patience=0) as registry:
            names = [info.name for info in registry.list_models()]
    except Exception:  # noqa: BLE001 (a shell that completes has no place for it)
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete) and name.isprintable()]


model_argument = click.argument("model", type=model_name, shell_complete=complete_model)


def model_document(info: ModelInfo) -> dict[str, object]:
    """A model, for `Output`."""
    return {"model": info.name, "properties": dict(sorted(info.properties.items()))}


def version_document(info: ModelIterationInfo) -> dict[str, object]:
    """A version, for `Output`. The hash is in hexadecimal, as sha256sum prints it."""
    return {
        "model": info.model_name,
        "version": info.iteration,
        "created": time_text(info.timestamp),
        "timestamp": info.timestamp,
        "size": info.size,
        "stored": info.stored,
        "sha256": b64decode(info.hash).hex(),
        "properties": dict(sorted(info.properties.items())),
    }
