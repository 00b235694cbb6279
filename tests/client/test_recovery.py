"""What the client does when the connection, or the registry, goes away and comes back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

import modelreg.client as cogment
from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.api.model_registry_grpc import ModelRegistrySPServicer
from modelreg.client.transport.connection import Timing
from tests.client.conftest import Run
from tests.client.fakes import serving
from tests.client.relay import Relay, relay_to
from tests.support.server import ServerProgram, server_program

in_thread = anyio.to_thread.run_sync


@pytest.fixture
def relay(server: ServerProgram) -> Iterator[Any]:
    with relay_to(server.port) as made:
        yield made


@pytest.fixture
def program(archive_dir: Path) -> Iterator[Any]:
    """A server of the test's own that is started again on the same port."""
    with server_program(archive_dir) as made:
        made.options = (f"--port={made.port}",)
        yield made


@contextlib.asynccontextmanager
async def registry_at(url: str, **options: Any) -> AsyncIterator[Any]:
    async with cogment.Context("test") as context:
        yield await context.get_model_registry_v2(cogment.Endpoint(url), **options)


def test_calls_go_on_after_the_connection_was_cut(run: Run, relay: Relay, name: str) -> None:
    async def main() -> None:
        async with registry_at(relay.url) as registry:
            await registry.store_model(name, b"1")
            relay.cut()
            await registry.store_model(name, b"2")
            relay.cut()
            assert await registry.retrieve_model(name) == b"2"

    run(main)
    assert relay.connections == 3


def test_calls_go_on_after_a_restart(run: Run, program: ServerProgram) -> None:
    async def main() -> None:
        async with registry_at(f"grpc://{program.address}") as registry:
            await registry.store_model("policy", b"1")
            for end in (program.stop, program.kill):
                await in_thread(end)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(registry.store_model, "policy", b"while it's down")
                    await in_thread(program.start)
            assert [info.iteration for info in await registry.list_iterations("policy")] == [1, 2, 3]

    run(main)


def test_patience_ends(run: Run) -> None:
    async def main() -> None:
        async with registry_at("grpc://127.0.0.1:1", patience=0.2) as registry:
            for call in (
                registry.list_models,
                lambda: registry.store_model("policy", b""),
                lambda: registry.retrieve_model("policy"),
                lambda: anext(registry.iteration_updates("policy")),
            ):
                with pytest.raises(cogment.Unavailable, match=r"127\.0\.0\.1:1: .*refused"):
                    await call()

    run(main)


def test_a_store_whose_reply_was_lost_is_not_stored_twice(run: Run, relay: Relay, url: str, name: str) -> None:
    async def main() -> None:
        async with registry_at(relay.url) as registry, registry_at(url) as other:
            await registry.store_model(name, b"first")
            relay.mute()
            async with anyio.create_task_group() as tasks:
                results = []

                async def store() -> None:
                    results.append(await registry.store_model(name, b"second", {"a": "b"}))

                tasks.start_soon(store)
                async for info in other.iteration_updates(name):
                    if info.iteration == 2:  # it's committed, and the client doesn't know
                        break
                relay.cut()
            assert results == [info]
            assert [info.iteration for info in await other.list_iterations(name)] == [1, 2]

    run(main)


def test_the_same_across_a_restart_of_the_server(run: Run, program: ServerProgram) -> None:
    async def main() -> None:
        with relay_to(program.port) as relay:
            async with registry_at(relay.url) as registry, registry_at(f"grpc://{program.address}") as other:
                await registry.store_model("policy", b"first")
                relay.mute()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(registry.store_model, "policy", b"second")
                    async for info in other.iteration_updates("policy"):
                        if info.iteration == 2:
                            break
                    await in_thread(program.kill)
                    relay.cut()
                    await in_thread(program.start)
                assert [info.iteration for info in await other.list_iterations("policy")] == [1, 2]

    run(main)


