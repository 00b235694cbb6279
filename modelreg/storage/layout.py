"""The archive directory as a drawing, beside the only code that builds its paths.

::

    <archive_dir>/
      FORMAT                       {"format": "modelreg", "version": 1}
      LOCK                         says which server runs; locked, as the directory itself is
      blobs/sha256/ab/abcd…        content, named by its SHA-256 in hex; immutable, mode 0440
      models/<encoded id>/
        model.json                 model id, user data, the number ceiling
        versions/0000000001.json   one JSON sidecar a stored version
      tmp/                         files being written, deleted models on their way out; removed at boot
      quarantine/                  records that are wrong, kept for a person, never served

**Encoded ids.** A model id is any text of up to 512 bytes of UTF-8, its directory's name has to be safe on every file
system, those that fold case or normalise Unicode included. Lower-case letters, digits, ``_``, ``-`` and inner dots
stand for themselves; an upper-case letter becomes ``!`` and its lower-case form; every other byte becomes ``%xx``. A
result longer than :data:`LONGEST_PLAIN_NAME` becomes its first 64 characters, ``~`` and the SHA-256 of the id: such a
name is reversed by the record in the directory, which holds the id in full.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from functools import cached_property, lru_cache
from pathlib import Path

import attrs

FORMAT_NAME = "modelreg"
FORMAT_VERSION = 1

# Version numbers have 32 bits on the wire.
HIGHEST_NUMBER = 2**32 - 1

# What a directory may hold without being another program's; mkfs makes lost+found in a new ext4 volume.
OWN_NAMES = frozenset({"FORMAT", "LOCK", "blobs", "models", "tmp", "quarantine", "lost+found"})

# File systems in use allow names of 255 bytes.
LONGEST_PLAIN_NAME = 200

_BLOB_NAME = re.compile("[0-9a-f]{64}")
_SIDECAR_NAME = re.compile(r"([0-9]{10})\.json")
_TEMPORARY_NAME = re.compile("[0-9a-f]{32}")
_QUARANTINE_NAME = re.compile(r".+\.[0-9a-f]{12}", re.DOTALL)
_THROUGH_DESCRIPTOR = re.compile(r"\A/proc/self/fd/\d+")
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
_UPPER = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@lru_cache(1000)
def encode_id(model_id: str) -> str:
    """The name of a model's directory; see "Encoded ids" above."""
    raw = model_id.encode()
    parts = []
    for position, byte in enumerate(raw):
        inner_dot = byte == ord(".") and 0 < position < len(raw) - 1
        if byte in _PLAIN or inner_dot:
            parts.append(chr(byte))
        elif byte in _UPPER:
            parts.append("!" + chr(byte).lower())
        else:
            parts.append(f"%{byte:02x}")
    name = "".join(parts)
    if len(name) > LONGEST_PLAIN_NAME:
        return f"{name[:64]}~{hashlib.sha256(raw).hexdigest()}"
    return name


def decode_id(name: str) -> str | None:
    """The model id behind a directory's name; None for one too long to be reversed, or that isn't an encoded id."""
    try:
        text = re.sub(r"!([a-z])", lambda match: match[1].upper(), name).encode()
        model_id = re.sub(rb"%([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), text).decode()
    except UnicodeError:  # no UTF-8 in the name, or behind it
        return None
    return model_id if encode_id(model_id) == name else None


def sidecar_number(name: str) -> int | None:
    """The version number in a sidecar's file name; None for any other name."""
    match = _SIDECAR_NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_blob_name(name: str) -> bool:
    """Whether it's the name of a blob: a SHA-256 in lower-case hex."""
    return _BLOB_NAME.fullmatch(name) is not None


def is_temporary_name(name: str) -> bool:
    """Whether a file of this name in ``tmp`` may be the registry's."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def is_quarantine_name(name: str) -> bool:
    """Whether :meth:`Layout.quarantine_place` may have given this name."""
    return _QUARANTINE_NAME.fullmatch(name) is not None


def record_in(model: Path) -> Path:
    """The record of the model whose directory this is."""
    return model / "model.json"


def versions_in(model: Path) -> Path:
    """Where the sidecars of the model are whose directory this is."""
    return model / "versions"


@attrs.frozen
class Layout:
    """The paths below one archive directory."""

    # What all paths begin with. It may lead through a descriptor: see storage/lock.py.
    root: Path
    # What people call the directory.
    given: Path = attrs.field(default=attrs.Factory(lambda self: self.root, takes_self=True))

    @property
    def title(self) -> str:
        """The directory, in a message to people."""
        return f"the archive directory {str(self.given)!r}"

    def shown(self, path: str | Path) -> str:
        """A path below the directory, as people know it."""
        return _THROUGH_DESCRIPTOR.sub(lambda _: str(self.given), str(path))

    def explain(self, error: OSError) -> str:
        """What an error is, and which file it is about."""
        reason = error.strerror or str(error)
        return f"{self.shown(os.fsdecode(error.filename))}: {reason}" if error.filename else reason

    @property
    def format_file(self) -> Path:
        return self.root / "FORMAT"

    @property
    def lock_file(self) -> Path:
        return self.root / "LOCK"

    # Joining paths took 30 µs of a small version: those that every one needs are joined once, and names in one go.

    @cached_property
    def blobs(self) -> Path:
        return self.root / "blobs" / "sha256"

    @property
    def blob_directories(self) -> list[Path]:
        """The 256 directories of blobs."""
        return [self.blobs / f"{byte:02x}" for byte in range(256)]

    @cached_property
    def models(self) -> Path:
        return self.root / "models"

    @cached_property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    def quarantine_place(self, name: str) -> Path:
        """A free name in the quarantine for something of this name."""
        beginning = os.fsencode(name)[:150].decode("utf-8", "ignore")  # file systems may refuse half a character
        return self.quarantine / f"{beginning}.{uuid.uuid4().hex[:12]}"

    def blob(self, digest: bytes) -> Path:
        """Where content of this SHA-256 lies."""
        name = digest.hex()
        return self.blobs / f"{name[:2]}/{name}"

    def model(self, model_id: str) -> Path:
        return self.models / encode_id(model_id)

    def model_record(self, model_id: str) -> Path:
        return record_in(self.model(model_id))

    def versions(self, model_id: str) -> Path:
        return versions_in(self.model(model_id))

    def version_sidecar(self, model_id: str, number: int) -> Path:
        return self.models / f"{encode_id(model_id)}/versions/{number:010d}.json"
