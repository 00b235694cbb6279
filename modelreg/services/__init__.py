"""The gRPC services: protobuf in, one call of the domain, protobuf out."""

from __future__ import annotations

from collections.abc import Callable

from purerpc.server import Service

from modelreg.log import Logger
from modelreg.registry.registry import Registry
from modelreg.services.authentication import Tokens
from modelreg.services.health import HealthServicer, Readiness
from modelreg.services.model_registry import ModelRegistryServicer
from modelreg.services.reflection import reflection_servicers
from modelreg.services.statuses import errors_as_statuses, translated
from modelreg.services.upload_body import ChunkDecoder
from modelreg.transport import Request

__all__ = ["STREAMED", "Readiness", "Tokens", "admission", "build_services"]

REGISTRY = "cogmentAPI.ModelRegistrySP"
HEALTH = "grpc.health.v1.Health"

# Methods whose messages are taken apart while they arrive, and by what.
STREAMED = {f"/{REGISTRY}/CreateVersion": ChunkDecoder}

# Methods that need a token which may write.
WRITING = frozenset({"CreateOrUpdateModel", "DeleteModel", "CreateVersion"})


def build_services(
    registry: Registry, *, reflection: bool, max_data_chunk_bytes: int, logger: Logger, readiness: Readiness
) -> list[Service]:
    """All that is served on one port."""
    main = ModelRegistryServicer(registry, max_data_chunk_bytes=max_data_chunk_bytes, logger=logger).service
    servicers = [HealthServicer(readiness, [REGISTRY])]
    if reflection:
        servicers += reflection_servicers([REGISTRY, HEALTH])
    return [translated(main), *(translated(servicer.service) for servicer in servicers)]


def admission(readiness: Readiness, tokens: Callable[[], Tokens | None]) -> Callable[[Request], None]:
    """Decides for the transport, before anything of a call's body is read, whether it may pass.

    Where *tokens* gives some, all but health checks need one. The registry's own calls pass only while it's ready.
    """

    def admit(request: Request) -> None:
        if request.service_name == HEALTH:
            return
        with errors_as_statuses():
            known = tokens()
            if known is not None:
                known.check(request, writes=request.method_name in WRITING)
            if request.service_name == REGISTRY:
                readiness.check()

    return admit