class Forgetful(ModelRegistrySPServicer):
    """A registry as the original is: it remembers no requests. It takes all of an upload, and then loses the connection."""

    def __init__(self) -> None:
        self.uploads = 0
        self.lose_connections: Callable[[], None] = lambda: None

    async def RetrieveModels(self, message: Any) -> Any:
        return api.RetrieveModelsReply(
            model_infos=[api.ModelInfo(model_id=message.model_ids[0])], next_model_handle="1"
        )

    async def CreateVersion(self, messages: Any) -> None:
        async for _ in messages:
            pass
        self.uploads += 1
        self.lose_connections()
        await trio.sleep_forever()

    async def Version(self, message: Any) -> Any:
        return common_pb2.VersionInfo(versions=[common_pb2.VersionInfo.Version(name="cogment-api", version="2.22.0")])


def test_where_requests_are_not_remembered_the_outcome_is_unknown(run: Run) -> None:
    servicer = Forgetful()

    async def main() -> None:
        async with registry_at(between.url) as registry:
            with pytest.raises(cogment.OutcomeUnknown, match="list_iterations"):
                await registry.store_model("policy", b"data")

    with serving(servicer) as running, relay_to(running.port) as between:
        servicer.lose_connections = between.cut
        run(main)
    assert servicer.uploads == 1


def test_pieces_that_can_be_had_once_are_not_sent_twice(run: Run, relay: Relay, name: str) -> None:
    async def main() -> None:
        async def pieces() -> AsyncIterator[Any]:
            yield b"first"
            relay.cut()
            for _ in range(1000):
                yield os.urandom(65536)

        async with registry_at(relay.url) as registry:
            await registry.update_model_info(name, {})
            with pytest.raises(cogment.Unavailable):
                await registry.store_model(name, pieces(), size=5 + 1000 * 65536)
            assert await registry.list_iterations(name) == []

    run(main)


def test_updates_resume_and_miss_nothing(run: Run, program: ServerProgram) -> None:
    async def main() -> None:
        async with registry_at(f"grpc://{program.address}") as registry:
            for number in range(1, 4):
                await registry.store_model("policy", b"%d" % number)
            updates = registry.iteration_updates("policy")
            told = [(await anext(updates)).iteration]
            for end in (program.stop, program.kill):
                await in_thread(end)
                await in_thread(program.start)
                for _ in range(3):
                    await registry.store_model("policy", b"while nobody listened")
                told += [(await anext(updates)).iteration for _ in range(3)]
            published = await registry.publish_model("policy", b"last")
            assert await anext(updates) == published
            await updates.aclose()
            numbers = [info.iteration for info in await registry.list_iterations("policy")]
            assert told == numbers[2:-1]

    run(main)


def test_updates_do_not_repeat_an_old_one_when_the_newest_are_gone(run: Run, program: ServerProgram) -> None:
    async def main() -> None:
        async with registry_at(f"grpc://{program.address}") as registry:
            await registry.store_model("policy", b"stays")
            await registry.publish_model("policy", b"goes")
            updates = registry.iteration_updates("policy")
            assert (await anext(updates)).iteration == 2
            await in_thread(program.kill)
            await in_thread(program.start)
            assert len(await registry.list_iterations("policy")) == 1
            new = await registry.publish_model("policy", b"new")
            assert await anext(updates) == new
            await updates.aclose()

    run(main)


def test_updates_begin_after_a_number(run: Run, url: str, name: str) -> None:
    async def main() -> None:
        async with registry_at(url) as registry:
            sent = [await registry.publish_model(name, b"") for _ in range(5)]
            updates = registry.iteration_updates(name, after=2)
            assert [await anext(updates) for _ in range(3)] == sent[2:]
            await updates.aclose()

    run(main)


def test_updates_of_a_model_that_began_again(run: Run, program: ServerProgram) -> None:
    async def main() -> None:
        async with registry_at(f"grpc://{program.address}") as registry:
            for _ in range(3):
                await registry.store_model("policy", b"old")
            updates = registry.iteration_updates("policy")
            assert (await anext(updates)).iteration == 3
            await in_thread(program.stop)
            await in_thread(program.start)
            await registry.remove_model("policy")
            sent = [await registry.store_model("policy", b"new") for _ in range(2)]
            assert [await anext(updates) for _ in range(2)] == sent
            await updates.aclose()

    run(main)


