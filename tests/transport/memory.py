"""A server of the transport's test service whose connections are within the process: time may be a test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue

from modelreg.transport.limits import Limits
from modelreg.transport.server import Server
from tests.support import h2client
from tests.support.h2client import H2Client
from tests.transport.service import State, make_server, path


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Connections within the process."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](100)
        self.closed = False

    async def connect(self) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        await self.offer(theirs)
        return ours

    async def offer(self, stream: trio.abc.Stream) -> None:
        """A connection over any stream."""
        await self._send.send(stream)

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self.closed = True


@attrs.define
class Serving:
    """A server that runs."""

    server: Server
    state: State
    listener: MemoryListener
    stopped: trio.Event
    nursery: trio.Nursery

    async def connect(self, values: dict[int, int] | None = None) -> H2Client:
        client = H2Client(await self.listener.connect())
        await client.start(values)
        return client


@asynccontextmanager
async def serving(limits: Limits | None = None) -> AsyncIterator[Serving]:
    state = State()
    listener = MemoryListener()
    stopped = trio.Event()
    server = make_server(state, limits)

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        await server.serve([listener], task_status=task_status)
        stopped.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield Serving(server, state, listener, stopped, nursery)
        nursery.cancel_scope.cancel()


def value(content: bytes) -> bytes:
    return BytesValue(value=content).SerializeToString()


async def begin(client: H2Client, method: str, body: bytes = b"", timeout: bytes | None = None) -> int:
    """A call whose request is complete."""
    stream_id = await client.open(path(method), [] if timeout is None else [(b"grpc-timeout", timeout)])
    await client.send(h2client.data(stream_id, h2client.message(value(body)), end_stream=True))
    return stream_id
