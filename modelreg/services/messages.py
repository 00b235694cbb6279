"""The domain's records to and from protobuf."""

from __future__ import annotations

import math
import re
import weakref
from functools import lru_cache

import attrs

from modelreg.api import model_registry_pb2 as api
from modelreg.errors import InvalidArgument
from modelreg.registry.records import ModelInfo, UploadHeader, VersionInfo
from modelreg.registry.requests import LONGEST_REQUEST_ID
from modelreg.registry.transfer import VersionReader
from modelreg.storage.digests import from_base64, to_base64
from modelreg.transport.pieces import LoadedMessage, PiecewiseMessage
from modelreg.transport.requests import Request

# Metadata that names an upload: sent again with the same one, it isn't stored twice.
REQUEST_ID_KEY = "modelreg-request-id"

# Metadata of an upload that creates its model, where there is none, together with the version.
CREATE_MODEL_KEY = "modelreg-create-model"

# Metadata of a watch: how many seconds of silence end with an empty message, so that proxies don't take it for idle.
WATCH_KEEPALIVE_KEY = "modelreg-watch-keepalive"

# Metadata of a download: how many bytes its client has got already.
OFFSET_KEY = "modelreg-offset"

SHORTEST_SILENCE = 1.0
"""Seconds; watches that ask for less get this."""


def model_message(model: ModelInfo) -> api.ModelInfo:
    return api.ModelInfo(model_id=model.model_id, user_data=model.user_data)


def version_message(version: VersionInfo) -> api.ModelVersionInfo:
    return api.ModelVersionInfo(
        model_id=version.model_id,
        version_number=version.number,
        creation_timestamp=version.timestamp,
        archived=version.stored,
        data_hash=to_base64(version.digest),
        data_size=version.size,
        user_data=version.user_data,
    )


@lru_cache(1000)
def field_one(size: int) -> bytes:
    """What comes before *size* bytes to make them field 1 of a message: the tag and the length."""
    length = bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\x0a" + bytes(length) + bytes([size])


def model_piece(model: ModelInfo) -> bytes:
    """A model as field 1 of a reply."""
    encoded = model_message(model).SerializeToString()
    return field_one(len(encoded)) + encoded


def version_piece(version: VersionInfo) -> bytes:
    """A version as field 1 of a reply."""
    encoded = version_message(version).SerializeToString()
    return field_one(len(encoded)) + encoded


def loaded_chunk(reader: VersionReader, start: int, end: int) -> LoadedMessage:
    """A RetrieveVersionDataReplyChunk with a part of a version that is to be loaded."""
    prefix = field_one(end - start)

    async def load() -> bytes:
        return prefix + memoryview(await reader.load())[start:end]

    return LoadedMessage(len(prefix) + end - start, load)


def one_version(version: VersionInfo) -> PiecewiseMessage:
    """A version as the whole of a reply: CreateVersionReply or VersionUpdateReply."""
    return PiecewiseMessage(lambda: map(version_piece, (version,)))


# How many encoded updates are kept, and their bytes; the last one is kept at least.
UPDATES = 100
UPDATES_BYTES = 4 << 20


class Updates:
    """The replies that tell watchers of versions. All who follow a model get the same bytes, for as long as they are kept."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[weakref.ref[VersionInfo], bytes]] = {}
        self._bytes = 0

    def encoded(self, version: VersionInfo | None) -> bytes:
        """Return the reply for a version, or for none, which only shows that the watch goes on."""
        if version is None:
            return b""
        key = version.model_id, version.number
        of, encoded = self._kept.get(key, (None, b""))
        if of is None or of() is not version:  # a model that was deleted and made again gives the same numbers
            if of is not None:
                self._drop(key)
            encoded = version_piece(version)
            while self._kept and (len(self._kept) >= UPDATES or self._bytes + len(encoded) > UPDATES_BYTES):
                self._drop(next(iter(self._kept)))
            self._kept[key] = weakref.ref(version), encoded
            self._bytes += len(encoded)
        return encoded

    def _drop(self, key: tuple[str, int]) -> None:
        _, encoded = self._kept.pop(key)
        self._bytes -= len(encoded)


@attrs.frozen
class Update:
    """A VersionUpdateReply, encoded when the transport sends it."""

    updates: Updates
    version: VersionInfo | None

    def SerializeToString(self) -> bytes:
        return self.updates.encoded(self.version)


def upload_header(message: api.ModelVersionInfo, request: Request) -> UploadHeader:
    """What an upload's header and its call's metadata say. The user data is still that of the message.

    Raises InvalidArgument for a hash, or metadata, that can't be one.
    """
    return UploadHeader(
        model_id=message.model_id,
        stored=message.archived,
        size=message.data_size,
        digest=_digest(message.data_hash),
        timestamp=message.creation_timestamp or None,
        user_data=message.user_data or {},  # a message lives as long as its map, an empty one too
        request_id=_request_id(request),
        creates_model=_creates_model(request),
    )


def _creates_model(request: Request) -> bool:
    if not request.fields:
        return False
    values = set(request.metadata(CREATE_MODEL_KEY))
    if not values <= {"1"}:
        raise InvalidArgument(f"metadata {CREATE_MODEL_KEY} has to be 1, or left out")
    return bool(values)


_REQUEST_ID = f".{{1,{LONGEST_REQUEST_ID}}}"
_REQUEST_ID_FORM = f"one text of 1 to {LONGEST_REQUEST_ID} characters, a UUID for example"


def _request_id(request: Request) -> str | None:
    return _text_of(request, REQUEST_ID_KEY, _REQUEST_ID, _REQUEST_ID_FORM)


def watch_silence(request: Request) -> float:
    """The seconds of silence after which a watch wants an empty message; infinite for those that don't ask.

    Other clients would take an empty message for a version. Raises InvalidArgument for what isn't a number of seconds.
    """
    text = _text_of(request, WATCH_KEEPALIVE_KEY, r"\d{1,9}(\.\d{1,9})?", "one number of seconds, 20 for example")
    return math.inf if text is None else max(SHORTEST_SILENCE, float(text))


def download_offset(request: Request, size: int) -> int:
    """The byte at which a download of *size* bytes begins. Raises InvalidArgument for what is none of these."""
    text = _text_of(request, OFFSET_KEY, r"\d{1,19}", "one number of bytes")
    offset = 0 if text is None else int(text)
    if offset > size:
        raise InvalidArgument(f"metadata {OFFSET_KEY} is {offset}, and the version has {size} bytes")
    return offset


def _text_of(request: Request, key: str, pattern: str, form: str) -> str | None:
    """The value of a key, None where it's missing. Raises InvalidArgument when it's there twice or has another *form*."""
    if not request.fields:
        return None
    values = [str(value) for value in request.metadata(key)]
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch(pattern, values[0], re.ASCII | re.DOTALL):
        raise InvalidArgument(f"metadata {key} has to be {form}")
    return values[0]


def _digest(data_hash: str) -> bytes | None:
    if not data_hash:
        return None
    try:
        return from_base64(data_hash)
    except ValueError:
        msg = "data_hash isn't a SHA-256 in base64 (44 characters): leave it out, or send one"
        raise InvalidArgument(msg) from None
