"""Row 6: no file descriptors left. Connections never take more than half of them; where something else has, accepting pauses, and what
runs goes on."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from tests.clients.calls import OpenRequest, body, header
from tests.faults.crash import Launcher, Server
from tests.faults.scenarios import MEDIUM, publish, store
from tests.support.server import PATIENCE

FILES = 64


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


def test_uploads_take_all(launcher: Launcher, tmp_path: Path) -> None:
    """Those that find none left are refused, connections wait, and what has one goes on; then all is as before."""
    server = launcher.start(tmp_path / "archive", files=FILES)
    with server.calls() as calls, ExitStack() as stack:
        calls.create("m")
        uploads = []
        for _ in range(FILES):
            request = stack.enter_context(
                OpenRequest(header("m", data_size=len(MEDIUM), archived=False), body(MEDIUM[:-1]))
            )
            uploads.append((request, calls.CreateVersion.future(request)))
        calls.wait_until(lambda: any(call.done() for _, call in uploads))
        with grpc.insecure_channel(server.address) as channel:
            waiting = grpc.channel_ready_future(channel)
            server.wait_for_log("accept failed, trying again until it works")
            assert not waiting.done()
            given = []
            for request, call in uploads:
                request.send(body(MEDIUM[-1:]))
                request.close()
                try:
                    given.append(call.result().version_info.version_number)
                except grpc.RpcError as error:
                    failed: Any = error
                    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    assert "too many files are open" in failed.details()
            assert sorted(given) == list(range(1, len(given) + 1))
            assert FILES // 4 < len(given) < FILES
            waiting.result(PATIENCE)
        assert store(calls, MEDIUM) == {len(given) + 1}
    assert server.stop() == 0
