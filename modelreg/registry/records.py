"""What the registry knows of models and versions."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from modelreg.errors import InvalidArgument
from modelreg.storage.sidecars import VersionRecord

# Bytes of UTF-8.
LONGEST_MODEL_ID = 512


@attrs.frozen(kw_only=True)
class ModelInfo:
    """A model."""

    model_id: str
    user_data: Mapping[str, str]


@attrs.frozen(kw_only=True)
class VersionInfo:
    """A version of a model."""

    model_id: str
    # From 1; none is ever given twice.
    number: int
    # Nanoseconds since the Unix epoch.
    timestamp: int
    # In the archive, rather than in memory.
    stored: bool
    # SHA-256 of the content.
    digest: bytes
    # Bytes.
    size: int
    user_data: Mapping[str, str]

    @classmethod
    def from_record(cls, record: VersionRecord) -> VersionInfo:
        return cls(
            model_id=record.model_id,
            number=record.version_number,
            timestamp=record.creation_timestamp,
            stored=True,
            digest=bytes.fromhex(record.sha256),
            size=record.size,
            user_data=record.user_data,
        )

    def to_record(self, request_id: str | None = None) -> VersionRecord:
        return VersionRecord(
            model_id=self.model_id,
            version_number=self.number,
            creation_timestamp=self.timestamp,
            sha256=self.digest.hex(),
            size=self.size,
            user_data=self.user_data,
            request_id=request_id,
        )


@attrs.frozen(kw_only=True)
class UploadHeader:
    """What's said of a version before its content comes."""

    model_id: str
    stored: bool
    # Bytes.
    size: int
    # SHA-256 that the content has to have; None where that wasn't said.
    digest: bytes | None = None
    # Nanoseconds since the Unix epoch; None is the time of the commit.
    timestamp: int | None = None
    user_data: Mapping[str, str] = attrs.field(factory=dict)
    # The client's name for this request, the same when it tries again; see registry/requests.py. None for none.
    request_id: str | None = None
    # Whether the version's commit creates the model, where there is none.
    creates_model: bool = False


def check_model_id(model_id: str) -> None:
    """Raise InvalidArgument unless this is a model id: 1 to 512 bytes of UTF-8 without control characters."""
    if not model_id:
        raise InvalidArgument("the model id is empty: name a model")
    try:
        size = len(model_id.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("the model id has half of a surrogate pair in it, so it's no text") from None
    if size > LONGEST_MODEL_ID:
        msg = f"the model id has {size} bytes, {LONGEST_MODEL_ID} are allowed"
        raise InvalidArgument(msg)
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in model_id):
        raise InvalidArgument("the model id has control characters in it: use printable ones")
