"""The one place where the domain's errors become gRPC statuses."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from purerpc.grpclib.exceptions import RpcFailedError
from purerpc.grpclib.status import Status, StatusCode
from purerpc.rpc import Cardinality
from purerpc.server import BoundRPCMethod, Service

from modelreg.errors import ModelregError
from modelreg.transport import Request

# Told a method's name and the request; raises one of the domain's errors where the call may not pass.
Gate = Callable[[str, Request], None]


def failure(code: StatusCode, message: str) -> Exception:
    """The exception that ends a call with a status."""
    error: Exception = RpcFailedError(Status(code, message))
    return error


def translated(service: Service, gate: Gate) -> Service:
    """The same service, whose methods pass *gate* first, and raise the domain's errors as gRPC statuses."""
    result = Service(service.name)
    for name, bound in service.methods.items():
        reply_stream = bound.signature.cardinality in (Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM)
        wrap = _translated_stream if reply_stream else _translated_call
        result.methods[name] = BoundRPCMethod(wrap(bound.method_fn, functools.partial(gate, name)), bound.signature)
    return result


def _translated_call(function: Callable[..., Any], gate: Callable[[Request], None]) -> Callable[..., Any]:
    async def call(argument: object, request: Request) -> object:
        try:
            gate(request)
            return await function(argument, request=request)
        except ModelregError as error:
            raise failure(error.status, str(error)) from error

    return call


def _translated_stream(function: Callable[..., Any], gate: Callable[[Request], None]) -> Callable[..., Any]:
    async def stream(argument: object, request: Request) -> AsyncGenerator[object, None]:
        try:
            gate(request)
            async with aclosing(function(argument, request=request)) as replies:
                async for reply in replies:
                    yield reply
        except ModelregError as error:
            raise failure(error.status, str(error)) from error

    return stream
