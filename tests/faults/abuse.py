"""What tests of hostile and broken clients share: a server that is looked at from outside, and requests as raw frames.

The server is the program itself. Its descriptors, memory, work and temporary files are counted by what the kernel says, its tasks by
an instrument of Trio's (see ``launcher.py``).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio
import trio.testing
from google.protobuf.message import Message

from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.transport import frames
from tests.clients.calls import body, header, model_info
from tests.faults.crash import Server
from tests.support import measures
from tests.support.h2client import (
    SETTINGS_INITIAL_WINDOW_SIZE,
    Fields,
    H2Client,
    block,
    connected,
    data,
    headers,
    message,
    request_fields,
    settings,
)
from tests.support.measures import Stopwatch
from tests.support.server import PATIENCE

HELLO = frames.PREFACE + settings({})

LARGEST_WINDOW = 2**31 - 1


def path(method: str) -> str:
    return f"/cogmentAPI.ModelRegistrySP/{method}"


def encoded(*messages: Message) -> bytes:
    """Messages as they are sent."""
    return b"".join(message(one.SerializeToString()) for one in messages)


def fields(method: str, extra: Fields = ()) -> bytes:
    """The header block of a call."""
    return block(request_fields(path(method), extra))


def watch(model_id: str = "m") -> bytes:
    return encoded(api.VersionUpdateRequest(model_id=model_id))


WATCH = watch()


def download(number: int = -1) -> bytes:
    return encoded(api.RetrieveVersionDataRequest(model_id="m", version_number=number))


def upload_begins(size: int, *, archived: bool = True, model_id: str = "m") -> bytes:
    """The header of an upload, and nothing of its data."""
    return encoded(header(model_id, data_size=size, archived=archived))


def upload(content: bytes, *, archived: bool = True) -> bytes:
    return upload_begins(len(content), archived=archived) + encoded(body(content))


@attrs.frozen
class Footprint:
    """What there is of a server."""

    tasks: int
    descriptors: int
    temporary_files: int

    @classmethod
    def of(cls, server: Server) -> Footprint:
        return cls(server.tasks, measures.descriptors(server.pid), len(temporary_files(server)))


def temporary_files(server: Server) -> list[str]:
    return os.listdir(server.archive_dir / "tmp")


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for what the server does in its own time."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


async def settled(server: Server) -> Footprint:
    """What there is of a server that nobody asks for anything."""
    before = None
    while before != (now := Footprint.of(server)):
        before = now
        await trio.testing.wait_all_tasks_blocked(0.05)
    return now


async def back_at(server: Server, before: Footprint, seconds: float = 1) -> None:
    """Everything is where it was, within so many seconds."""
    watch = Stopwatch(server.pid)
    while (now := Footprint.of(server)) != before:
        assert watch.seconds < seconds, f"{now}, and it was {before}"
        await trio.testing.wait_all_tasks_blocked(0.001)


async def begin(client: H2Client, method: str, sent: bytes, *, whole: bool = True, extra: Fields = ()) -> int:
    """Begin a call and send something of its request, or the whole of it."""
    stream_id = client.new_id()
    await client.send(headers(stream_id, fields(method, extra)), data(stream_id, sent, end_stream=whole))
    return stream_id


async def send_all(client: H2Client, stream_id: int, sent: bytes) -> None:
    """Send the rest of a request as the stream's window allows, until its end or that of the call. (A little may have been sent.)"""
    reply = client.reply(stream_id)
    window = client.server_settings[SETTINGS_INITIAL_WINDOW_SIZE] - 1000
    for start in range(0, len(sent), 16384):
        end = start + 16384
        await client.until(
            lambda end=end: reply.ended or reply.reset is not None or window + client.windows.get(stream_id, 0) >= end  # type: ignore[misc]
        )
        if reply.ended or reply.reset is not None:
            return
        await client.send(data(stream_id, sent[start:end], end_stream=end >= len(sent)))


async def call(client: H2Client, method: str, *messages: Message, extra: Fields = ()) -> bytes:
    """A call that goes well; the message of its reply."""
    reply = await client.finished(await begin(client, method, encoded(*messages), extra=extra))
    assert reply.status == 0, reply
    return reply.messages[0]


async def status(client: H2Client, name: str) -> int:
    reply = await call(client, "Status", common_pb2.StatusRequest(names=[name]))
    return int(common_pb2.StatusReply.FromString(reply).statuses[name])


async def create(client: H2Client, model_id: str = "m") -> None:
    await call(client, "CreateOrUpdateModel", model_info(model_id))


async def publish(client: H2Client, content: bytes = b"x", model_id: str = "m", **more: object) -> int:
    """A new transient version; its number."""
    version = header(model_id, data_size=len(content), archived=False, **more)
    reply = await call(client, "CreateVersion", version, body(content))
    return api.CreateVersionReply.FromString(reply).version_info.version_number


class Sibling:
    """A watch on the same connection as what goes wrong: it must go on as if nothing had."""

    def __init__(self, client: H2Client, stream_id: int) -> None:
        self._client = client
        self._stream_id = stream_id
        self._seen = 0

    async def hears(self) -> None:
        """A version that is published on its connection reaches it, and the server has nothing against the connection."""
        number = await publish(self._client, model_id="beside")
        self._seen += 1
        reply = self._client.reply(self._stream_id)
        await self._client.until(lambda: len(reply.messages) == self._seen)
        last = api.VersionUpdateReply.FromString(reply.messages[-1])
        assert last.version_info.version_number == number
        assert not reply.ended
        assert not self._client.goaways


@asynccontextmanager
async def with_sibling(server: Server) -> AsyncIterator[tuple[H2Client, Sibling]]:
    """A connection on which a watch runs; it still does at the end, and nothing else is left. A model "m" is there."""
    async with connected(server.port) as client:
        await create(client)
        await create(client, "beside")
        sibling = Sibling(client, await begin(client, "VersionUpdate", watch("beside")))
        await sibling.hears()
        before = await settled(server)
        yield client, sibling
        await sibling.hears()
        await back_at(server, before)


@asynccontextmanager
async def clients(server: Server, count: int, *, credit: bool = True) -> AsyncIterator[list[H2Client]]:
    """Connections, as many as are wanted."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(server.port, credit=credit)) for _ in range(count)]
