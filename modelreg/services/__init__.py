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
from modelreg.services.statuses import translated
from modelreg.services.upload_body import ChunkDecoder
from modelreg.transport import Request

__all__ = ["STREAMED", "Readiness", "Tokens", "build_services"]

# Methods whose messages are taken apart while they arrive, and by what.
STREAMED = {"/cogmentAPI.ModelRegistrySP/CreateVersion": ChunkDecoder}

# Methods that need a token which may write.
WRITING = frozenset({"CreateOrUpdateModel", "DeleteModel", "CreateVersion"})


def build_services(
    registry: Registry,
    readiness: Readiness,
    *,
    reflection: bool,
    max_data_chunk_bytes: int,
    logger: Logger,
    tokens: Callable[[], Tokens | None],
) -> list[Service]:
    """All that is served on one port.

    The registry's own calls pass only while it's ready. Where *tokens* gives some, they and reflection need one; health is open to all.
    """

    def authenticated(method: str, request: Request) -> None:
        known = tokens()
        if known is not None:
            known.check(request, writes=method in WRITING)

    def ready(method: str, request: Request) -> None:
        authenticated(method, request)
        readiness.check()

    def open_to_all(method: str, request: Request) -> None:
        pass

    main = ModelRegistryServicer(registry, max_data_chunk_bytes=max_data_chunk_bytes, logger=logger).service
    health = HealthServicer(readiness, [main.name]).service
    services = [translated(main, ready), translated(health, open_to_all)]
    if reflection:
        reflecting = reflection_servicers([main.name, health.name])
        services.extend(translated(servicer.service, authenticated) for servicer in reflecting)
    return services
