"""Who changed something, and whose calls were refused: one line in the log each.

A line names the client's address, the user that the client says it is (metadata ``user-id``), and the name of the token
that let the call pass. Clients can cause refusals and transient versions as often as they like, so the lines of these
are bounded.
"""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Callable

from modelreg.grpc.status import Code
from modelreg.log import LineQuota, Logger, shown
from modelreg.registry.records import VersionInfo
from modelreg.services.authentication import Tokens
from modelreg.transport.places import host_of
from modelreg.transport.requests import Request

# As clients of this project send it, percent-encoded where it isn't printable ASCII.
USER_ID_KEY = "user-id"

# Characters of what a client chose, and of a status message that may quote it.
LONGEST_USER = 64
LONGEST_REASON = 300
LONGEST_CALL = 100

# The statuses of calls that the registry refused. The others are answers, or faults that are logged where they happen.
REFUSALS = {
    code.value: code.name
    for code in (
        Code.INVALID_ARGUMENT,
        Code.RESOURCE_EXHAUSTED,
        Code.FAILED_PRECONDITION,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
    )
}


class Audit:
    """Logs changes and refusals.

    Arguments:
        logger: takes the lines, all of them at level info.
        quota: bounds the lines that clients can cause as often as they like.
        tokens: the accepted tokens, for their names.
    """

    def __init__(self, logger: Logger, quota: LineQuota, tokens: Callable[[], Tokens | None] = lambda: None) -> None:
        self._logger = logger
        self._quota = quota
        self._tokens = tokens

    def changed(self, request: Request, event: str, **fields: object) -> None:
        """Log a change that is durable."""
        if self._logger.is_enabled_for(logging.INFO):
            self._logger.info(event, **fields, **self._caller(request))

    def added(self, request: Request, version: VersionInfo) -> None:
        """Log a new version."""
        if not self._logger.is_enabled_for(logging.INFO):
            return
        if version.stored or self._quota.allows("published a version", version.model_id):
            self.changed(
                request,
                "stored a version" if version.stored else "published a version",
                model=version.model_id,
                version=version.number,
                size=version.size,
            )

    def refused(self, request: Request, code: int, reason: str) -> None:
        """Log that a call ended with this status, if the status says that the registry refused it."""
        name = REFUSALS.get(code)
        if name is not None and self._quota.allows("refused a call", host_of(request.peer)):
            self._logger.info(
                "refused a call",
                call=shown(
                    f"{request.service_name}/{request.method_name}", LONGEST_CALL
                ),  # "/" where the headers don't tell
                status=name,
                reason=shown(reason, LONGEST_REASON),
                **self._caller(request),
            )

    def _caller(self, request: Request) -> dict[str, str]:
        caller = {"peer": request.peer}
        user = next(request.metadata(USER_ID_KEY), None)
        if isinstance(user, str):
            caller["user"] = shown(urllib.parse.unquote(user), LONGEST_USER)
        tokens = self._tokens()
        if tokens is not None and (name := tokens.name_of(request)) is not None:
            caller["token"] = name
        return caller
