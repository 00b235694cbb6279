"""The whole service over a socket, in any order of calls, restarts and crashes, against a plain model of what it promises."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import grpc
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import Calls, Watch, data_hash
from tests.faults.crash import Launcher, Server
from tests.faults.scenarios import chunks, delete

# What ids may be made of, and what has been a way out of a directory elsewhere.
MODEL_IDS = st.sampled_from(["m", "M", "../team/policy", "ü" * 200])
CONTENTS = st.sampled_from([b"", b"x", b"small" * 100, bytes(range(256)) * 600, b"large" * 900_000])
USER_DATA = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)
CACHE = 4


@attrs.define
class Version:
    content: bytes
    stored: bool
    user_data: dict[str, str]
    # When it was last used, of all transient ones.
    used: int


@attrs.define
class Model:
    user_data: dict[str, str]
    versions: dict[int, Version] = attrs.field(factory=dict)
    # The highest number given, and whether a crash may have left a gap above it.
    highest: int = 0
    gap: bool = False
    watch: Watch | None = None
    # What the watcher has been sent and hasn't looked at.
    seen: int = 0


class Service(RuleBasedStateMachine):
    """What is in ``models`` is what a client is to see."""

    launcher: Launcher

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, Model] = {}
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.clock = itertools.count()
        self.connection = ExitStack()

    @initialize()
    def start(self) -> None:
        self.server: Server = self.launcher.start(self.directory / "archive", f"--cache_max_items={CACHE}")
        self.calls: Calls = self.connection.enter_context(self.server.calls())

    def teardown(self) -> None:
        self.connection.close()
        self.launcher.end_servers()
        shutil.rmtree(self.directory)

    # Calls

    @rule(model_id=MODEL_IDS, user_data=USER_DATA)
    def create_or_update(self, model_id: str, user_data: dict[str, str]) -> None:
        self.calls.create(model_id, **user_data)
        self.models.setdefault(model_id, Model(user_data)).user_data = user_data

    @rule(model_id=MODEL_IDS)
    def delete(self, model_id: str) -> None:
        with self.expecting(model_id in self.models):
            delete(self.calls, model_id)
        model = self.models.pop(model_id, None)
        if model is not None and model.watch is not None:
            self.follow(model)
            assert code_of(model.watch) is grpc.StatusCode.NOT_FOUND

    @rule(model_id=MODEL_IDS, data=CONTENTS, stored=st.booleans(), user_data=USER_DATA)
    def add(self, model_id: str, data: bytes, stored: bool, user_data: dict[str, str]) -> None:
        model = self.models.get(model_id)
        with self.expecting(model is not None):
            info = (self.calls.store if stored else self.calls.publish)(model_id, *chunks(data), user_data=user_data)
            assert (info.data_size, info.data_hash, info.archived) == (len(data), data_hash(data), stored)
            self.added(model, info, Version(data, stored, user_data, next(self.clock)))

    def added(self, model: Model | None, info: api.ModelVersionInfo, version: Version) -> None:
        assert model is not None
        number = info.version_number
        assert number > model.highest if model.gap else number == model.highest + 1
        model.gap = False
        model.highest = number
        if not version.stored:
            self.make_room(model)
        model.versions[number] = version

    def make_room(self, adding: Model) -> None:
        """The least recently used goes, those first that aren't the newest of their model."""
        transient = [
            (number == max(model.versions) and model is not adding, version.used, model, number)
            for model in self.models.values()
            for number, version in model.versions.items()
            if not version.stored
        ]
        if len(transient) >= CACHE:
            _, _, model, number = min(transient, key=lambda each: each[:2])
            del model.versions[number]

    @rule(model_id=MODEL_IDS, data=CONTENTS, wrong=st.sampled_from(["hash", "size"]))
    def add_what_is_not_as_announced(self, model_id: str, data: bytes, wrong: str) -> None:
        info: dict[str, Any] = {"data_hash": data_hash(b"other")} if wrong == "hash" else {"data_size": len(data) + 1}
        with pytest.raises(grpc.RpcError) as caught:
            self.calls.store(model_id, *chunks(data), **info)
        expected = grpc.StatusCode.INVALID_ARGUMENT if model_id in self.models else grpc.StatusCode.NOT_FOUND
        assert code_of(caught.value) is expected

    @rule(model_id=MODEL_IDS, place=st.integers(-6, 6))
    def read(self, model_id: str, place: int) -> None:
        model = self.models.get(model_id)
        number = self.find(model, place)
        with self.expecting(number is not None):
            data = self.calls.data(model_id, place)
            assert model is not None
            assert number is not None
            assert data == model.versions[number].content
            model.versions[number].used = next(self.clock)

    def find(self, model: Model | None, place: int) -> int | None:
        numbers = sorted(model.versions) if model is not None else []
        if place >= 0:
            return place if place in numbers else None
        return numbers[place] if -place <= len(numbers) else None

    @rule(model_id=MODEL_IDS, count=st.integers(1, 3))
    def page_versions(self, model_id: str, count: int) -> None:
        model = self.models.get(model_id)
        found, handle = [], ""
        with self.expecting(model is not None):
            while True:
                request = api.RetrieveVersionInfosRequest(
                    model_id=model_id, versions_count=count, version_handle=handle
                )
                reply = self.calls.RetrieveVersionInfos(request)
                found += [version.version_number for version in reply.version_infos]
                handle = reply.next_version_handle
                if len(reply.version_infos) < count:
                    break
            assert model is not None
            assert found == sorted(model.versions)

    @rule(count=st.integers(1, 3))
    def page_models(self, count: int) -> None:
        found, handle = [], ""
        while True:
            reply = self.calls.RetrieveModels(api.RetrieveModelsRequest(models_count=count, model_handle=handle))
            found += [model.model_id for model in reply.model_infos]
            handle = reply.next_model_handle
            if len(reply.model_infos) < count:
                break
        assert found == sorted(self.models)

    # Watches

    @rule(model_id=MODEL_IDS)
    def watch(self, model_id: str) -> None:
        model = self.models.get(model_id)
        if model is None:
            assert code_of(self.calls.watch(model_id)) is grpc.StatusCode.NOT_FOUND
        elif model.watch is None and model.versions:
            model.watch = self.calls.watch(model_id)
            assert model.watch.next().version_number == max(model.versions)  # the newest at once
            model.seen = max(model.versions)

    @precondition(lambda self: any(model.watch for model in self.models.values()))
    @rule(choose=st.randoms(use_true_random=False))
    def follow_one(self, choose: Any) -> None:
        self.follow(choose.choice([model for model in self.models.values() if model.watch]))

    def follow(self, model: Model) -> None:
        """Each newer version comes once and in order. One that was evicted may have been sent before."""
        assert model.watch is not None
        for number in sorted(model.versions):
            while model.seen < number:
                got = model.watch.next().version_number
                assert model.seen < got <= number
                model.seen = got

    # The program

    @rule()
    def restart(self) -> None:
        for model in self.models.values():
            model.versions = {number: version for number, version in model.versions.items() if version.stored}
        watches = [model.watch for model in self.models.values() if model.watch]
        self.server.signal(15)
        for watch in watches:
            assert code_of(watch) is grpc.StatusCode.UNAVAILABLE
        self.connection.close()
        assert self.server.wait() == 0
        self.begin_again()

    @rule()
    def kill(self) -> None:
        for model in self.models.values():
            model.gap = True
            model.versions = {number: version for number, version in model.versions.items() if version.stored}
        self.server.kill()
        self.connection.close()
        self.begin_again()

    def begin_again(self) -> None:
        for model in self.models.values():
            model.watch = None
        self.start()

    # What always holds

    @invariant()
    def all_is_listed(self) -> None:
        if not hasattr(self, "calls"):
            return
        models = self.calls.RetrieveModels(api.RetrieveModelsRequest()).model_infos
        assert {model.model_id: dict(model.user_data) for model in models} == {
            model_id: model.user_data for model_id, model in self.models.items()
        }
        for model_id, model in self.models.items():
            assert {
                info.version_number: (info.archived, info.data_size, info.data_hash, dict(info.user_data))
                for info in self.calls.info(model_id)
            } == {
                number: (version.stored, len(version.content), data_hash(version.content), version.user_data)
                for number, version in model.versions.items()
            }
            if numbers := sorted(model.versions):  # from the end: the newest, the oldest
                found = self.calls.info(model_id, -1, -len(numbers))
                assert [info.version_number for info in found] == [numbers[-1], numbers[0]]

    @invariant()
    def each_content_is_stored_once(self) -> None:
        contents = {
            hashlib.sha256(version.content).digest(): len(version.content)
            for model in self.models.values()
            for version in model.versions.values()
            if version.stored
        }
        if hasattr(self, "calls") and not any(
            not version.stored for model in self.models.values() for version in model.versions.values()
        ):  # else a transient version may share the blob of a deleted one
            assert self.calls.status("stored_bytes", "damaged") == {
                "stored_bytes": str(sum(contents.values())),
                "damaged": "0",
            }

    @contextmanager
    def expecting(self, found: bool) -> Iterator[None]:
        """NOT_FOUND, unless *found*."""
        try:
            yield
        except grpc.RpcError as error:
            if found or code_of(error) is not grpc.StatusCode.NOT_FOUND:
                raise
        else:
            assert found


def code_of(failure: Any) -> Any:
    """The status of a call, or with which a watch ends when all that was sent has been read."""
    if not isinstance(failure, Watch):
        return failure.code()
    with pytest.raises(grpc.RpcError):
        while True:
            failure.next()
    return failure.call.code()


@pytest.mark.parametrize(("examples", "steps"), [(8, 30), pytest.param(300, 80, marks=pytest.mark.slow)])
def test_service(launcher: Launcher, examples: int, steps: int) -> None:
    machine = type("Service", (Service,), {"launcher": launcher})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
