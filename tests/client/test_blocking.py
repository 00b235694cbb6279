"""The blocking twin: the same in programs without an event loop, from any number of threads."""

from __future__ import annotations

import gc
import inspect
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import modelreg.client
import modelreg.client.blocking as cogment
from tests.client.relay import relay_to
from tests.support.server import ServerProgram


@pytest.fixture
def context(backend: str) -> Iterator[Any]:
    with cogment.Context("test", backend="trio" if backend == "trio" else "asyncio") as made:
        yield made


@pytest.fixture
def registry(context: Any, url: str) -> Any:
    return context.get_model_registry_v2(cogment.Endpoint(url))


def test_every_call(registry: Any, name: str, tmp_path: Path) -> None:
    assert registry.has_specs()
    first = registry.store_model(name, b"one", {"a": "b"})
    second = registry.publish_model(name, iter([b"t", b"wo"]), size=3)
    assert (first.iteration, first.stored, second.iteration, second.stored) == (1, True, 2, False)
    assert registry.retrieve_model(name) == b"two"
    assert registry.retrieve_model(name, 3) is None
    assert registry.list_iterations(name) == [first, second]
    assert registry.get_iteration_info(name, -1) == second
    registry.update_model_info(name, {"c": "d"})
    assert registry.get_model_info(name).properties == {"c": "d"}
    assert name in [model.name for model in registry.list_models()]
    buffer = bytearray(3)
    assert registry.download_model(name, buffer, 1) == first
    assert buffer == b"one"
    registry.download_model(name, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert "modelreg" in registry.versions()
    assert registry.status() == {}
    registry.remove_model(name)
    assert registry.get_model_info(name) is None
    with pytest.raises(cogment.NotFound):
        registry.retrieve_model(name)


def test_updates(registry: Any, name: str) -> None:
    registry.publish_model(name, b"1")
    with registry.iteration_updates(name) as updates:
        assert next(updates).iteration == 1
        threading.Thread(target=lambda: [registry.publish_model(name, b"") for _ in range(3)]).start()
        for info in updates:
            if info.iteration == 4:
                break
    with registry.iteration_updates(name, after=2) as updates:
        assert [next(updates).iteration for _ in range(2)] == [3, 4]


def test_latest(registry: Any, name: str) -> None:
    registry.update_model_info(name, {})
    latest = registry.track_latest_model(name, bytes.decode)
    assert latest.name == name
    assert latest.is_deserialized()
    assert not latest.is_available()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(latest.get)
        first = registry.publish_model(name, b"one")
        assert waiting.result() == ("one", first)
    latest.wait_for_available()
    registry.publish_model(name, b"two")
    latest.wait_for_newer(1)
    assert latest.get()[0] == "two"


def test_many_threads(registry: Any, name: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        infos = list(pool.map(lambda number: registry.publish_model(name, b"%d" % number), range(40)))
        assert sorted(info.iteration for info in infos) == list(range(1, 41))
        found = list(pool.map(lambda info: registry.retrieve_model(name, info.iteration), infos))
    assert found == [b"%d" % number for number in range(40)]


def test_nothing_is_left_behind(backend: str, url: str, name: str, no_descriptor_left: None) -> None:
    with cogment.Context("test", backend="trio" if backend == "trio" else "asyncio") as context:
        registry = context.get_model_registry_v2(cogment.Endpoint(url))
        registry.publish_model(name, b"")
        registry.track_latest_model(name).get()
        next(registry.iteration_updates(name))
    gc.collect()


def test_signatures_are_those_of_the_original() -> None:
    for kind in ("ModelRegistry", "LatestModel"):
        original, twin = getattr(modelreg.client, kind), getattr(cogment, kind)
        for method, function in inspect.getmembers(original, inspect.isfunction):
            if not method.startswith("_") and method != "now":
                theirs = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
                ours = inspect.signature(getattr(twin, method)).parameters.items()
                assert {name: parameter.default for name, parameter in ours} == theirs, method
    assert set(modelreg.client.__all__) - {"Context"} <= set(cogment.__all__)


def test_an_interrupt_ends_the_call(server: ServerProgram, name: str) -> None:
    """Ctrl-C while a call waits: it's cancelled, and the program ends, without waiting for anything."""
    with relay_to(server.port) as relay:
        program = f"""
            import modelreg.client.blocking as cogment
            registry = cogment.Context("me").get_model_registry_v2(cogment.Endpoint({relay.url!r}))
            registry.publish_model({name!r}, b"1")
            updates = registry.iteration_updates({name!r})
            next(updates)
            try:
                print("waiting", flush=True)
                next(updates)
            except KeyboardInterrupt:
                print("interrupted", len(registry.list_iterations({name!r})), flush=True)
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[0] == "interrupted 1\n"
            assert process.returncode == 0


def lines_of(program: str, *options: str) -> list[str]:
    """What a Python program prints, which has to end well."""
    command = [sys.executable, *options, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_after_a_fork_it_says_so(url: str, name: str, backend: str) -> None:
    program = f"""
        import os
        import modelreg.client.blocking as cogment

        context = cogment.Context("me", backend={backend!r})
        registry = context.get_model_registry_v2(cogment.Endpoint({url!r}))
        registry.publish_model({name!r}, b"1")
        updates = registry.iteration_updates({name!r})
        next(updates)
        latest = registry.track_latest_model({name!r})
        latest.get()
        child = os.fork()
        if child == 0:
            for call in (
                registry.list_models, updates.__next__, updates.close, latest.get, latest.is_available, registry.close,
                latest.wait_for_available, lambda: context.get_model_registry_v2(cogment.Endpoint({url!r})), context.close,
            ):
                try:
                    call()
                except RuntimeError as error:
                    print(error, flush=True)
            try:
                with context:
                    raise SystemExit(7)
            finally:
                del call, context, registry, updates, latest
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(registry.list_iterations({name!r})))
        context.close()
    """
    *said, last = lines_of(program, "-W", "ignore")
    assert len(said) == 9
    assert all("before a fork" in line for line in said)
    assert last == "7 1"


def test_closing_twice_and_use_after_it(backend: str, url: str, name: str) -> None:
    context = cogment.Context("test", backend="trio" if backend == "trio" else "asyncio")
    registry = context.get_model_registry_v2(cogment.Endpoint(url))
    registry.publish_model(name, b"1")
    updates = registry.iteration_updates(name)
    next(updates)
    latest = registry.track_latest_model(name)
    latest.get()
    with registry, context:
        context.close()
        context.close()
    updates.close()
    for call in (
        registry.list_models,
        updates.__next__,
        lambda: latest.wait_for_newer(1),
        lambda: context.get_model_registry_v2(cogment.Endpoint(url)),
    ):
        with pytest.raises(cogment.Unavailable, match="closed: make another Context"):
            call()
    with pytest.raises(RuntimeError, match="the client was closed"):
        latest.get()


def test_calls_that_run_end_when_it_is_closed(backend: str, url: str, name: str) -> None:
    context = cogment.Context("test", backend="trio" if backend == "trio" else "asyncio")
    registry = context.get_model_registry_v2(cogment.Endpoint(url))
    registry.publish_model(name, b"1")
    updates = registry.iteration_updates(name)
    next(updates)
    begun = threading.Event()

    def pieces() -> Iterator[bytes]:
        begun.set()
        yield b"1"
        threading.main_thread().join(0.01)
        yield b"2"

    with ThreadPoolExecutor(3) as pool:
        calls: list[Future[Any]] = [
            pool.submit(next, updates),
            pool.submit(registry.wait_for_model, f"{name} to come", 60),
            pool.submit(registry.store_model, name, pieces(), size=2**20),
        ]
        begun.wait(30)
        context.close()
        for call in calls:
            with pytest.raises(cogment.Unavailable, match="closed"):
                call.result(30)


def test_contexts_that_are_forgotten_leave_nothing(backend: str, url: str, name: str, no_descriptor_left: None) -> None:
    before = set(threading.enumerate())
    for number in range(10):
        context = cogment.Context("test", backend="trio" if backend == "trio" else "asyncio")
        registry = context.get_model_registry_v2(cogment.Endpoint(url))
        registry.publish_model(f"{name} {number}", b"1")
        updates = registry.iteration_updates(f"{name} {number}")
        del context, registry  # what is still in use goes on
        gc.collect()
        assert next(updates).iteration == 1
        latest = updates  # the last reference but one
        del updates, latest
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)


def test_a_context_that_can_not_start_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(threading.Thread, "start", start)
    said = "can't create new thread at interpreter shutdown"
    with pytest.raises(RuntimeError, match="make it earlier"):
        cogment.Context("test")
    said = "can't start new thread"
    with pytest.raises(RuntimeError, match="can't start new thread"):
        cogment.Context("test")


@pytest.mark.parametrize("threads", ["threads", "no threads"])
def test_when_the_main_thread_has_ended(
    backend: str, server: ServerProgram, name: str, tmp_path: Path, threads: str
) -> None:
    """A thread that lives longer than the main one, and functions of atexit; where Python starts no threads any more, too."""
    program = f"""
        import atexit
        import concurrent.futures
        import threading
        from pathlib import Path
        import modelreg.client.blocking as cogment

        def no_threads():
            if {threads!r} == "no threads":  # as Python 3.12 does it
                def start(thread):
                    raise RuntimeError("can't create new thread at interpreter shutdown")
                threading.Thread.start = start

        context = cogment.Context("me", backend={backend!r})
        data = bytes(1000000)

        def use(what):
            registry = context.get_model_registry_v2(cogment.Endpoint("grpc://localhost:{server.port}"))
            path = Path({str(tmp_path)!r}, what)
            path.write_bytes(data)
            registry.store_model({name!r}, data)
            registry.store_model({name!r}, path)
            registry.store_model({name!r}, iter([data]), size=len(data))
            assert registry.retrieve_model({name!r}) == data
            registry.download_model({name!r}, path)
            assert path.read_bytes() == data
            assert registry.track_latest_model({name!r}, len).get()[0] == len(data)
            print(what, flush=True)

        def late(ended):
            ended.wait()
            no_threads()
            use("late")

        ended = threading.Event()
        threading._register_atexit(ended.set)  # when no executor takes work any more
        threading.Thread(target=late, args=[ended]).start()
        atexit.register(use, "at exit")
    """
    assert lines_of(program) == ["late", "at exit"]


def test_progress_callbacks_must_not_call_the_client(registry: Any, name: str) -> None:
    def progress(done: int, size: int) -> None:
        registry.list_models()

    with pytest.raises(RuntimeError):
        registry.publish_model(name, b"data", progress=progress)
