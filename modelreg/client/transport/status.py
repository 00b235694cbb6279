"""How a call ended, and the one exception that carries its status inside the client.

Source, for what HTTP/2 says instead of a status: PROTOCOL-HTTP2.md ("Errors"). `pages` has the statuses of HTTP.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote

from modelreg.grpc.status import Code
from modelreg.transport.faults import ErrorCode


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
