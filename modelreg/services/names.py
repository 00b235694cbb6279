"""The full names of the services, as clients write them in paths."""

from __future__ import annotations

REGISTRY = "cogmentAPI.ModelRegistrySP"
HEALTH = "grpc.health.v1.Health"
