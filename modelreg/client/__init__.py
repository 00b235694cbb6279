"""The Python client: stores, publishes, retrieves and follows models, on asyncio and on Trio.

    import modelreg.client as cogment

    context = cogment.Context(user_id="trainer")
    registry = await context.get_model_registry_v2(cogment.Endpoint("grpc://localhost:9002"))
    info = await registry.store_model("policy", weights)

`modelreg.client.blocking` is the same for programs without an event loop.

The names are imported when they are first used: `modelreg.client.errors`, for example, needs neither HTTP/2 nor protobuf.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelreg.client.cache import Cache
    from modelreg.client.context import Context
    from modelreg.client.endpoint import Endpoint
    from modelreg.client.errors import (
        Damaged,
        DeadlineExceeded,
        Denied,
        Exhausted,
        Failed,
        NotFound,
        OutcomeUnknown,
        Refused,
        RegistryError,
        Unavailable,
    )
    from modelreg.client.infos import ModelInfo, ModelIterationInfo
    from modelreg.client.latest import LatestModel
    from modelreg.client.logs import make_logger
    from modelreg.client.registry import ModelRegistry
    from modelreg.client.retry import Patience
    from modelreg.client.transport.connection import Timing

__all__ = [
    "Cache",
    "Context",
    "Damaged",
    "DeadlineExceeded",
    "Denied",
    "Endpoint",
    "Exhausted",
    "Failed",
    "LatestModel",
    "ModelInfo",
    "ModelIterationInfo",
    "ModelRegistry",
    "NotFound",
    "OutcomeUnknown",
    "Patience",
    "Refused",
    "RegistryError",
    "Timing",
    "Unavailable",
    "make_logger",
]

_HOMES = {
    "Cache": "modelreg.client.cache",
    "Context": "modelreg.client.context",
    "Endpoint": "modelreg.client.endpoint",
    "Damaged": "modelreg.client.errors",
    "DeadlineExceeded": "modelreg.client.errors",
    "Denied": "modelreg.client.errors",
    "Exhausted": "modelreg.client.errors",
    "Failed": "modelreg.client.errors",
    "NotFound": "modelreg.client.errors",
    "OutcomeUnknown": "modelreg.client.errors",
    "Refused": "modelreg.client.errors",
    "RegistryError": "modelreg.client.errors",
    "Unavailable": "modelreg.client.errors",
    "ModelInfo": "modelreg.client.infos",
    "ModelIterationInfo": "modelreg.client.infos",
    "LatestModel": "modelreg.client.latest",
    "make_logger": "modelreg.client.logs",
    "ModelRegistry": "modelreg.client.registry",
    "Patience": "modelreg.client.retry",
    "Timing": "modelreg.client.transport.connection",
}

if not TYPE_CHECKING:  # a type checker knows what there is

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(home), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
