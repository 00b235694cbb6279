"""Row 11: a model is deleted while it's downloaded; content is collected while it's stored again. Full bytes, and no blob is ever lost."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from modelreg.storage.layout import Layout
from tests.clients.calls import Calls
from tests.faults.crash import COUNT, HOLD, Launcher
from tests.faults.scenarios import LARGE, MEDIUM, SMALL, blobs, delete, publish, store

ROUNDS = 60


@pytest.mark.parametrize("add", [store, publish])
def test_a_download_goes_on(launcher: Launcher, memory_path: Path, add: Callable[[Calls, bytes], set[int]]) -> None:
    """More than the client's windows hold: most of it is still to be read when the model goes."""
    archive = memory_path / "archive"
    server = launcher.start(archive, "--sent_version_chunk_size=100000")
    with server.calls() as calls, server.calls() as reading:
        calls.create("m")
        add(calls, LARGE)
        download = reading.download("m")
        received = hashlib.sha256(next(download).data_chunk)
        delete(calls)
        assert calls.model_ids() == []
        calls.create("m")
        store(calls, SMALL)
        for chunk in download:
            received.update(chunk.data_chunk)
        assert received.digest() == hashlib.sha256(LARGE).digest()
        calls.wait_until(lambda: len(blobs(archive)) == 1)  # nobody holds the other any more


@pytest.mark.parametrize("data", [SMALL, MEDIUM], ids=["small", "medium"])
def test_collecting_never_takes_what_is_stored(launcher: Launcher, memory_path: Path, data: bytes) -> None:
    """Three store the same content, delete it, and store it again, all the time: what one has stored is there until that one deletes it."""
    archive = memory_path / "archive"
    server = launcher.start(archive)
    barrier = threading.Barrier(3)

    def store_and_delete(model_id: str) -> None:
        with server.calls() as calls:
            barrier.wait()
            for turn in range(ROUNDS):
                calls.create(model_id)
                assert store(calls, data, model_id) == {1}
                if turn % 2:
                    publish(calls, data, model_id)
                assert calls.data(model_id, -1) == data
                assert Layout(archive).blob(hashlib.sha256(data).digest()).is_file()
                delete(calls, model_id)

    with ThreadPoolExecutor(3) as threads:
        for _ in threads.map(store_and_delete, ["a", "b", "c"]):
            pass
    with server.calls() as calls:
        calls.wait_until(lambda: not blobs(archive))
        assert not list(Layout(archive).tmp.iterdir())
        assert calls.status("stored_bytes", "damaged") == {"stored_bytes": "0", "damaged": "0"}


@pytest.mark.parametrize("size", [500, 500_000], ids=["small", "medium"])
def test_a_store_that_meets_a_collection(launcher: Launcher, memory_path: Path, size: int) -> None:
    """Blobs are just being deleted when the same contents are stored again."""
    archive = memory_path / "archive"
    control = launcher.control
    server = launcher.start(archive)
    contents = [bytes([number]) * size for number in range(8)]
    with server.calls() as calls, ThreadPoolExecutor(1 + len(contents)) as threads:
        for model_id in ("counted", "m", "beside"):
            calls.create(model_id)
        for content in contents:
            store(calls, content, "counted")
        control.arm(archive, COUNT, only="unlink")
        delete(calls, "counted")
        unlinks = control.calls
        calls.create("going")
        for content in contents:
            store(calls, content, "going")
        control.arm(archive, HOLD, at=unlinks - len(contents) + 1, only="unlink")
        try:
            deletion = threads.submit(delete, calls, "going")
            calls.wait_until(lambda: control.seen == "unlink")
            stores = [threads.submit(store, calls, content) for content in contents]
            store(calls, b"comes after them", "beside")
        finally:
            control.disarm()
        deletion.result()
        for content, stored in zip(contents, stores, strict=True):
            (number,) = stored.result()
            assert calls.data("m", number) == content
        assert len(blobs(archive)) == len(contents) + 1


def test_readers_of_a_model_that_comes_and_goes(launcher: Launcher, memory_path: Path) -> None:
    server = launcher.start(memory_path / "archive")
    stop = threading.Event()
    outcomes: list[grpc.StatusCode] = []

    def read() -> None:
        with server.calls() as calls:
            while not stop.is_set():
                try:
                    assert calls.data("m") == MEDIUM
                except grpc.RpcError as error:
                    outcomes.append(error.code())
                else:
                    outcomes.append(grpc.StatusCode.OK)

    with ThreadPoolExecutor(2) as threads, server.calls() as calls:
        readers = [threads.submit(read) for _ in range(2)]
        try:
            for _ in range(ROUNDS):
                calls.create("m")
                store(calls, MEDIUM)
                delete(calls)
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert set(outcomes) <= {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
