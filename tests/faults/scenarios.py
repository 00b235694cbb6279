"""What a server is doing when it's struck down, and what has to be on the disk afterwards: the state before or the state after.

A `Scenario` is a directory to begin with and one act on it. `crash_at_every_call` repeats it, crashing at the first call, at the second, and
so on, until no call is left; after each crash a server is started on what is there and `check_recovered` looks at all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import grpc
import pytest

from modelreg.api import model_registry_pb2 as api
from modelreg.storage.layout import Layout
from tests.clients.calls import Calls
from tests.faults.crash import KILL, Ended, Launcher, Server, copy_archive, files_below, tree

# A model's id to its user data, and the SHA-256 of its stored versions by number: of the content that was read, or, where it's damaged,
# DAMAGED and what it should be.
State = dict[str, tuple[dict[str, str], dict[int, str]]]

SMALL = b"small" * 100
OTHER = b"other" * 100
# More than goes past the page cache, and an odd end.
LARGE = bytes(range(256)) * (33 << 10) + b"odd"
# Gathered in buffers, written through the page cache.
MEDIUM = bytes(range(255)) * 2000

DAMAGED = "damaged "

DAY = 24 * 60 * 60


@attrs.frozen(kw_only=True)
class Scenario:
    name: str
    # By a server that is stopped afterwards.
    prepare: Callable[[Calls], None]
    # Numbers of "m" that its caller has been told of.
    act: Callable[[Calls], set[int] | None]
    # Then, to the directory.
    damage: Callable[[Path], None] = lambda _: None
    # The act also heals what was damaged, and may come to that only.
    heals: bool = False


def chunks(data: bytes) -> list[bytes]:
    return [data[start : start + 3_000_000] for start in range(0, len(data), 3_000_000)]


def store(calls: Calls, data: bytes, model_id: str = "m") -> set[int]:
    version = calls.store(model_id, *chunks(data))
    return {version.version_number}


def publish(calls: Calls, data: bytes, model_id: str = "m") -> set[int]:
    return {calls.publish(model_id, *chunks(data)).version_number}


def delete(calls: Calls, model_id: str = "m") -> None:
    calls.DeleteModel(api.DeleteModelRequest(model_id=model_id))


def blobs(archive: Path) -> list[Path]:
    root = Layout(archive).blobs
    return [root / name for name, is_directory in tree(root).items() if not is_directory]


def damage_blob(data: bytes) -> Callable[[Path], None]:
    def flip(archive: Path) -> None:
        path = Layout(archive).blob(hashlib.sha256(data).digest())
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.chmod(0o640)
        path.write_bytes(content)

    return flip


def _two_models(calls: Calls) -> None:
    calls.create("m", stage="old")
    calls.create("beside")
    store(calls, SMALL, "beside")
    store(calls, SMALL)


def _with_large(calls: Calls) -> None:
    _two_models(calls)
    store(calls, MEDIUM)
    store(calls, OTHER, "beside")


STORES = [
    Scenario(name="small", prepare=_two_models, act=lambda calls: store(calls, OTHER)),
    Scenario(name="through_the_page_cache", prepare=_two_models, act=lambda calls: store(calls, MEDIUM)),
    Scenario(name="past_the_page_cache", prepare=_two_models, act=lambda calls: store(calls, LARGE)),
    Scenario(name="content_that_is_there", prepare=_with_large, act=lambda calls: store(calls, MEDIUM)),
    Scenario(
        name="content_that_heals",
        prepare=_with_large,
        damage=damage_blob(MEDIUM),
        heals=True,
        act=lambda calls: store(calls, MEDIUM),
    ),
    Scenario(name="transient", prepare=_two_models, act=lambda calls: publish(calls, OTHER)),
]


def _delete_and_create(calls: Calls) -> None:
    delete(calls)
    calls.create("m", stage="new")


MODELS = [
    Scenario(name="create", prepare=_two_models, act=lambda calls: calls.create("new", stage="new")),
    Scenario(name="update", prepare=_two_models, act=lambda calls: calls.create("m", stage="new")),
    Scenario(name="delete", prepare=_with_large, act=delete),
]


def quick_are(names: set[str]) -> list[Any]:
    """All scenarios as a test's parameters, of which only these are in the short form."""
    return [
        pytest.param(each, id=each.name, marks=() if each.name in names else pytest.mark.slow)
        for each in (*STORES, *MODELS)
    ]


