"""Lists of models and versions: the replies that may be long.

The transport makes them piece by piece, when there is memory for them. Models and versions may come and go meanwhile: a
list leaves out none that stays, and a page is only short where the list ends, as existing clients stop at a short page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from modelreg.api import model_registry_pb2 as api
from modelreg.errors import InvalidArgument
from modelreg.grpc.status import Code
from modelreg.registry.records import LONGEST_MODEL_ID, ModelInfo
from modelreg.registry.registry import Registry
from modelreg.services import handles
from modelreg.services.fields import has_more_fields
from modelreg.services.messages import model_piece, version_piece
from modelreg.transport._purerpc import failure
from modelreg.transport.pieces import PiecewiseMessage

# How many models or versions one call may ask for by name. A call that waits for memory keeps a reference to each.
MOST_ASKED = 1000


# Fields that a request may have beside names.
OTHERS = 100

# The bytes of a request that names so many. Parsing 4 MiB of names took 60 ms, and a hundred MB of memory.
LARGEST_REQUEST = MOST_ASKED * (LONGEST_MODEL_ID + 4) + 4096


class _Message(Protocol):
    def FromString(self, data: bytes, /) -> object: ...


def parser(kind: _Message) -> Callable[[bytes], object]:
    """Return what parses a request of a kind, and refuses a larger one than any that is allowed before that."""

    def parse(body: bytes) -> object:
        if len(body) > LARGEST_REQUEST:
            msg = f"the request has {len(body)} bytes, {LARGEST_REQUEST} are allowed: ask for less at once"
            raise failure(Code.INVALID_ARGUMENT, msg)
        if has_more_fields(body, MOST_ASKED + OTHERS):
            msg = f"more than {MOST_ASKED} are asked for by name, {MOST_ASKED} at once are allowed: ask for the rest in further calls"
            raise InvalidArgument(msg)
        return kind.FromString(body)

    return parse


def models(registry: Registry, message: api.RetrieveModelsRequest) -> PiecewiseMessage:
    """The reply to RetrieveModels. Raises InvalidArgument or NotFound."""
    offset = handles.parse(message.model_handle, "model_handle")
    count = message.models_count or None
    asked: list[ModelInfo] | None = None
    if message.model_ids:
        _check_number(len(message.model_ids), "models")
        end = None if count is None else offset + count
        asked = [registry.model(model_id) for model_id in message.model_ids][offset:end]

    def pieces() -> Iterator[bytes]:
        found: Iterable[ModelInfo] = islice(registry.models(offset=offset), count) if asked is None else asked
        reached = offset
        for model in found:
            reached += 1
            yield model_piece(model)
        yield api.RetrieveModelsReply(next_model_handle=str(reached)).SerializeToString()

    return PiecewiseMessage(pieces, "ask for pages, or smaller ones, with models_count")


def versions(registry: Registry, message: api.RetrieveVersionInfosRequest) -> PiecewiseMessage:
    """The reply to RetrieveVersionInfos. Raises InvalidArgument or NotFound."""
    numbers = message.version_numbers
    pieces = _versions_by_number(registry, message, numbers) if numbers else _all_versions(registry, message)
    return PiecewiseMessage(pieces, "ask for pages, or smaller ones, with versions_count")


def _all_versions(registry: Registry, message: api.RetrieveVersionInfosRequest) -> Callable[[], Iterator[bytes]]:
    model_id, handle = message.model_id, message.version_handle
    count = message.versions_count or None
    first = handles.parse(handle, "version_handle")
    registry.versions(model_id)  # raises where there is no such model

    def pieces() -> Iterator[bytes]:
        last: int | None = None
        for version in islice(registry.versions(model_id, first=first), count):  # the model may have been deleted
            last = version.number
            yield version_piece(version)
        yield _next_versions(handles.after_versions(last, handle))

    return pieces


def _versions_by_number(
    registry: Registry, message: api.RetrieveVersionInfosRequest, asked: Sequence[int]
) -> Callable[[], Iterator[bytes]]:
    handle = message.version_handle
    count = message.versions_count or None
    _check_number(len(asked), "versions")
    found = registry.versions_by_number(message.model_id, asked)
    start = handles.place_among([version.number for version in found], handle) if handle else 0
    page = found[start : None if count is None else start + count] if start or count else found
    last = page[-1].number if page else None
    after = (
        handles.after_numbers(last, asked, start + len(page), handle) if count else handles.after_versions(last, handle)
    )

    def pieces() -> Iterator[bytes]:
        yield from map(version_piece, page)
        yield _next_versions(after)

    return pieces


def _next_versions(handle: str) -> bytes:
    return api.RetrieveVersionInfosReply(next_version_handle=handle).SerializeToString()


def _check_number(asked: int, what: str) -> None:
    if asked > MOST_ASKED:
        msg = (
            f"{asked} {what} are asked for by name, {MOST_ASKED} at once are allowed: ask for the rest in further calls"
        )
        raise InvalidArgument(msg)
