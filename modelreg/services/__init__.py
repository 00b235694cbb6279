"""The gRPC services: protobuf in, one call of the domain, protobuf out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.registry.registry import Registry
from modelreg.services import lists, user_data
from modelreg.services.admission import HEALTH_CHECK_PATHS, OPEN_PATHS, admission
from modelreg.services.audit import Audit
from modelreg.services.authentication import Tokens
from modelreg.services.health import HealthServicer, Readiness
from modelreg.services.model_registry import ModelRegistryServicer
from modelreg.services.names import HEALTH, REGISTRY
from modelreg.services.open_files import OpenFiles
from modelreg.services.reflection import reflection_servicers
from modelreg.services.statuses import as_status
from modelreg.services.upload_body import ChunkDecoder
from modelreg.transport._purerpc import Service
from modelreg.transport.messages import MessageDecoder

__all__ = [
    "HEALTH_CHECK_PATHS",
    "OPEN_PATHS",
    "Audit",
    "OpenFiles",
    "Readiness",
    "Tokens",
    "admission",
    "as_status",
    "build_services",
    "parsers",
    "streamed",
]


def parsers(max_user_data_entries: int) -> Mapping[str, Callable[[bytes], object]]:
    """How the requests are parsed that may name many models, versions or statuses, or have much user data."""
    return {
        f"/{REGISTRY}/RetrieveModels": lists.parser(api.RetrieveModelsRequest),
        f"/{REGISTRY}/RetrieveVersionInfos": lists.parser(api.RetrieveVersionInfosRequest),
        f"/{REGISTRY}/Status": lists.parser(common_pb2.StatusRequest),
        f"/{REGISTRY}/CreateOrUpdateModel": user_data.parser(
            api.CreateOrUpdateModelRequest,
            max_user_data_entries,
            (api.CreateOrUpdateModelRequest.MODEL_INFO_FIELD_NUMBER,),
        ),
    }


def streamed(max_message_bytes: int, max_user_data_entries: int) -> Mapping[str, Callable[[], MessageDecoder]]:
    """The methods whose messages are taken apart while they arrive, and by what."""
    chunk = api.CreateVersionRequestChunk
    parse = user_data.parser(
        chunk, max_user_data_entries, (chunk.HEADER_FIELD_NUMBER, chunk.Header.VERSION_INFO_FIELD_NUMBER)
    )
    return {f"/{REGISTRY}/CreateVersion": partial(ChunkDecoder, max_message_bytes, parse)}


def build_services(
    registry: Registry,
    *,
    reflection: bool,
    max_data_chunk_bytes: int,
    audit: Audit,
    readiness: Readiness,
    open_files: OpenFiles,
    tokens: Callable[[], Tokens | None] = lambda: None,
) -> list[Service]:
    """All that is served on one port. *tokens* are those that calls need at the moment, if they need any."""
    main = ModelRegistryServicer(
        registry, max_data_chunk_bytes=max_data_chunk_bytes, tokens=tokens, audit=audit, open_files=open_files
    ).service
    servicers = [HealthServicer(readiness, [REGISTRY], registry.is_damaged)]
    if reflection:
        servicers += reflection_servicers([REGISTRY, HEALTH])
    return [main, *(servicer.service for servicer in servicers)]
