"""``modelreg push`` and ``pull``: versions from and to files and pipes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from modelreg.cli.arguments import LATEST, Versioned, properties, property_pair, version_number
from modelreg.cli.outcome import FileTrouble, spooling, writing_output
from modelreg.cli.progress import progress_bar
from modelreg.cli.remote import VERSION_COLUMNS, Session, connecting, model_argument, version_document

# "-" stands for standard input or output, as everywhere.
PIPE = Path("-")

_COPY_BYTES = 1024 * 1024


@click.command("push")
@model_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path), default="-")
@click.option("--transient", is_flag=True, help="Only in the registry's memory, for as long as there is room.")
@click.option(
    "--property",
    "-p",
    "given",
    metavar="NAME=VALUE",
    multiple=True,
    type=property_pair,
    callback=properties,
    help="A property of the version; may be given several times.",
)
@connecting
def push_command(session: Session, model: str, file: Path, transient: bool, given: dict[str, str]) -> None:
    """Publish FILE as the next version of MODEL, and store it.

    Without FILE, or with -, it's what comes on standard input. A model that isn't there is created.
    """
    registry = session.registry
    send = registry.publish_model if transient else registry.store_model
    with progress_bar(f"push {model}") as bar, _opened(file) as data:
        info = send(model, data, given, progress=bar, hashing=None if bar is None else bar.step(f"hash {model}"))
    session.output.line(version_document(info), VERSION_COLUMNS)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[os.PathLike[str] | IO[bytes]]:
    """What to send. A pipe is written to a file first: its size has to be known before it's sent."""
    if path != PIPE and path.is_file():
        yield path
        return
    if path == PIPE and sys.stdin.isatty():
        raise click.UsageError("there is nothing to push: name a file, or send data to standard input")
    with contextlib.ExitStack() as stack:
        source: IO[bytes] = sys.stdin.buffer if path == PIPE else stack.enter_context(open(path, "rb"))
        if not (source.seekable() and _has_a_size(source)):
            with spooling():
                spooled = stack.enter_context(tempfile.TemporaryFile(prefix="modelreg-"))
                shutil.copyfileobj(source, spooled, _COPY_BYTES)
                spooled.seek(0)
            source = spooled
        start = source.tell()
        if source.seek(0, os.SEEK_END) == start and path == PIPE:  # whatever should have written it has failed
            raise click.UsageError("nothing came on standard input: an empty version is pushed from an empty file")
        source.seek(start)
        yield source


def _has_a_size(file: IO[bytes]) -> bool:
    """Whether a file that can seek tells how large it is: those of /proc don't, or say that they're empty."""
    position = file.tell()
    try:
        return file.seek(0, os.SEEK_END) > 0
    except OSError:
        return False
    finally:
        file.seek(position)


@click.command("pull", cls=Versioned)
@model_argument
@click.argument("version", type=version_number, default="latest")
@click.option(
    "--output",
    "-o",
    "file",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default="-",
    help="Where to write it; standard output, unless told otherwise.",
)
@click.option("--force", is_flag=True, help="Replace FILE where it's there already.")
@connecting
def pull_command(session: Session, model: str, version: int, file: Path, force: bool) -> None:
    """Get the data of MODEL's latest version, or of another VERSION.

    VERSION is 'latest', a number, or counted from the newest: -1 is the newest, -2 the one before. A file appears whole and verified, or not at
    all; nor does anything reach standard output that isn't verified. What version it is comes on standard output, where the data doesn't.
    """
    if file == PIPE and sys.stdout.isatty():
        raise click.UsageError("a model's data would garble the terminal: give --output FILE, or redirect it")
    if file == PIPE:
        session.output.needed()
        with _spooled(session, model, version) as (data, _), writing_output():
            shutil.copyfileobj(data, sys.stdout.buffer, _COPY_BYTES)
            sys.stdout.buffer.flush()
        return
    if file.exists() and not file.is_file():  # a device or a named pipe: written to, never replaced
        with _spooled(session, model, version) as (data, info):
            _write(data, file)
    else:
        try:
            info = _download(session, model, version, file, overwrite=force)
        except FileExistsError as error:
            raise FileTrouble(error, "--force replaces it") from error
    session.output.line(info, VERSION_COLUMNS)


@contextlib.contextmanager
def _spooled(session: Session, model: str, version: int) -> Iterator[tuple[IO[bytes], dict[str, object]]]:
    """A version's data in a temporary file, whole and verified, and what is known of it."""
    with contextlib.ExitStack() as stack:
        with spooling():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelreg-"))
            path = Path(folder, "data")
            info = _download(session, model, version, path, overwrite=True)
            data = stack.enter_context(path.open("rb"))
        yield data, info


def _write(data: IO[bytes], device: Path) -> None:
    """Write all of a file to something that takes what it's given. Errors name the device."""
    try:
        with device.open("wb") as target:
            shutil.copyfileobj(data, target, _COPY_BYTES)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(device)) from error


def _download(session: Session, model: str, version: int, path: Path, *, overwrite: bool) -> dict[str, object]:
    from modelreg.client.errors import NotFound  # what --help doesn't need

    with progress_bar(f"pull {model}") as bar:
        info = session.registry.download_model(model, path, version, overwrite=overwrite, progress=bar)
    if info is None:
        raise NotFound(f"model {model!r} has no version" + (f" {version}" if version != LATEST else ""))
    return version_document(info)
