"""The documentation of the ecosystem's Python SDK, sentence by sentence, as far as it's about the model registry."""

from __future__ import annotations

import base64
import hashlib
import inspect
import logging
import time
from typing import Any

import anyio
import pytest

import modelreg.client as cogment
from modelreg.client.registry import ModelRegistry
from tests.client.conftest import Run

DATA = b"the model's parameters"


@pytest.fixture
def registry(run: Run, url: str) -> Any:
    """Runs what a test does with a registry."""

    def use(test: Any) -> Any:
        async def main() -> Any:
            async with cogment.Context(user_id="test") as context:
                return await test(await context.get_model_registry_v2(cogment.Endpoint(url)))

        return run(main)

    return use


class TestContext:
    def test_takes_what_is_documented(self) -> None:
        names = list(inspect.signature(cogment.Context).parameters)
        documented = ["user_id", "cog_settings", "asyncio_loop", "prometheus_registry"]
        assert names == [*documented, "directory_endpoint", "directory_auth_token"]

    def test_offers_no_services(self) -> None:
        assert cogment.Context("me", None).served_port is None

    def test_has_specs_if_they_were_given(self) -> None:
        assert cogment.Context("me", cog_settings=logging).has_specs()
        assert not cogment.Context("me", cog_settings=None).has_specs()

    def test_gives_a_registry_whatever_was_imported(self, run: Run, url: str) -> None:
        async def main() -> None:
            context = cogment.Context("me")
            registry = await context.get_model_registry_v2(endpoint=cogment.Endpoint(url))
            assert isinstance(registry, cogment.ModelRegistry)
            await registry.close()

        run(main)

    def test_asyncio_loop_is_the_one_to_operate_in(self, url: str) -> None:
        async def main() -> None:
            import asyncio

            right = cogment.Context("me", None, asyncio.get_running_loop())
            await right.get_model_registry_v2(cogment.Endpoint(url))
            other = asyncio.new_event_loop()
            with pytest.raises(ValueError, match="asyncio_loop"):
                await cogment.Context("me", None, other).get_model_registry_v2(cogment.Endpoint(url))
            other.close()

        anyio.run(main, backend="asyncio")


class TestEndpoint:
    def test_is_a_discovery_url_by_default(self) -> None:
        assert cogment.Endpoint().url == "cogment://discover"
        assert cogment.Endpoint("grpc://host:9000").url == "grpc://host:9000"

    def test_has_what_tls_needs(self) -> None:
        endpoint = cogment.Endpoint("grpc://host:9000")
        assert (endpoint.private_key, endpoint.root_certificates, endpoint.certificate_chain) == (None, None, None)
        assert not endpoint.uses_tls
        endpoint.private_key = "PEM"
        assert endpoint.uses_tls