def observe(calls: Calls) -> State:
    """All that a client can read of stored versions."""
    models = calls.RetrieveModels(api.RetrieveModelsRequest()).model_infos
    return {
        model.model_id: (
            dict(model.user_data),
            {
                version.version_number: content(calls, version)
                for version in calls.info(model.model_id)
                if version.archived
            },
        )
        for model in models
    }


def content(calls: Calls, version: api.ModelVersionInfo) -> str:
    """The SHA-256 of what is read of a version."""
    try:
        return hashlib.sha256(calls.data(version.model_id, version.version_number)).hexdigest()
    except grpc.RpcError as error:
        code: Any = error
        assert code.code() is grpc.StatusCode.DATA_LOSS
        return DAMAGED + b64decode(version.data_hash).hex()


def healed(state: State) -> State:
    return {
        model_id: (user_data, {number: sha256.removeprefix(DAMAGED) for number, sha256 in versions.items()})
        for model_id, (user_data, versions) in state.items()
    }


def expected_files(state: State) -> set[str]:
    """What an archive directory holds when nothing is left over."""
    layout = Layout(Path())
    files = {"FORMAT", "LOCK", "blobs", "blobs/sha256", "models", "quarantine", "tmp"}
    for model_id, (_, versions) in state.items():
        files |= {str(layout.model(model_id)), str(layout.versions(model_id)), str(layout.model_record(model_id))}
        for number, sha256 in versions.items():
            files.add(str(layout.version_sidecar(model_id, number)))
            if not sha256.startswith(DAMAGED):  # else it may be in quarantine
                files.add(str(layout.blob(bytes.fromhex(sha256))))
    return files


def may_be_left(archive: Path, state: State) -> set[str]:
    """Blobs that are damaged; and where records are in quarantine, which may refer to any of them, all blobs."""
    names = {str(path.relative_to(archive)) for path in blobs(archive)}
    if any(Layout(archive).quarantine.glob("*.json.*")):
        return names
    damaged = {sha256 for _, versions in state.values() for sha256 in versions.values() if sha256.startswith(DAMAGED)}
    return {name for name in names if DAMAGED + name[-64:] in damaged}


def age(archive: Path) -> None:
    """A day passes: blobs that nothing refers to are old enough to go at the next boot."""
    before = time.time() - DAY - 60
    for path in blobs(archive):
        os.utime(path, (before, before))


def prepare(launcher: Launcher, archive: Path, scenario: Scenario) -> None:
    server = launcher.start(archive)
    with server.calls() as calls:
        scenario.prepare(calls)
    assert server.stop() == 0
    scenario.damage(archive)


def state_of(server: Server) -> State:
    with server.calls() as calls:
        return observe(calls)


def before_and_after(launcher: Launcher, template: Path, scenario: Scenario) -> tuple[State, State]:
    """The two states between which a crash may find the directory."""
    archive = copy_archive(template, template.with_name("whole"))
    server = launcher.start(archive)
    before = state_of(server)
    with server.calls() as calls:
        scenario.act(calls)
    server.kill()
    server = launcher.start(archive)
    after = state_of(server)
    server.kill()
    shutil.rmtree(archive)
    return before, after


