"""Row 6: few file descriptors. Connections never take more than half of them, nor uploads and downloads of one client what others need."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

from tests.clients.calls import OpenRequest, body, header
from tests.faults.abuse import begin, download, settled, until
from tests.faults.crash import Launcher, Server
from tests.faults.scenarios import MEDIUM, publish, store
from tests.support.h2client import connected

FILES = 64

# What one connection's calls may have of them: a fifth is for calls, a quarter of that for one.
SHARE = 3


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def test_more_connections_than_descriptors(launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(tmp_path / "archive", files=FILES)
    port = int(server.address.rpartition(":")[2])
    with server.calls() as calls:
        calls.create("m")
        with OpenRequest(header("m", data_size=2 * len(MEDIUM)), body(MEDIUM)) as request:
            running = calls.CreateVersion.future(request)
            connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * FILES)]
            try:
                calls.wait_until(lambda: descriptors(server) > FILES // 2)
                # Every kind of work goes on.
                assert store(calls, MEDIUM) == {1}
                assert publish(calls, MEDIUM[:-1]) == {2}
                assert calls.data("m", 1) == MEDIUM
                assert calls.data("m", 2) == MEDIUM[:-1]
                request.send(body(MEDIUM))
                request.close()
                assert running.result().version_info.version_number == 3
                assert descriptors(server) < FILES
            finally:
                for connection in connections:
                    connection.close()
    with server.calls() as calls:  # those that waited are gone, and a new one is served
        assert calls.numbers("m") == [1, 2, 3]


def test_large_transient_versions_never_take_all(launcher: Launcher, tmp_path: Path) -> None:
    """Each has a file in memory, and the oldest go before there are too many of them."""
    server = launcher.start(tmp_path / "archive", "--cache_max_items=1000", files=FILES)
    with server.calls() as calls:
        calls.create("m")
        publish(calls, b"small")
        for number in range(FILES):
            publish(calls, MEDIUM + bytes([number]))
        assert calls.numbers("m") == [1, *range(FILES + 2 - FILES // 4, FILES + 2)]  # small ones take none
        assert calls.data("m", -1) == MEDIUM + bytes([FILES - 1])
        assert store(calls, MEDIUM) == {FILES + 2}
        calls.wait_until(lambda: descriptors(server) < FILES // 2)


def test_uploads_leave_files_to_others(launcher: Launcher, tmp_path: Path) -> None:
    """Those of one client that find none left wait for each other; others upload and download meanwhile."""
    server = launcher.start(tmp_path / "archive", files=FILES)
    with server.calls() as calls, ExitStack() as stack:
        calls.create("m")
        before = descriptors(server)
        uploads = []
        for number in range(2 * FILES):
            request = stack.enter_context(
                OpenRequest(header("m", data_size=len(MEDIUM), archived=number % 2 == 0), body(MEDIUM[:-1]))
            )
            uploads.append((request, calls.CreateVersion.future(request)))
        calls.wait_until(lambda: descriptors(server) >= before + SHARE)
        with server.calls() as others:
            assert store(others, MEDIUM) == {1}
            assert others.data("m", 1) == MEDIUM
        assert descriptors(server) <= before + SHARE + 1
        for request, _ in uploads:
            request.send(body(MEDIUM[-1:]))
            request.close()
        given = {upload.result().version_info.version_number for _, upload in uploads}
        assert given == set(range(2, 2 * FILES + 2))
    assert server.stop() == 0


async def test_downloads_leave_files_to_others(launcher: Launcher, tmp_path: Path) -> None:
    """To a client that reads none of them."""
    server = launcher.start(tmp_path / "archive", files=FILES)
    with server.calls() as calls:
        calls.create("m")
        assert store(calls, MEDIUM) == {1}
    async with connected(server.port, credit=False) as stalled:
        before = (await settled(server)).descriptors
        for _ in range(2 * FILES):
            await begin(stalled, "RetrieveVersionData", download(1))
        await until(lambda: descriptors(server) >= before + SHARE)
        await settled(server)
        assert descriptors(server) <= before + SHARE
        async with connected(server.port) as other:
            reply = await other.finished(await begin(other, "RetrieveVersionData", download(1)))
            assert reply.status == 0
