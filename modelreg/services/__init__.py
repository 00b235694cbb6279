"""The gRPC services: protobuf in, one call of the domain, protobuf out."""

from __future__ import annotations

from purerpc.server import Service

from modelreg.log import Logger
from modelreg.registry.registry import Registry
from modelreg.services.health import HealthServicer, Readiness
from modelreg.services.model_registry import ModelRegistryServicer
from modelreg.services.reflection import reflection_servicers
from modelreg.services.statuses import translated
from modelreg.services.upload_body import ChunkDecoder

__all__ = ["STREAMED", "Readiness", "build_services"]

# Methods whose messages are taken apart while they arrive, and by what.
STREAMED = {"/cogmentAPI.ModelRegistrySP/CreateVersion": ChunkDecoder}


def build_services(
    registry: Registry, readiness: Readiness, *, reflection: bool, max_data_chunk_bytes: int, logger: Logger
) -> list[Service]:
    """All that is served on one port; the calls of the registry itself only while it's ready."""
    main = ModelRegistryServicer(registry, max_data_chunk_bytes=max_data_chunk_bytes, logger=logger).service
    standard = [HealthServicer(readiness, [main.name]).service]
    if reflection:
        names = [main.name, *(service.name for service in standard)]
        standard += [servicer.service for servicer in reflection_servicers(names)]
    return [translated(main, readiness.check), *(translated(service, _always) for service in standard)]


def _always() -> None:
    """The gate of services that answer at any time."""