def check_recovered(launcher: Launcher, archive: Path, allowed: list[State], given: set[int]) -> State:
    """Start a server on what a crash has left: it's one of the states allowed, nothing else is there, and no number comes twice."""
    age(archive)
    server = launcher.start(archive)
    state = state_of(server)
    assert state in allowed
    left = files_below(archive) - expected_files(state)
    assert not {name for name in left if not name.startswith("quarantine/")} - may_be_left(archive, state)
    assert expected_files(state) <= files_below(archive)
    with server.calls() as calls:
        calls.create("m")
        taken = given | set(state.get("m", ({}, {}))[1])
        for number in (*publish(calls, b"next"), *store(calls, b"the one after")):
            assert number not in taken
            taken.add(number)
        now = observe(calls)
        for model_id, (_, versions) in state.items():  # none of it has suffered
            assert now[model_id][1].items() >= versions.items()
    server.kill()
    return state


@attrs.frozen
class Crash:
    """How a server is struck down: by SIGKILL.

    Attributes:
        calls: "changing" passes over the calls that change nothing on the disk; empty does not.
    """

    calls: str = "changing"
    action = KILL

    def begin(self) -> None:
        """What is in the directory now is what is there before the act."""

    def after_act(self, server: Server) -> None:
        """The act was over before the crash came: it comes now."""
        server.kill()

    def end(self) -> None:
        """The server is dead; what it has left may be looked at."""


def crash_at_every_call(launcher: Launcher, directory: Path, scenario: Scenario, crash: Crash) -> list[str]:
    """Strike the server before each call in turn; returns the names of the calls it was struck at."""
    control = launcher.control
    template = directory / "template"
    prepare(launcher, template, scenario)
    before, after = before_and_after(launcher, template, scenario)
    undone = [before, healed(before)] if scenario.heals else [before]
    seen: list[str] = []
    for number in itertools.count(1):
        archive = copy_archive(template, directory / "archive")
        crash.begin()
        server = launcher.start(archive)
        with server.calls() as calls:
            control.arm(archive, crash.action, at=number, only=crash.calls)
            acknowledged, given = attempt(calls, scenario.act)
        control.disarm()
        if not control.seen:
            crash.after_act(server)
        server.kill()
        crash.end()
        if not acknowledged:
            assert control.seen, "it failed without a crash"
        check_recovered(launcher, archive, [after] if acknowledged else [*undone, after], given)
        if not control.seen:
            return seen
        seen.append(control.seen)
    raise AssertionError


def attempt(calls: Calls, act: Callable[[Calls], set[int] | None]) -> tuple[bool, set[int]]:
    """Whether it's acknowledged, and the numbers given."""
    try:
        return True, act(calls) or set()
    except grpc.RpcError:
        return False, set()


def crash_boot_at_every_call(
    launcher: Launcher, template: Path, directory: Path, numbers: Iterable[int], crash: Crash
) -> tuple[list[str], State]:
    """The same, of a boot on a directory, at the calls of these numbers. Also returns what all boots have led to."""
    control = launcher.control
    whole = copy_archive(template, directory / "whole")
    age(whole)
    server = launcher.start(whole)
    expected = state_of(server)
    server.kill()
    kept = quarantined(whole)
    seen: list[str] = []
    for number in numbers:
        archive = copy_archive(template, directory / "archive")
        age(archive)
        crash.begin()
        control.arm(archive, crash.action, at=number, only=crash.calls)
        server = launcher.launch(archive)
        with contextlib.suppress(Ended):
            server.wait_for_log("serving")
        control.disarm()
        if not control.seen:
            crash.after_act(server)
        server.kill()
        crash.end()
        check_recovered(launcher, archive, [expected], set())
        assert kept <= quarantined(archive)
        if not control.seen:
            return seen, expected
        seen.append(control.seen)
    raise AssertionError


def quarantined(archive: Path) -> set[bytes]:
    """What the files in the quarantine hold."""
    return {path.read_bytes() for path in Layout(archive).quarantine.rglob("*") if path.is_file()}


def show(seen: list[str]) -> None:
    """For whoever runs the tests with -s: how often and where it crashed."""
    sys.stdout.write(
        f"crashed at {len(seen)} calls: {' '.join(f'{name} {count}' for name, count in Counter(seen).items())}\n"
    )
