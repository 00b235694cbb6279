"""The examples, run as a reader would: a trainer and an actor side by side."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import modelreg.client.blocking as cogment
from tests.support.pages import PAGES, blocks

ROOT = Path(__file__).parents[2]
STEPS = 40


@contextlib.contextmanager
def example(script: Any, *arguments: Any) -> Iterator[Any]:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(process: Any) -> list[str]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    return str(out).splitlines()


@pytest.mark.parametrize(
    ("trainer", "actor", "options"),
    [
        ("trainer.py", "actor.py", ["--backend=asyncio"]),
        ("trainer.py", "actor.py", ["--backend=trio"]),
        ("blocking_trainer.py", "blocking_actor.py", []),
    ],
)
def test_a_trainer_and_an_actor(url: str, name: str, trainer: Any, actor: Any, options: Any) -> None:
    with (
        example(actor, url, f"--model={name}", f"--until-step={STEPS}", *options) as acting,
        example(trainer, url, f"--model={name}", f"--steps={STEPS}", *options) as training,
    ):
        trained, acted = finished(training), finished(acting)
    assert trained[-1].startswith(f"done: {STEPS} steps")
    assert acted[-1].startswith(f"iteration {STEPS}:")
    with cogment.Context("test") as context:
        iterations = context.get_model_registry_v2(cogment.Endpoint(url)).list_iterations(name)
    assert len(iterations) == STEPS
    stored = [info for info in iterations if info.stored]
    assert len(stored) == len(trained) - 1 > 0
    rewards = [float(info.properties["reward"]) for info in stored]
    assert rewards == sorted(rewards)


def test_every_example_is_run_here() -> None:
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {"policy.py", "trainer.py", "actor.py", "blocking_trainer.py", "blocking_actor.py"}


def test_the_programs_in_the_documentation(url: str, tmp_path: Path) -> None:
    programs = [program for page in PAGES for program in blocks(page, "python")]
    said = []
    for program in programs:
        path = tmp_path / "program.py"
        path.write_text(program.replace("grpc://localhost:9002", url))
        with example(path) as running:
            said += finished(running)
    assert said == [
        *["1 b'its weights'"] * 2,
        *["1 stored 1000", "2 published 1010", "3 stored 1020", 'no model "my_policy_2" found'],
    ]
