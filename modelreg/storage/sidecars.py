"""The records on disk: small JSON files, one a model and one a stored version, to and from attrs classes by cattrs.

Their fields are the archive's format (``FORMAT`` version 1): a field may be added with a default, none may change its
meaning. Fields that aren't known are ignored, so that a note made by hand harms nothing.
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.errors import BaseValidationError

from modelreg.errors import ResourceExhausted
from modelreg.storage import durable
from modelreg.storage.layout import Layout

RECORD_FORMAT = 1

# A record is made from a message, usually of at most 4 MiB, of which JSON's escapes can make six times as much.
LARGEST_RECORD = 32 << 20


# Of a message about one field, in characters: it may hold a number of thousands of digits.
LONGEST_REASON = 200

# What the wire has 64 bits for.
_uint64 = attrs.validators.and_(attrs.validators.ge(0), attrs.validators.lt(2**64))


class BadRecord(Exception):
    """A record can't be read; the text says what's wrong, and where in it."""


def _sha256_hex(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if len(value) != 64 or value.strip("0123456789abcdef"):
        msg = f"{attribute.name} must be 64 hexadecimal digits"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class ModelRecord:
    """``model.json``: a model, and the highest number that may have been given to a version of it."""

    model_id: str
    user_data: Mapping[str, str]
    # Numbers above it were never given; see registry/numbers.py.
    number_ceiling: int = attrs.field(validator=attrs.validators.ge(0))
    format: int = RECORD_FORMAT


@attrs.frozen(kw_only=True)
class VersionRecord:
    """``versions/<number>.json``: a stored version."""

    model_id: str
    version_number: int = attrs.field(validator=attrs.validators.ge(1))
    # Nanoseconds since the Unix epoch.
    creation_timestamp: int = attrs.field(validator=_uint64)
    # Of the content, in lower-case hex: the blob's name, and what sha256sum prints.
    sha256: str = attrs.field(validator=_sha256_hex)
    # Bytes.
    size: int = attrs.field(validator=_uint64)
    user_data: Mapping[str, str]
    # What the client called the request that this version came of; a request of this name sent again is the same one.
    request_id: str | None = None
    format: int = RECORD_FORMAT


Record = TypeVar("Record", ModelRecord, VersionRecord)


def _strictly(kind: type) -> Any:
    def structure(value: object, _: type) -> object:
        if type(value) is not kind:
            msg = f"expected {kind.__name__}, found {type(value).__name__}"
            raise TypeError(msg)
        return value

    return structure


def _text_map(value: object, _: object) -> Mapping[str, str]:
    if type(value) is not dict or not all(type(item) is str for item in value.values()):
        msg = "expected an object whose values are strings"
        raise TypeError(msg)
    return value


def _make_converter(*, detailed_validation: bool) -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=detailed_validation)
    for kind in (int, str):
        converter.register_structure_hook(kind, _strictly(kind))
    converter.register_structure_hook_func(lambda kind: kind == Mapping[str, str], _text_map)
    return converter


# Boot reads every record there is: the second, five times as slow, only sees those that the first refused.
_converter = _make_converter(detailed_validation=False)
_explaining_converter = _make_converter(detailed_validation=True)


def dump(record: ModelRecord | VersionRecord) -> bytes:
    """A record as it is written: JSON that a person can read."""
    return _indented(_converter.unstructure(record), "").encode() + b"\n"


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _indented(value: object, margin: str) -> str:
    """Return what ``json.dumps`` makes with ``indent=2``, which leaves 33 objects each time that only a garbage collection frees."""
    if type(value) is int:
        return str(value)
    if not isinstance(value, dict) or not value:
        return _encode(value)
    inner = margin + "  "
    lines = [f"{inner}{_encode(name)}: {_indented(field, inner)}" for name, field in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{margin}}}"


def parse(data: bytes, kind: type[Record]) -> Record:
    """A record from what was read.

    Raises:
        BadRecord: it isn't one of this kind and format.
    """
    try:
        document = json.loads(data.decode())  # of bytes, json takes what is no UTF-8, and other encodings, too
        if b"\\u" in data:
            json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        msg = f"not JSON: {error}"
        raise BadRecord(msg) from error
    if not isinstance(document, dict):
        msg = "not a JSON object"
        raise BadRecord(msg)
    if (found := document.get("format")) != RECORD_FORMAT:
        msg = f"of format {reprlib.repr(found)}, this program reads format {RECORD_FORMAT}"
        raise BadRecord(msg)
    try:
        return _converter.structure(document, kind)
    except (TypeError, ValueError, KeyError):
        raise BadRecord(_explain(document, kind)) from None


def _explain(document: dict[str, object], kind: type[ModelRecord | VersionRecord]) -> str:
    try:
        _explaining_converter.structure(document, kind)
    except BaseValidationError as error:
        return "; ".join(cattrs.transform_error(error, format_exception=_say))
    return "not a valid record"


def _say(error: BaseException, _: type | None) -> str:
    """What the validators say; cattrs' own text leaves out which field they mean."""
    return "required field missing" if isinstance(error, KeyError) else str(error)[:LONGEST_REASON]


def read(path: str | Path, kind: type[Record]) -> Record:
    """Read a record.

    Raises:
        BadRecord: it isn't a regular file that holds one.
        OSError: it could not be read, so nothing is known of it.
    """
    return parse(read_file(path), kind)


def symbolic_link(path: str | Path) -> OSError:
    """The error for a symbolic link: it isn't followed, so nothing is known of what it leads to."""
    return OSError(errno.ELOOP, "it's a symbolic link", str(path))


def read_file(path: str | Path) -> bytes:
    """Read a small file.

    Raises:
        BadRecord: it isn't a regular file, or is too large.
        OSError: it could not be read; or (ELOOP) it's a symbolic link.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise BadRecord("not a regular file") from error  # a socket
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise symbolic_link(path) from error
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            msg = "not a regular file"
            raise BadRecord(msg)
        if status.st_size > LARGEST_RECORD:
            msg = f"{status.st_size} bytes are more than a record can have"
            raise BadRecord(msg)
        return os.read(fd, status.st_size + 1)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


def write_model(layout: Layout, record: ModelRecord) -> None:
    """Write a model's record durably, creating its directory where it isn't there. This blocks.

    Raises:
        ResourceExhausted: it's larger than a record that can be read again.
        OSError, durable.DirectorySyncError: see there.
    """
    if not layout.versions(record.model_id).is_dir():
        durable.make_directory(layout.model(record.model_id))
        durable.make_directory(layout.versions(record.model_id))
    _write(layout, record, layout.model_record(record.model_id), durable.replace)


def write_version(layout: Layout, record: VersionRecord) -> None:
    """Write a version's record durably. This blocks.

    Raises:
        ResourceExhausted: it's larger than a record that can be read again.
        FileExistsError: there is one of this number: a bug.
        OSError, durable.DirectorySyncError: see there.
    """
    _write(layout, record, layout.version_sidecar(record.model_id, record.version_number), durable.publish)


def _write(
    layout: Layout, record: ModelRecord | VersionRecord, path: Path, give_name: Callable[[Path, Path], None]
) -> None:
    data = dump(record)
    if len(data) > LARGEST_RECORD:
        msg = f"the user data takes {len(data)} bytes in its record, which can have {LARGEST_RECORD}: leave some out"
        raise ResourceExhausted(msg)
    temporary = durable.write_sealed(layout.tmp, data, durable.RECORD_MODE)
    try:
        give_name(temporary, path)
    except OSError:
        durable.discard(temporary)
        raise
