"""Where commands put what they have to say: results on standard output, everything else on standard error.

A result is made of documents, dictionaries of plain values. How they look is decided here, and nowhere else:

    --format json                     JSON: a list, an object, or in a stream one object a line
    --format text, on a terminal      for people: aligned, sizes in MiB, local time
    --format text, into a pipe        for other programs: no header, values between tabs, sizes in bytes, UTC

What others wrote into names and properties can't reach a terminal's control sequences, nor pass for a tab or a line.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, TypeVar, cast

import attrs
import click

from modelreg.cli.outcome import FileTrouble, writing_output
from modelreg.cli.start import stdout_is_closed

Format = Literal["text", "json"]

Document = Mapping[str, object]

C = TypeVar("C", bound=Callable[..., Any])

_HASH_SHOWN = 12


def format_option(command: C) -> C:
    """Adds ``--format`` to a command; it's given as ``output``."""
    option = click.option(
        "--format",
        "output",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How to say what the result is.",
    )
    return option(command)


@attrs.frozen
class Output:
    """The sink of one run of a command."""

    format: Format = "text"

    def needed(self) -> None:
        """Raise `FileTrouble` where standard output is closed. For commands that do nothing but answer: others have done their work."""
        if stdout_is_closed():
            raise FileTrouble(OSError(errno.EBADF, "closed, and the answer would go there", "standard output"))

    def table(self, documents: Sequence[Document], columns: Sequence[str]) -> None:
        """Several documents of the same kind. JSON has all of them, *columns* is what text shows."""
        if self.format == "json":
            _put(_json(documents, indent=2))
        elif not _on_terminal():
            for document in documents:
                _put(_tabbed(document, columns))
        elif documents:
            _print_table(documents, columns)
        else:
            self.note("none")

    def record(self, document: Document) -> None:
        """One document, with a line for each of its values."""
        if self.format == "json":
            _put(_json(document, indent=2))
            return
        flat = dict(_flat(document))
        width = max(map(len, flat), default=0)
        for name, value in flat.items():
            if _on_terminal():
                shown = _for_people(name, value)
                if shown:
                    _put(f"{_printable(name):{width}}  {shown}")
            else:
                _put(f"{_printable(name)}\t{_for_programs(value)}")

    def report(self, document: Document, rows: str, columns: Sequence[str]) -> None:
        """One document with a list of others in it, named *rows*: text has its other values first, and then those as a table."""
        found = cast(Sequence[Document], document[rows])
        if self.format == "json":
            self.record(document)
            return
        self.record({name: value for name, value in document.items() if name != rows})
        if found:
            self.table(found, columns)

    def line(self, document: Document, columns: Sequence[str]) -> None:
        """One document of a stream, on one line that is out at once."""
        if self.format == "json":
            _put(_json(document))
        elif _on_terminal():
            shown = [
                f"{name} {document[name]}" if name == "version" else _for_people(name, document[name])
                for name in columns
                if document[name] is not None
            ]
            _put("  ".join(shown).rstrip())
        else:
            _put(_tabbed(document, columns))

    def note(self, text: str) -> None:
        """Something worth knowing that is no result."""
        try:
            print(_printable(text), file=sys.stderr)  # noqa: T201 (click.echo goes round rich, and into the middle of its bar)
        except OSError:
            pass  # no reason to stop, nor to say that the command failed


def _put(text: str) -> None:
    """Write a line of the result, at once."""
    with writing_output():
        print(text, flush=True)  # noqa: T201 (click.echo may choose another encoding)


def _json(value: object, indent: int | None = None) -> str:
    """JSON that is valid in standard output's encoding."""
    readable = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    return json.dumps(value, indent=indent, ensure_ascii=not readable)


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _flat(document: Document, prefix: str = "") -> list[tuple[str, object]]:
    """A document's values with those of documents in it, named with dots."""
    found: list[tuple[str, object]] = []
    for name, value in document.items():
        if isinstance(value, Mapping) and name != "properties":
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def _tabbed(document: Document, columns: Sequence[str]) -> str:
    return "\t".join(_for_programs(document[name]) for name in columns)


def _print_table(documents: Sequence[Document], columns: Sequence[str]) -> None:
    from rich.console import Console  # what JSON and pipes don't need
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        number = isinstance(documents[0][name], int) and not isinstance(documents[0][name], bool)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for document in documents:
        table.add_row(*(Text(_for_people(name, document[name])) for name in columns))
    with writing_output():
        Console().print(table)


def _for_programs(value: object) -> str:
    if isinstance(value, Mapping):
        return _pairs(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_for_programs, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else _printable(str(value))


def _for_people(name: str, value: object) -> str:
    name = name.rpartition(".")[2]
    if name == "stored":
        return "stored" if value else "transient"
    if name in ("size", "bytes") or name.endswith("_bytes"):
        return size_text(int(str(value)))
    if name == "created":
        return _local(str(value))
    if name == "sha256":
        return str(value)[:_HASH_SHOWN]
    return _for_programs(value)


def _pairs(properties: Mapping[object, object]) -> str:
    return " ".join(f"{_printable(str(name))}={_printable(str(value))}" for name, value in properties.items())


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def size_text(size: int) -> str:
    """A size for people: ``95.4 MiB``."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{size} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def time_text(timestamp: int) -> str:
    """A time in nanoseconds since the Unix epoch, as RFC 3339 has it, in UTC."""
    seconds, nanoseconds = divmod(timestamp, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1000:06}Z"
    except (ValueError, OverflowError, OSError):
        return str(timestamp)  # after the year 9999: a client chose it


def _local(text: str) -> str:
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return text
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def as_format(text: str) -> Format:
    """The format of a name that click has checked."""
    return cast(Format, text)