def test_updates_end_when_the_model_is_removed(run: Run, url: str, name: str) -> None:
    async def main() -> None:
        async with registry_at(url) as registry:
            await registry.publish_model(name, b"")
            updates = registry.iteration_updates(name)
            await anext(updates)
            await registry.remove_model(name)
            with pytest.raises(cogment.NotFound):
                await anext(updates)

    run(main)


def test_waiting_for_updates_can_be_given_up_and_taken_up_again(run: Run, url: str, name: str) -> None:
    async def main() -> None:
        async with registry_at(url) as registry:
            await registry.publish_model(name, b"")
            updates = registry.iteration_updates(name)
            await anext(updates)
            with anyio.move_on_after(0.01) as scope:
                await anext(updates)
            assert scope.cancelled_caught
            sent = [await registry.publish_model(name, b"") for _ in range(3)]
            assert [await anext(updates) for _ in range(3)] == sent

    run(main)


def test_a_tracked_model_follows_through_a_restart(run: Run, program: ServerProgram) -> None:
    async def main() -> None:
        async with registry_at(f"grpc://{program.address}") as registry:
            first = await registry.store_model("policy", b"first")
            latest = await registry.track_latest_model("policy")
            assert await latest.get() == (b"first", first)
            await in_thread(program.kill)
            await in_thread(program.start)
            second = await registry.store_model("policy", b"second")
            await latest.wait_for_newer(1)
            assert await latest.get() == (b"second", second)

    run(main)


def test_a_tracked_model_that_comes_too_late_is_fetched_again(
    run: Run, url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with registry_at(url) as registry:
            stored = await registry.store_model(name, b"weights")
            retrieve, failures = registry._retrieve_latest, [cogment.DeadlineExceeded("too late")]

            async def too_late_once(name: str) -> Any:
                if failures:
                    raise failures.pop()
                return await retrieve(name)

            monkeypatch.setattr(registry, "_retrieve_latest", too_late_once)
            latest = await registry.track_latest_model(name)
            assert await latest.get() == (b"weights", stored)
            assert not failures

    run(main)


@pytest.mark.parametrize("error", [cogment.Denied("no such token"), cogment.Refused("no such method")])
def test_a_tracked_model_that_may_not_be_fetched_is_not_tracked_any_more(
    run: Run, url: str, name: str, monkeypatch: pytest.MonkeyPatch, error: cogment.RegistryError
) -> None:
    async def main() -> None:
        async with registry_at(url) as registry:
            await registry.store_model(name, b"1")
            latest = await registry.track_latest_model(name)
            await latest.get()

            async def refuse(name: str) -> Any:
                raise error

            monkeypatch.setattr(registry._tracked[name][0], "_newest", refuse)
            await registry.store_model(name, b"2")
            for waits in (lambda: latest.wait_for_newer(1), latest.get):
                with pytest.raises(type(error)):
                    await waits()

    run(main)


def test_a_server_that_falls_silent_is_noticed(run: Run, relay: Relay, name: str) -> None:
    async def main() -> None:
        async with registry_at(relay.url, timing=Timing(keepalive=0.05, keepalive_timeout=0.2)) as registry:
            await registry.publish_model(name, b"")
            updates = registry.iteration_updates(name)
            await anext(updates)
            relay.mute()

            async def publish(*, task_status: Any) -> None:
                task_status.started()
                async with registry_at(relay.url) as other:
                    relay._mute.clear()  # for connections made from now on
                    await other.publish_model(name, b"")

            async with anyio.create_task_group() as tasks:
                await tasks.start(publish)
                assert (await anext(updates)).iteration == 2
            await updates.aclose()

    run(main)


def test_a_call_to_a_silent_server_ends_with_its_timeout(run: Run, relay: Relay, name: str) -> None:
    async def main() -> None:
        async with registry_at(relay.url) as registry:
            await registry.list_models()
            relay.mute()
            with pytest.raises(cogment.DeadlineExceeded, match=r"0\.1 s"):
                await registry.list_models(timeout=0.1)

    run(main)
