"""How a call ended: gRPC's status codes, and the one exception that carries them inside the client.

Source: https://github.com/grpc/grpc/blob/master/doc/statuscodes.md, and for what HTTP/2 says instead of a status,
PROTOCOL-HTTP2.md ("Errors"). `pages` has the statuses of HTTP.
"""

from __future__ import annotations

import enum
from typing import NamedTuple
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


class Outcome(NamedTuple):
    """How a call ended.

    Attributes:
        code: the status.
        message: for people.
        cut: the server has given no status: the stream was cut off, by a proxy for example, and the next may fare better.
    """

    code: Code
    message: str
    cut: bool = False


class CallFailed(Exception):
    """A call ended with another status than OK.

    Attributes:
        code: the status.
        delivered: whether a server may have acted on the request: it had all of it, and hasn't said that it left it alone.
        connected: whether there was a connection to make it on.
        cut: see `Outcome`.
    """

    def __init__(
        self, code: Code, message: str, *, delivered: bool = True, connected: bool = True, cut: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.delivered = delivered
        self.connected = connected
        self.cut = cut


_FROM_RESET: dict[int, Code] = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}

# Those that the next call would get, too.
_FINAL_RESETS = {ErrorCode.INADEQUATE_SECURITY, ErrorCode.HTTP_1_1_REQUIRED}


def from_fields(fields: dict[bytes, bytes]) -> Outcome:
    """What the headers and trailers of a gRPC response say."""
    text = fields.get(b"grpc-status")
    if text is None:
        return Outcome(Code.UNKNOWN, "the answer was cut off: it ends without a status", cut=True)
    try:
        code = Code(int(text))
    except ValueError:
        code = Code.UNKNOWN
    return Outcome(code, unquote(fields.get(b"grpc-message", b"").decode("utf-8", "replace"), errors="replace"))


def from_reset(number: int) -> Outcome:
    """The status that stands for an RST_STREAM."""
    try:
        name = ErrorCode(number).name
    except ValueError:
        name = str(number)
    code = _FROM_RESET.get(number, Code.INTERNAL)
    return Outcome(code, f"the call was cut off (RST_STREAM {name})", cut=number not in _FINAL_RESETS)
