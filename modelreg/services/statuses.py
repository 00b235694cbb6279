"""The one place where the domain's errors become gRPC statuses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from purerpc.grpclib.exceptions import RpcFailedError
from purerpc.grpclib.status import Status, StatusCode
from purerpc.rpc import Cardinality
from purerpc.server import BoundRPCMethod, Service

from modelreg.errors import ModelregError
from modelreg.transport import Request


def failure(code: StatusCode, message: str) -> Exception:
    """The exception that ends a call with a status."""
    error: Exception = RpcFailedError(Status(code, message))
    return error


class errors_as_statuses:  # noqa: N801 - a context manager; each call has two, and a generator takes 1 µs more
    """Raises an error of the domain that comes out of the block as a gRPC status."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ModelregError):
            raise failure(error.status, str(error)) from error


def translated(service: Service) -> Service:
    """The same service, whose methods raise the domain's errors as gRPC statuses."""
    result = Service(service.name)
    for name, bound in service.methods.items():
        reply_stream = bound.signature.cardinality in (Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM)
        wrap = _translated_stream if reply_stream else _translated_call
        result.methods[name] = BoundRPCMethod(wrap(bound.method_fn), bound.signature)
    return result


def _translated_call(function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(argument: object, request: Request) -> object:
        with errors_as_statuses():
            return await function(argument, request=request)

    return call


def _translated_stream(function: Callable[..., Any]) -> Callable[..., Any]:
    async def stream(argument: object, request: Request) -> AsyncGenerator[object, None]:
        with errors_as_statuses():
            async with aclosing(function(argument, request=request)) as replies:
                async for reply in replies:
                    yield reply

    return stream
