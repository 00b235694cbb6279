"""A download whose deadline passes while it's under way: the client hears of it, and the server lets go of everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import Code, connected, fails
from tests.support import h2client
from tests.support.server import PATIENCE, ServerProgram, StartServer

# More than a client and the sockets between take unread.
SIZE = 96 << 20
REQUEST = api.RetrieveVersionDataRequest(model_id="policy", version_number=-1)


@pytest.fixture
def server(start_server: StartServer) -> ServerProgram:
    server = start_server()
    with connected(server.address) as calls:
        calls.create("policy")
        calls.store("policy", *[bytes(1 << 20)] * (SIZE >> 20))
    return server


def open_blobs(server: ServerProgram) -> int:
    """How many of the server's descriptors are of stored data."""
    found = 0
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            found += "/blobs/sha256/" in os.readlink(link)
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def test_a_client_that_reads_too_slowly(server: ServerProgram) -> None:
    with connected(server.address) as calls:
        chunks = calls.RetrieveVersionData(REQUEST, timeout=2)
        assert len(next(chunks).data_chunk) > 1 << 20
        assert open_blobs(server)
        # Now it reads nothing, until its time is over.
        calls.wait_until(lambda: not chunks.is_active())
        with fails(Code.DEADLINE_EXCEEDED):
            next(chunks)
        calls.wait_until(lambda: open_blobs(server) == 0)


async def test_a_client_that_leaves_the_deadline_to_the_server(server: ServerProgram) -> None:
    async with h2client.connected(server.port, credit=False) as client:
        stream_id = client.new_id()
        fields = h2client.request_fields("/cogmentAPI.ModelRegistrySP/RetrieveVersionData", [(b"grpc-timeout", b"2S")])
        await client.send(
            h2client.headers(stream_id, h2client.block(fields)),
            h2client.data(stream_id, h2client.message(REQUEST.SerializeToString()), end_stream=True),
        )
        reply = client.reply(stream_id)
        await client.until(lambda: len(reply.body) == 65535)  # all that its windows allow
        assert open_blobs(server)
        await client.finished(stream_id)
        assert (reply.status, reply.text) == (4, "the call's deadline is over")
        with trio.fail_after(PATIENCE):
            while open_blobs(server):
                await client.call("/cogmentAPI.ModelRegistrySP/Status", b"")
