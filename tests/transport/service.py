"""The service that the transport's tests call, and servers that serve it."""

from __future__ import annotations

import inspect
import logging
import os
import typing
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import purerpc
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue
from purerpc.grpclib.exceptions import NotFoundError
from purerpc.rpc import RPCSignature

from modelreg.transport.files import FileMessage
from modelreg.transport.limits import Limits
from modelreg.transport.messages import DecodeError
from modelreg.transport.pieces import LoadedMessage, PiecewiseMessage
from modelreg.transport.requests import Request
from modelreg.transport.server import Server

NAME = "test.Service"


def path(method: str) -> str:
    return f"/{NAME}/{method}"


def field(size: int) -> bytes:
    """The beginning of a `BytesValue` of `size` bytes."""
    encoded = bytearray(b"\x0a")
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


class Pieces:
    """A decoder that hands on everything as it comes, and an empty view at the end of each message."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    @property
    def passing_on(self) -> bool:
        return True

    @property
    def held(self) -> int:
        return 0

    def begin(self, length: int) -> None:
        self.lengths.append(length)

    def feed(self, data: memoryview) -> Iterable[object]:
        if bytes(data[:1]) == b"!":
            raise DecodeError("no exclamation marks, please")
        return (data,)

    def end(self) -> Iterable[object]:
        return (b"end",)


@attrs.define
class State:
    """What a test wants to know of the handlers, and tells them."""

    running: int = 0
    started: int = 0
    most_running: int = 0
    ended: trio.Event = attrs.field(factory=trio.Event)
    go_on: trio.Event = attrs.field(factory=trio.Event)
    pulled: int = 0
    received: int = 0
    requests: list[Request] = attrs.field(factory=list)
    generators_closed: int = 0
    descriptor: int = -1
    file_size: int = 0


def add(service: purerpc.Service, name: str) -> Callable[[Callable[..., object]], None]:
    """`Service.rpc` for annotations that are text."""

    def decorate(function: Callable[..., object]) -> None:
        hints = typing.get_type_hints(function)
        argument = next(iter(inspect.signature(function).parameters))
        service.add_method(name, function, RPCSignature.from_annotations(hints[argument], hints["return"]))

    return decorate


def make_service(state: State) -> purerpc.Service:
    service = purerpc.Service(NAME)
    rpc = partial(add, service)

    @rpc("Echo")
    async def echo(message: BytesValue, request: Request) -> BytesValue:
        state.requests.append(request)
        return message

    @rpc("Fail")
    async def fail(message: BytesValue) -> BytesValue:
        raise NotFoundError(message.value.decode())

    @rpc("FailInGroup")
    async def fail_in_group(message: BytesValue) -> BytesValue:
        async def task() -> None:
            raise NotFoundError(message.value.decode())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            await trio.sleep_forever()
        raise AssertionError

    @rpc("Bug")
    async def bug(message: BytesValue) -> BytesValue:
        raise ValueError("a secret")

    @rpc("BugInGroup")
    async def bug_in_group(message: BytesValue) -> BytesValue:
        async def task() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("a secret")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
            raise NotFoundError(message.value.decode())

    @rpc("Wait")
    async def wait(message: BytesValue) -> BytesValue:
        state.running += 1
        state.started += 1
        state.most_running = max(state.most_running, state.running)
        try:
            await state.go_on.wait()
        finally:
            state.running -= 1
            state.ended.set()
        return message

    @rpc("Watch")
    async def watch(message: BytesValue) -> AsyncIterator[BytesValue]:
        state.running += 1
        try:
            yield message
            await state.go_on.wait()
            yield message
        finally:
            state.running -= 1
            state.generators_closed += 1
            state.ended.set()

    @rpc("Count")
    async def count(message: BytesValue) -> AsyncIterator[BytesValue]:
        state.running += 1
        try:
            number, size = (int(word) for word in message.value.split())
            for _ in range(number):
                state.pulled += 1
                yield BytesValue(value=bytes(size))
        finally:
            state.running -= 1
            state.ended.set()

    @rpc("FailLate")
    async def fail_late(message: BytesValue) -> AsyncIterator[BytesValue]:
        yield message
        raise NotFoundError("after the first")

    @rpc("File")
    async def file(message: BytesValue) -> AsyncIterator[BytesValue]:
        """value: size of each message; the whole of `state.descriptor`."""
        state.running += 1
        size = int(message.value)
        descriptor = os.dup(state.descriptor)
        try:
            for offset in range(0, state.file_size, size):
                part = min(size, state.file_size - offset)
                state.pulled += 1
                yield typing.cast(BytesValue, FileMessage(field(part), descriptor, offset, part))
        finally:
            os.close(descriptor)
            state.running -= 1
            state.ended.set()

    @rpc("Load")
    async def load(message: BytesValue) -> AsyncIterator[BytesValue]:
        """value: size of a message that is loaded when there is memory for it, and once `state.go_on` is set."""
        size = int(message.value)

        async def read() -> bytes:
            state.pulled += 1
            await state.go_on.wait()
            return field(size) + bytes(size)

        yield typing.cast(BytesValue, LoadedMessage(len(field(size)) + size, read))

    @rpc("Pieces")
    async def pieces(message: BytesValue) -> BytesValue:
        """value: number and size of the pieces that the reply is made of."""
        number, size = (int(word) for word in message.value.split())

        def make() -> Iterator[bytes]:
            for _ in range(number):
                state.pulled += 1
                yield bytes(size)

        return typing.cast(BytesValue, PiecewiseMessage(make, "ask for fewer pieces"))

    @rpc("Sum")
    async def sum_(messages: AsyncIterator[BytesValue]) -> BytesValue:
        state.running += 1
        try:
            total = 0
            async for message in messages:
                total += len(message.value)
                state.received += 1
            return BytesValue(value=b"%d" % total)
        finally:
            state.running -= 1
            state.ended.set()

    @rpc("Chat")
    async def chat(messages: AsyncIterator[BytesValue]) -> AsyncIterator[BytesValue]:
        async for message in messages:
            yield message

    @rpc("Refuse")
    async def refuse(messages: AsyncIterator[BytesValue]) -> BytesValue:
        raise NotFoundError("not before a byte of it was read")

    @rpc("Upload")
    async def upload(items: AsyncIterator[BytesValue]) -> BytesValue:
        """With `Pieces` as decoder: the total, and the number of messages."""
        state.running += 1
        try:
            total = ends = 0
            async for item in items:
                if item == b"end":
                    ends += 1
                else:
                    total += len(item)  # type: ignore[arg-type]
                state.received = total
            return BytesValue(value=b"%d %d" % (total, ends))
        finally:
            state.running -= 1
            state.ended.set()

    @rpc("Hold")
    async def hold(items: AsyncIterator[BytesValue]) -> BytesValue:
        """Reads nothing until it may."""
        state.running += 1
        try:
            await state.go_on.wait()
            total = 0
            async for item in items:
                total += len(item)  # type: ignore[arg-type]
            return BytesValue(value=b"%d" % total)
        finally:
            state.running -= 1
            state.ended.set()

    return service


STREAMED = {path("Upload"): Pieces, path("Hold"): Pieces}


@attrs.define
class Serving:
    """A server that runs."""

    server: Server
    state: State
    port: int
    nursery: trio.Nursery
    stopped: trio.Event


def make_server(state: State, limits: Limits | None = None, logger: logging.Logger | None = None) -> Server:
    return Server([make_service(state)], limits=limits or Limits(), streamed=STREAMED, logger=logger)


@asynccontextmanager
async def serving(
    limits: Limits | None = None, listeners: list[trio.SocketListener] | None = None
) -> AsyncIterator[Serving]:
    """A server on a port of this machine, until the block ends."""
    state = State()
    server = make_server(state, limits)
    listeners = listeners or await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    stopped = trio.Event()

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        await server.serve(listeners, task_status=task_status)
        stopped.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield Serving(server, state, port, nursery, stopped)
        nursery.cancel_scope.cancel()
