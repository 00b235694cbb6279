"""Reads an archive directory of the Cogment Model Registry, which is laid out like this::

    <archive_dir>/<model id>/<model id>.yaml                  model_id, user_data
    <archive_dir>/<model id>/<model id>-v000001.yaml          model_id, version_number, creation_timestamp, data_hash,
                                                              data_size, user_data
    <archive_dir>/<model id>/<model id>-v000001.data

It is never written to. Timestamps are RFC 3339 with up to nine digits of a second, hashes SHA-256 in base64.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime, timezone
from pathlib import Path

import attrs
import trio
import yaml

from modelreg.storage.digests import from_base64

_RECORD_NAME = re.compile(r"(.+)-v(\d{6,})\.yaml")
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


READ_BYTES = 1 << 20


class BadEntry(Exception):
    """A record, or the data that it's about, can't be read; the text says what's wrong with it."""


class UnreadableEntry(BadEntry):
    """Its file could not be read, which says nothing about what is in it."""


@attrs.frozen(kw_only=True)
class CogmentVersion:
    """What a version's record says."""

    number: int
    # Nanoseconds since the Unix epoch.
    timestamp: int
    digest: bytes
    # Bytes.
    size: int
    user_data: Mapping[str, str]
    path: Path

    async def data(self) -> AsyncGenerator[bytes, None]:
        """Its data, in pieces. Raises BadEntry where it can't be read, or isn't as long as the record says."""
        size = 0
        try:
            async with await trio.open_file(self.path, "rb") as file:
                while size <= self.size and (piece := await file.read(READ_BYTES)):
                    size += len(piece)
                    yield piece
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise BadEntry("its data is missing") from error
            msg = f"its data can't be read: {error.strerror}"
            raise UnreadableEntry(msg) from error
        if size != self.size:
            msg = f"its record says {self.size} bytes of data, there are {'more' if size > self.size else size}"
            raise BadEntry(msg)


@attrs.frozen
class VersionFile:
    """A version's record, not read yet."""

    path: Path

    @property
    def number(self) -> int | None:
        """The version's number, as the name has it."""
        match = _RECORD_NAME.fullmatch(self.path.name)
        return int(match[2]) if match else None

    def read(self) -> CogmentVersion:
        """What it says. Raises BadEntry. This blocks."""
        document = _read(self.path)
        number = _number(document, "version_number")
        if self.number != number:
            msg = f"it is named {self.path.name}, but is the record of version {number}"
            raise BadEntry(msg)
        return CogmentVersion(
            number=number,
            timestamp=_timestamp(_text(document, "creation_timestamp")),
            digest=_digest(_text(document, "data_hash")),
            size=_number(document, "data_size"),
            user_data=_texts(document, "user_data"),
            path=self.path.with_suffix(".data"),
        )


@attrs.frozen(kw_only=True)
class CogmentModel:
    """What a model's record says, and its versions' records."""

    model_id: str
    user_data: Mapping[str, str]
    # By number.
    versions: tuple[VersionFile, ...]


@attrs.frozen
class ModelDirectory:
    """A model's directory, not read yet."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def read(self) -> CogmentModel:
        """What its record says. Raises BadEntry. This blocks."""
        document = _read(self.path / f"{self.name}.yaml")
        try:
            paths = list(self.path.iterdir())
        except OSError as error:
            msg = f"{self.name} can't be read: {error.strerror}"
            raise UnreadableEntry(msg) from error
        records = [path for path in paths if (match := _RECORD_NAME.fullmatch(path.name)) and match[1] == self.name]
        return CogmentModel(
            model_id=_text(document, "model_id"),
            user_data=_texts(document, "user_data"),
            versions=tuple(map(VersionFile, sorted(records, key=lambda path: (len(path.name), path.name)))),
        )


def model_directories(root: Path) -> list[ModelDirectory]:
    """The directories of models, by name, and those that can't be looked into. Raises OSError. This blocks."""
    return [
        ModelDirectory(path) for path in sorted(root.iterdir()) if _has_record(path, unknown=path.name != "lost+found")
    ]


def is_archive(root: Path) -> bool:
    """Whether any directory in it is a model's. Raises OSError. This blocks."""
    return any(_is_model(path) for path in root.iterdir() if _has_record(path, unknown=False))


def _has_record(path: Path, *, unknown: bool) -> bool:
    """Whether a directory has a record of its name; *unknown* where that can't be told."""
    try:
        return (path / f"{path.name}.yaml").is_file()
    except PermissionError:
        return unknown


def _is_model(path: Path) -> bool:
    try:
        return ModelDirectory(path).read().model_id == path.name
    except UnreadableEntry:
        return True
    except BadEntry:  # other programs have a config/config.yaml
        return False


def _read(path: Path) -> Mapping[str, object]:
    try:
        # BaseLoader makes nothing but text of scalars: user data like "007" stays what it was.
        document = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # noqa: S506
    except FileNotFoundError as error:
        msg = f"{path.name} is missing"
        raise BadEntry(msg) from error
    except OSError as error:
        msg = f"{path.name} can't be read: {error.strerror}"
        raise UnreadableEntry(msg) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        msg = f"{path.name} can't be read: {' '.join(str(error).split())}"
        raise BadEntry(msg) from error
    if not isinstance(document, dict):
        msg = f"{path.name} isn't a record"
        raise BadEntry(msg)
    return document


def _text(document: Mapping[str, object], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str):
        msg = f"{field} is missing"
        raise BadEntry(msg)
    return value


def _texts(document: Mapping[str, object], field: str) -> dict[str, str]:
    value = document.get(field, {})
    if not isinstance(value, dict) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        msg = f"{field} isn't a map of texts"
        raise BadEntry(msg)
    return value


def _number(document: Mapping[str, object], field: str) -> int:
    text = _text(document, field)
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII):
        msg = f"{field} is {text!r}, not a number"
        raise BadEntry(msg)
    return int(text)


def _timestamp(text: str) -> int:
    match = _TIMESTAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        seconds = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    except ValueError:
        msg = f"creation_timestamp is {text!r}, not a time"
        raise BadEntry(msg) from None
    since_epoch = seconds - datetime(1970, 1, 1, tzinfo=timezone.utc)
    nanoseconds = (since_epoch.days * 86400 + since_epoch.seconds) * 10**9 + int((match[2] or "0").ljust(9, "0"))
    if not 0 <= nanoseconds < 2**64:
        msg = f"creation_timestamp is {text!r}: nanoseconds since 1970 have to fit in 64 bits"
        raise BadEntry(msg)
    return nanoseconds


def _digest(text: str) -> bytes:
    try:
        return from_base64(text)
    except ValueError:
        msg = f"data_hash is {text!r}, not a SHA-256 in base64"
        raise BadEntry(msg) from None
