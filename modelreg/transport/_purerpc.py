"""purerpc's service layer, typed: beside the generated stubs the one module that imports purerpc.

It has no type information of its own. Taken from it: `Service`, `Servicer` and the signatures of methods, `Cardinality`,
and `RpcFailedError`, which carries a status. Its server
transport is not used. Importing it patches h2 3.2.0 (`purerpc.grpclib._h2_monkeypatch`): the state table accepts
RST_STREAM and WINDOW_UPDATE on closed streams, as h2 itself does since 3.0, and `data_to_send` is replaced by a function
that does the same. Neither changes what this package relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

from purerpc.grpclib.exceptions import RpcFailedError
from purerpc.grpclib.status import Status, StatusCode
from purerpc.rpc import Cardinality
from purerpc.server import Service, Servicer

from modelreg.grpc.status import Code

__all__ = [
    "Cardinality",
    "Method",
    "RpcFailedError",
    "Service",
    "Servicer",
    "failure",
    "methods",
    "status_of",
]


class MessageType(Protocol):
    """What is asked of a protobuf message class."""

    def FromString(self, data: bytes, /) -> object: ...


class Handler(Protocol):
    """A servicer's method: a coroutine function, or an async generator function where the reply is a stream."""

    def __call__(self, argument: object, /, *, request: object) -> Any: ...


class Method:
    """A method of a service, with its path and what it takes and gives."""

    __slots__ = ("function", "parse", "path", "reply_stream", "request_stream")

    def __init__(self, service: str, name: str, bound: Any, parsers: Mapping[str, Callable[[bytes], object]]) -> None:
        cardinality = bound.signature.cardinality
        self.path = f"/{service}/{name}"
        self.function = cast(Handler, bound.method_fn)
        self.parse = parsers.get(self.path) or cast(MessageType, bound.signature.request_type).FromString
        self.request_stream: bool = cardinality in (Cardinality.STREAM_UNARY, Cardinality.STREAM_STREAM)
        self.reply_stream: bool = cardinality in (Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM)


def methods(services: Iterable[Any], parsers: Mapping[str, Callable[[bytes], object]]) -> dict[str, Method]:
    """All methods of purerpc `Service` objects, by the path a request names them with."""
    return {
        method.path: method
        for service in services
        for method in (Method(service.name, name, bound, parsers) for name, bound in service.methods.items())
    }


def failure(code: Code, message: str) -> Exception:
    """The exception that ends a call with this status."""
    return cast(Exception, RpcFailedError(Status(StatusCode(code), message)))


def status_of(error: Any) -> tuple[int, str]:
    """Number and message of an `RpcFailedError`'s status."""
    status = error.status
    return int(status.int_value), str(status.status_message)
