"""Which calls may pass: decided before anything of their bodies is read."""

from __future__ import annotations

from collections.abc import Callable

from modelreg.services.authentication import Tokens
from modelreg.services.health import Readiness
from modelreg.services.names import HEALTH, REGISTRY
from modelreg.transport.requests import Request

# Methods that need a token which may write.
WRITING = frozenset({"CreateOrUpdateModel", "DeleteModel", "CreateVersion"})

# What a Directory calls, without a token, to see whether the registry still answers. Version tells nothing else. Status
# looks for a token itself when it's asked for more than a health check wants.
HEALTH_CHECKS = frozenset({"Version", "Status"})

# The paths of all health checks that end at once. They are answered even where there are too many connections.
HEALTH_CHECK_PATHS = frozenset(
    {f"/{HEALTH}/Check", f"/{HEALTH}/List"} | {f"/{REGISTRY}/{method}" for method in HEALTH_CHECKS}
)

# The paths of all calls that need no token. A connection with none but these has to make way for others.
OPEN_PATHS = HEALTH_CHECK_PATHS | {f"/{HEALTH}/Watch"}


def admission(readiness: Readiness, tokens: Callable[[], Tokens | None]) -> Callable[[Request], None]:
    """What the transport asks of each call: raises an error of the domain where it may not pass.

    Where *tokens* gives some, all but health checks, gRPC's and a Directory's, need one. The registry's own calls pass
    only while it's ready.
    """

    def admit(request: Request) -> None:
        if request.service_name == HEALTH:
            return
        is_health_check = request.service_name == REGISTRY and request.method_name in HEALTH_CHECKS
        known = tokens()
        if known is not None and not is_health_check:
            known.check(request, writes=request.method_name in WRITING)
        if request.service_name == REGISTRY:
            readiness.check()

    return admit
