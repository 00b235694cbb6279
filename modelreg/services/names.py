"""The full names of the services, as clients write them in paths."""

from __future__ import annotations

REGISTRY = "cogmentAPI.ModelRegistrySP"
HEALTH = "grpc.health.v1.Health"

# No service, but a part of the server that health checks can ask after: whether nothing stored is known to be damaged.
ARCHIVE = "modelreg.Archive"
