"""A client of one event loop or process that is used in another: an error says so, where it would wait for ever."""

from __future__ import annotations

import gc
import inspect
import os
import threading
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread

import modelreg.client as cogment
from tests.client.conftest import Run

Calls = dict[str, Callable[[], Awaitable[object]]]

SYNCHRONOUS = {"has_specs", "now", "is_available", "is_deserialized", "iteration_updates"}


async def calls_of(context: cogment.Context, url: str, name: str) -> Calls:
    """Every method that an event loop is needed for, of objects that are in use."""
    registry = await context.get_model_registry_v2(cogment.Endpoint(url), patience=0)
    await registry.publish_model(name, b"1")
    latest = await registry.track_latest_model(name)
    await latest.get()
    updates = registry.iteration_updates(name)
    await updates.__anext__()
    untouched = registry.iteration_updates(name)
    calls: Calls = {
        "store_model": lambda: registry.store_model(name, b"1"),
        "publish_model": lambda: registry.publish_model("unknown", iter([b"1"]), size=1),
        "retrieve_model": lambda: registry.retrieve_model(name),
        "download_model": lambda: registry.download_model(name, bytearray(1)),
        "remove_model": lambda: registry.remove_model(name),
        "list_models": registry.list_models,
        "list_iterations": lambda: registry.list_iterations(name),
        "get_iteration_info": lambda: registry.get_iteration_info(name, -1),
        "update_model_info": lambda: registry.update_model_info(name, {}),
        "get_model_info": lambda: registry.get_model_info(name),
        "track_latest_model": lambda: registry.track_latest_model(name),
        "wait_for_model": lambda: registry.wait_for_model(name, 1),
        "status": registry.status,
        "versions": registry.versions,
        "close": registry.close,
        "get": latest.get,
        "wait_for_available": latest.wait_for_available,
        "wait_for_newer": lambda: latest.wait_for_newer(1),
        "__anext__": updates.__anext__,
        "aclose": updates.aclose,
        "__anext__ of others": untouched.__anext__,
        "Context.close": context.close,
    }
    public = {
        method
        for kind in (cogment.ModelRegistry, cogment.LatestModel)
        for method, _ in inspect.getmembers(kind, inspect.isfunction)
        if not method.startswith("_")
    }
    assert public - SYNCHRONOUS <= calls.keys()
    return calls


async def errors_of(calls: Calls) -> dict[str, str]:
    """What each call raises; those that do something, or hang, aren't there."""
    found = {}
    for name, call in calls.items():
        with anyio.move_on_after(5):
            try:
                await call()
            except RuntimeError as error:
                found[name] = str(error)
    return found


def test_another_event_loop(run: Run, backend: str, url: str, name: str) -> None:
    found: dict[str, str] = {}

    async def main() -> None:
        async with cogment.Context("test") as context:
            calls = await calls_of(context, url, name)

            def elsewhere() -> None:
                found.update(anyio.run(errors_of, calls, backend=backend))

            await anyio.to_thread.run_sync(elsewhere)
            assert found.keys() == calls.keys()
            assert await calls["retrieve_model"]() == b"1"  # and here all goes on

    run(main)
    assert all("get_model_registry_v2 on each event loop" in said for said in found.values())


def test_an_event_loop_that_has_ended(run: Run, backend: str, url: str, name: str) -> None:
    async def before() -> Calls:
        return await calls_of(cogment.Context("test"), url, name)

    async def main() -> dict[str, str]:
        return await errors_of(calls)

    calls = run(before)
    assert run(main).keys() == calls.keys()


def test_a_registry_for_each_event_loop(run: Run, backend: str, url: str, name: str) -> None:
    context = cogment.Context("test")

    async def main() -> None:
        registry = await context.get_model_registry_v2(cogment.Endpoint(url))
        await registry.publish_model(name, b"1")
        await registry.close()

    run(main)
    run(main)


def test_a_child_process_with_an_event_loop_of_its_own(run: Run, backend: str, url: str, name: str) -> None:
    async def main() -> list[str]:
        async with cogment.Context("test") as context:
            calls = await calls_of(context, url, name)
            reader, writer = os.pipe()
            with warnings.catch_warnings():  # Python 3.12 warns of threads in the parent
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                try:

                    def own_loop() -> None:
                        with open(writer, "w") as pipe:
                            pipe.writelines(
                                f"{said}\n" for said in anyio.run(errors_of, calls, backend=backend).values()
                            )

                    thread = threading.Thread(target=own_loop)  # the main one is in the parent's event loop
                    thread.start()
                    thread.join()
                finally:
                    os._exit(0)
            os.close(writer)
            with open(reader) as pipe:  # noqa: ASYNC230
                said = pipe.read().splitlines()
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
            assert len(said) == len(calls)
            assert await calls["retrieve_model"]() == b"1"
            return said

    assert all("before a fork" in line for line in run(main))


def test_registries_that_are_forgotten_leave_no_connection(run: Run, url: str, name: str) -> None:
    def sockets() -> int:
        return sum(
            os.readlink(link).startswith("socket:") for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
        )

    async def main() -> None:
        before = sockets()
        for number in range(10):
            registry = await cogment.Context("test").get_model_registry_v2(cogment.Endpoint(url))
            await registry.publish_model(f"{name} {number}", b"1")
            updates = registry.iteration_updates(f"{name} {number}")
            del registry
            gc.collect()
            assert (await updates.__anext__()).iteration == 1  # what is in use goes on
            del updates
        gc.collect()
        await anyio.wait_all_tasks_blocked()
        assert sockets() == before

    run(main)


def test_a_context_keeps_no_registry_that_was_closed(run: Run, url: str) -> None:
    async def main() -> None:
        async with cogment.Context("test") as context:
            for _ in range(3):
                async with await context.get_model_registry_v2(cogment.Endpoint(url)) as registry:
                    await registry.versions()
            assert registry.closed
            assert context._registries == [registry]
            await context.close()
            assert context._registries == []

    run(main)
