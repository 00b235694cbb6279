"""How a call ended: gRPC's status codes, and the one exception that carries them inside the client.

Source: https://github.com/grpc/grpc/blob/master/doc/statuscodes.md, and for what HTTP/2 says instead of a status,
PROTOCOL-HTTP2.md ("Errors") and http-grpc-status-mapping.md beside it.
"""

from __future__ import annotations

import enum
from urllib.parse import unquote

from modelreg.transport.faults import ErrorCode


class Code(enum.IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallFailed(Exception):
    """A call ended with another status than OK.

    Attributes:
        code: the status.
        delivered: whether a server may have acted on the request: it had all of it, and hasn't said that it left it alone.
        connected: whether there was a connection to make it on.
    """

    def __init__(self, code: Code, message: str, *, delivered: bool = True, connected: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.delivered = delivered
        self.connected = connected


_FROM_HTTP = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}

_FROM_RESET = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


def from_fields(fields: dict[bytes, bytes]) -> tuple[Code, str]:
    """The status that a response's headers and trailers give, and its message."""
    text = fields.get(b"grpc-status")
    if text is None:
        http = fields.get(b":status", b"")
        if http == b"200":
            return Code.UNKNOWN, "the answer has no status"
        number = int(http) if http.isdigit() else 0
        answered = http.decode("ascii", "replace")
        return _FROM_HTTP.get(
            number, Code.UNKNOWN
        ), f"HTTP status {answered}, from what is no gRPC server: is the endpoint right?"
    try:
        code = Code(int(text))
    except ValueError:
        code = Code.UNKNOWN
    return code, unquote(fields.get(b"grpc-message", b"").decode("utf-8", "replace"), errors="replace")


def from_reset(number: int) -> tuple[Code, str]:
    """The status that stands for an RST_STREAM."""
    try:
        name = ErrorCode(number).name
    except ValueError:
        name = str(number)
    return _FROM_RESET.get(number, Code.INTERNAL), f"the server ended the call with RST_STREAM {name}"  # type: ignore[call-overload]