class TestStoreModel:
    def test_has_specs_is_always_true(self, registry: Any) -> None:
        async def test(registry: Any) -> None:
            assert registry.has_specs() is True

        registry(test)

    def test_returns_the_information_about_the_iteration(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            before = time.time_ns()
            info = await registry.store_model(name=name, model=DATA, iteration_properties={"loss": "0.5"})
            assert isinstance(info, cogment.ModelIterationInfo)
            assert info.model_name == name
            assert info.iteration == 1
            assert before <= info.timestamp <= time.time_ns()
            assert info.hash == base64.b64encode(hashlib.sha256(DATA).digest()).decode()
            assert info.size == len(DATA)
            assert info.stored is True
            assert info.properties == {"loss": "0.5"}

        registry(test)

    def test_of_a_name_that_exists_is_a_new_iteration(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            numbers = [(await registry.store_model(name, DATA)).iteration for _ in range(3)]
            assert numbers == [1, 2, 3]

        registry(test)

    def test_leaves_the_names_properties_alone(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.update_model_info(name, {"kind": "cnn"})
            await registry.store_model(name, DATA)
            assert (await registry.get_model_info(name)).properties == {"kind": "cnn"}

        registry(test)


class TestPublishModel:
    def test_is_not_stored(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            info = await registry.publish_model(name, DATA, {"step": "1"})
            assert (info.iteration, info.stored, info.properties) == (1, False, {"step": "1"})
            assert (await registry.store_model(name, DATA)).iteration == 2
            assert (await registry.publish_model(name, DATA)).iteration == 3

        registry(test)


class TestRetrieveModel:
    def test_gives_the_iterations_bytes(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.store_model(name, b"one")
            await registry.publish_model(name, b"two")
            assert await registry.retrieve_model(name, 1) == b"one"
            assert await registry.retrieve_model(name, iteration=-1) == b"two"
            latest = await registry.retrieve_model(name)
            assert latest == b"two"
            assert type(latest) is bytes

        registry(test)

    def test_gives_none_for_an_iteration_that_is_not_available(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.update_model_info(name, {})
            assert await registry.retrieve_model(name) is None
            await registry.store_model(name, DATA)
            assert await registry.retrieve_model(name, 2) is None

        registry(test)

    def test_of_no_model_is_an_exception(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            with pytest.raises(cogment.NotFound, match="model of"):
                await registry.retrieve_model(name)

        registry(test)


class TestModels:
    def test_removing_removes_all_iterations(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.store_model(name, DATA)
            await registry.publish_model(name, DATA)
            assert await registry.remove_model(name) is None
            assert await registry.get_model_info(name) is None
            with pytest.raises(cogment.NotFound):
                await registry.list_iterations(name)
            with pytest.raises(cogment.NotFound):
                await registry.remove_model(name)
            # and the name may be used again
            assert (await registry.store_model(name, DATA)).iteration == 1

        registry(test)

    def test_a_model_removed_by_somebody_else_is_created_again(self, run: Run, url: str, name: str) -> None:
        async def main() -> None:
            async with cogment.Context("one") as one, cogment.Context("two") as two:
                ours = await one.get_model_registry_v2(cogment.Endpoint(url))
                theirs = await two.get_model_registry_v2(cogment.Endpoint(url))
                await ours.store_model(name, DATA)
                await theirs.remove_model(name)
                assert (await ours.store_model(name, DATA)).iteration == 1

        run(main)

    def test_list_models(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.update_model_info(name, {"a": "b"})
            found = [model for model in await registry.list_models() if model.name == name]
            assert found == [cogment.ModelInfo(name=name, properties={"a": "b"})]

        registry(test)

    def test_list_iterations(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.update_model_info(name, {})
            assert await registry.list_iterations(name) == []
            sent = [await registry.publish_model(name, DATA), await registry.store_model(model=DATA, name=name)]
            assert await registry.list_iterations(model_name=name) == sent

        registry(test)

    def test_lists_are_complete_however_long(self, registry: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modelreg.client.lists.PAGE", 3)

        async def test(registry: Any) -> None:
            for number in range(7):
                await registry.publish_model(name, b"")
                await registry.update_model_info(f"{name} {number}", {})
            assert [info.iteration for info in await registry.list_iterations(name)] == [1, 2, 3, 4, 5, 6, 7]
            models = [model.name for model in await registry.list_models()]
            assert [f"{name} {number}" for number in range(7)] == [
                found for found in models if found.startswith(f"{name} ")
            ]
            assert len(set(models)) == len(models)

        registry(test)

    def test_get_iteration_info(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            with pytest.raises(cogment.NotFound):
                await registry.get_iteration_info(name, 1)
            await registry.update_model_info(name, {})
            assert await registry.get_iteration_info(name, -1) is None
            first = await registry.store_model(name, DATA)
            second = await registry.publish_model(name, DATA)
            assert await registry.get_iteration_info(name, 1) == first
            assert await registry.get_iteration_info(name=name, iteration=-1) == second
            assert await registry.get_iteration_info(name, 3) is None

        registry(test)

    def test_properties_are_overwritten(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            assert await registry.get_model_info(name) is None
            assert await registry.update_model_info(name=name, properties={"a": "1", "b": "2"}) is None
            await registry.update_model_info(name, {"c": "3"})
            assert await registry.get_model_info(name) == cogment.ModelInfo(name=name, properties={"c": "3"})

        registry(test)


class TestIterationUpdates:
    def test_begins_with_the_latest_and_waits_for_more(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.store_model(name, b"1")
            await registry.store_model(name, b"2")
            told = []

            async def follow(*, task_status: Any) -> None:
                async for info in registry.iteration_updates(model_name=name):
                    told.append(info)
                    if len(told) == 1:
                        task_status.started()
                    if info.iteration == 4:
                        return

            async with anyio.create_task_group() as tasks:
                await tasks.start(follow)
                third = await registry.publish_model(name, b"3")
                fourth = await registry.store_model(name, b"4")
            assert [info.iteration for info in told] == [2, 3, 4]
            assert told[1:] == [third, fourth]

        registry(test)

    def test_of_no_model_is_an_exception(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            with pytest.raises(cogment.NotFound):
                async for _ in registry.iteration_updates(name):
                    pass

        registry(test)


class TestTrackLatestModel:
    def test_makes_the_latest_iteration_available(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.update_model_info(name, {})
            latest = await registry.track_latest_model(name=name)
            assert isinstance(latest, cogment.LatestModel)
            assert latest.name == name
            assert not latest.is_deserialized()
            assert not latest.is_available()
            first = await registry.publish_model(name, b"one")
            await latest.wait_for_available()
            assert latest.is_available()
            assert await latest.get() == (b"one", first)
            second = await registry.publish_model(name, b"two")
            await latest.wait_for_newer(first.iteration)
            assert await latest.get() == (b"two", second)

        registry(test)

    def test_shares_one_model_among_callers(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.publish_model(name, b"1,2")
            one = await registry.track_latest_model(name, deserialize_func=lambda data: data.split(b","))
            two = await registry.track_latest_model(name)
            assert one.is_deserialized()
            assert two.is_deserialized()
            (await one.get())[0].append(b"changed")
            assert (await two.get())[0] == [b"1", b"2", b"changed"]

        registry(test)

    def test_another_function_for_the_same_model_is_an_exception(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.publish_model(name, b"1")
            await registry.track_latest_model(name, int)
            with pytest.raises(ValueError, match="deserialize_func"):
                await registry.track_latest_model(name, float)
            with pytest.raises(ValueError, match="one argument"):
                await registry.track_latest_model(name, lambda: None)

        registry(test)

    def test_raises_when_the_model_is_not_there_in_time(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            with pytest.raises(cogment.NotFound, match="store or publish"):
                await registry.track_latest_model(name)
            with pytest.raises(cogment.NotFound):
                await registry.track_latest_model(name, initial_wait=0.1)

        registry(test)

    def test_waits_for_the_name_only(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            found = []

            async def track() -> None:
                found.append(await registry.track_latest_model(name, initial_wait=30))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(track)
                await registry.update_model_info(name, {})
            assert not found[0].is_available()

        registry(test)

    def test_a_failing_function_leaves_the_iteration_before(
        self, registry: Any, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def test(registry: Any) -> None:
            await registry.publish_model(name, b"1")
            latest = await registry.track_latest_model(name, int)
            await latest.wait_for_available()
            await registry.publish_model(name, b"not a number")
            third = await registry.publish_model(name, b"3")
            await latest.wait_for_newer(2)
            assert await latest.get() == (3, third)

        registry(test)

    def test_ends_with_the_model(self, registry: Any, name: str) -> None:
        async def test(registry: Any) -> None:
            await registry.publish_model(name, b"1")
            latest = await registry.track_latest_model(name)
            assert (await latest.get())[0] == b"1"
            await registry.remove_model(name)
            with pytest.raises(cogment.NotFound):
                await latest.wait_for_newer(1)
            # what was the latest may be old: every method says so
            for ended in (latest.now, latest.is_available):
                with pytest.raises(cogment.NotFound):
                    ended()
            for waits in (latest.get, latest.wait_for_available):
                with pytest.raises(cogment.NotFound):
                    await waits()
            # and can be begun anew
            await registry.publish_model(name, b"new")
            again = await registry.track_latest_model(name)
            assert (await again.get())[0] == b"new"

        registry(test)


class TestLogger:
    def test_the_variable_sets_the_level(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for text, level in {
            "off": logging.CRITICAL,
            "error": logging.ERROR,
            "warning": logging.WARNING,
            "INFO": logging.INFO,
            "debug": logging.DEBUG,
            "trace": 5,
        }.items():
            monkeypatch.setenv("SOME_LEVEL", text)
            assert cogment.make_logger("modelreg.test", "SOME_LEVEL").level == level

    def test_the_level_is_info_by_default(self) -> None:
        assert logging.getLogger("modelreg.client").level == logging.INFO
        assert cogment.make_logger("modelreg.test", "NOT_SET").level == logging.INFO
        assert cogment.make_logger("modelreg.test", default_level="error").level == logging.ERROR

    def test_no_level_is_said_to_be_none(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("SOME_LEVEL", "loud")
        assert cogment.make_logger("modelreg.test", "SOME_LEVEL", "debug").level == logging.DEBUG
        assert "loud" in caplog.text

    def test_is_the_standard_one_with_trace_and_deprecated(self, caplog: pytest.LogCaptureFixture) -> None:
        logger = cogment.make_logger("modelreg.test", default_level="trace")
        assert logger is logging.getLogger("modelreg.test")
        assert logger.handlers == []
        logger.trace("%s", "details")
        logger.deprecated("don't do that")
        logger.deprecated("don't do that")
        assert [record.getMessage() for record in caplog.records] == ["details", "don't do that"]


def test_every_documented_method_is_there_with_its_parameters() -> None:
    documented = {
        "has_specs": [],
        "store_model": ["name", "model", "iteration_properties"],
        "publish_model": ["name", "model", "iteration_properties"],
        "retrieve_model": ["name", "iteration"],
        "remove_model": ["name"],
        "list_models": [],
        "list_iterations": ["model_name"],
        "get_iteration_info": ["name", "iteration"],
        "update_model_info": ["name", "properties"],
        "get_model_info": ["name"],
        "iteration_updates": ["model_name"],
        "track_latest_model": ["name", "deserialize_func", "initial_wait"],
    }
    for method, parameters in documented.items():
        positional = [
            parameter.name
            for parameter in inspect.signature(getattr(ModelRegistry, method)).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        assert positional == ["self", *parameters], method
