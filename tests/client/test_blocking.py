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
from concurrent.futures import ThreadPoolExecutor
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


def test_after_a_fork_it_says_so(url: str) -> None:
    program = f"""
        import os
        import modelreg.client.blocking as cogment
        registry = cogment.Context("me").get_model_registry_v2(cogment.Endpoint({url!r}))
        registry.list_models()
        if os.fork() == 0:
            try:
                registry.list_models()
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        os.wait()
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    assert "before a fork" in subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def test_progress_callbacks_must_not_call_the_client(registry: Any, name: str) -> None:
    def progress(done: int, size: int) -> None:
        registry.list_models()

    with pytest.raises(RuntimeError):
        registry.publish_model(name, b"data", progress=progress)
