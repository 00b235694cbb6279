"""Row 30: random bytes, and valid frames in random order: never an unhandled exception, never a hang.

Here with everything around it: the program, and the transport's tasks. ``tests/transport`` has the same for each of its parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modelreg.transport import frames
from tests.faults.abuse import HELLO, WATCH, back_at, download, fields, settled, upload
from tests.faults.abuse import path as real_path
from tests.faults.crash import Launcher, Server
from tests.faults.scenarios import MEDIUM, publish, store
from tests.support.h2client import H2Client, block, connected, data, headers, message, request_fields, settings
from tests.transport.memory import serving
from tests.transport.service import path

IDS = st.sampled_from([1, 3, 5])


def steps(methods: list[str], bodies: list[bytes], path_of: Callable[[str], str]) -> st.SearchStrategy[list[bytes]]:
    """Frames that may begin calls, give them something, reset them, and anything else."""
    return st.lists(
        st.one_of(
            st.builds(
                lambda stream_id, method, end: headers(
                    stream_id, block(request_fields(path_of(method))), end_stream=end
                ),
                IDS,
                st.sampled_from(methods),
                st.sampled_from([False, False, True]),
            ),
            st.builds(data, IDS, st.sampled_from(bodies), end_stream=st.booleans()),
            st.builds(frames.rst_stream, IDS, st.just(8)),
            st.builds(frames.window_update, IDS | st.just(0), st.integers(0, 100_000)),
            st.builds(
                settings, st.dictionaries(st.sampled_from([1, 4, 5]), st.sampled_from([0, 16384, 70_000]), max_size=2)
            ),
            st.builds(frames.ping, st.just(bytes(8))),
            st.builds(frames.goaway, st.just(0), st.just(0)),
            st.binary(max_size=30),
        ),
        max_size=15,
    )


REAL_METHODS = [
    "CreateOrUpdateModel",
    "DeleteModel",
    "RetrieveModels",
    "CreateVersion",
    "RetrieveVersionInfos",
    "RetrieveVersionData",
    "VersionUpdate",
    "Status",
    "Nothing",
]
REAL_BODIES = [
    message(b""),
    WATCH,
    download(1),
    download(-1),
    upload(b"stored"),
    upload(b"transient", archived=False),
    upload(MEDIUM)[:1000],
    message(b"\x0a\x03\x0a\x01m"),  # CreateOrUpdateModel, of the same model
    b"\0\0",
    message(b"\xff"),
]


async def send_in_pieces(stream: trio.abc.HalfCloseableStream, sent: bytes, piece: int, reads: bool) -> None:
    """Send it, reading or not, and leave."""
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            try:
                async for _ in stream:
                    pass
            except trio.BrokenResourceError:
                pass

        if reads:
            nursery.start_soon(read)
        try:
            for start in range(0, len(sent), piece):
                await stream.send_all(sent[start : start + piece])
                if start % 3 == 0:
                    await trio.testing.wait_all_tasks_blocked()
        except trio.BrokenResourceError:
            pass
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


class Program:
    """The server, started for the first example; hypothesis runs the others against the same one."""

    def __init__(self, launcher: Launcher, directory: Path) -> None:
        self.server: Server = launcher.start(directory / "archive")
        with self.server.calls() as calls:
            calls.create("m")
            store(calls, MEDIUM)
            publish(calls, MEDIUM[:-1])


@pytest.fixture
def program(launcher: Launcher, memory_path: Path) -> Program:
    return Program(launcher, memory_path)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps(REAL_METHODS, REAL_BODIES, real_path), st.integers(1, 200), st.booleans())
async def test_any_frames_at_the_program(program: Program, sent: list[bytes], piece: int, reads: bool) -> None:
    server = program.server
    async with connected(server.port) as other:
        before = await settled(server)
        with trio.fail_after(20):
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            await send_in_pieces(stream, HELLO + b"".join(sent), piece, reads)
            await back_at(server, before)
            assert (await other.call(real_path("Status"), b"")).status == 0
    assert not [line for line in server.log if line["level"] != "info"]


async def test_random_bytes(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    before = await settled(server)
    echo = headers(1, fields("Status"))
    with launcher.canary(server):
        for prefix in (b"", frames.PREFACE, HELLO, HELLO + echo, HELLO + headers(1, b"", end_headers=False)):
            for _ in range(20):
                client = H2Client(await trio.open_tcp_stream("127.0.0.1", server.port))
                await client.try_send(prefix + os.urandom(3000))
                if not prefix:
                    await client.until_closed()
                await client.aclose()
    await back_at(server, before)
    assert not [line for line in server.log if line["level"] != "info"]


METHODS = ["Echo", "Watch", "Count", "Sum", "Chat", "Upload", "Hold", "Refuse", "Wait", "FailLate"]
BODIES = [message(b""), message(b"\x0a\x041 10"), message(b"!"), message(b"\x0a\x08100 3000"), b"\0\0"]


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps(METHODS, BODIES, path), st.integers(1, 200), st.booleans())
async def test_any_frames_at_the_transport(
    caplog: pytest.LogCaptureFixture, sent: list[bytes], piece: int, reads: bool
) -> None:
    async with serving() as serve:
        other = await serve.connect()
        with trio.fail_after(5):
            stream = await serve.listener.connect()
            assert isinstance(stream, trio.abc.HalfCloseableStream)
            await send_in_pieces(stream, HELLO + b"".join(sent), piece, reads)
            assert (await other.call(path("Echo"), b"")).status == 0
            await trio.testing.wait_all_tasks_blocked()
            while serve.server.statistics().connections > 1:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert serve.state.running == 0
        assert serve.server.statistics().streams == 0
        await other.aclose()
    assert not caplog.records
