"""The Python client: stores, publishes, retrieves and follows models, on asyncio and on Trio.

    import modelreg.client as cogment

    context = cogment.Context(user_id="trainer")
    registry = await context.get_model_registry_v2(cogment.Endpoint("grpc://localhost:9002"))
    info = await registry.store_model("policy", weights)

`modelreg.client.blocking` is the same for programs without an event loop.
"""

from __future__ import annotations

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
