"""grpc.health.v1.Health, and the one place that knows whether the server is ready.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection

from modelreg.api import health_pb2 as api
from modelreg.api.health_grpc import HealthServicer as HealthServicerBase
from modelreg.bell import Bell
from modelreg.errors import NotFound, Unavailable
from modelreg.services.names import ARCHIVE

Response = api.HealthCheckResponse


class Readiness:
    """Whether calls can be answered: not before the index is loaded, and not from the first moment of shutdown on.

    Attributes:
        changed: rung when anything has changed that health checks tell of.
    """

    def __init__(self) -> None:
        self.serving = False
        self.stopping = False
        self.changed = Bell()

    def start(self) -> None:
        self.serving = True
        self.changed.ring()

    def stop(self) -> None:
        self.serving = False
        self.stopping = True
        self.changed.ring()

    def check(self) -> None:
        """Raise Unavailable unless calls can be answered."""
        if not self.serving:
            raise Unavailable("the registry is stopping" if self.stopping else "the registry is starting")


class HealthServicer(HealthServicerBase):
    """The health of the server, under the empty name; of the named services, which is the same; and of the archive.

    The archive is NOT_SERVING, too, while *is_damaged* says so: what is damaged can't be read, all else goes on.
    """

    def __init__(self, readiness: Readiness, services: Collection[str], is_damaged: Callable[[], bool]) -> None:
        self._readiness = readiness
        self._is_damaged = is_damaged
        self._known = ("", *services, ARCHIVE)

    async def Check(self, message: api.HealthCheckRequest) -> Response:
        if message.service not in self._known:
            msg = f"no service {message.service!r} is served here"
            raise NotFound(msg)
        return self._response(message.service)

    async def List(self, message: api.HealthListRequest) -> api.HealthListResponse:
        return api.HealthListResponse(statuses={name: self._response(name) for name in self._known})

    async def Watch(  # type: ignore[override]  # purerpc's stubs have no streams
        self, message: api.HealthCheckRequest
    ) -> AsyncGenerator[Response, None]:
        told = None
        while True:
            response = self._response(message.service)
            if response != told:
                # While it's being sent the state may change again, with nobody waiting for that: look again, then wait.
                told = response
                yield response
                continue
            if self._readiness.stopping:
                raise Unavailable("the registry is stopping")
            await self._readiness.changed.wait()

    def _response(self, service: str) -> Response:
        if service not in self._known:
            return Response(status=Response.SERVICE_UNKNOWN)
        serving = self._readiness.serving and not (service == ARCHIVE and self._is_damaged())
        return Response(status=Response.SERVING if serving else Response.NOT_SERVING)
