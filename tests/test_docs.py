"""The README says what is: its tables and drawing are compared with the code, its transcripts are carried out."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelreg
from modelreg import log
from modelreg.cli import outcome
from modelreg.errors import StartupError
from modelreg.settings import OPTIONS, Option
from modelreg.storage import layout
from tests.cli.test_program import ROOT, serving

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def table(*rows: tuple[str, ...]) -> str:
    header, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ("---",) * len(header), *body))


def options_table() -> str:
    def row(option: Option) -> tuple[str, ...]:
        return f"`{option.flags[0]}`", f"`{option.env}`", option.default_text, option.meaning

    return table(("Flag", "Variable", "Default", "Meaning"), *(row(option) for option in OPTIONS))


def exit_codes() -> dict[int, str]:
    def kinds(of: type[StartupError]) -> Iterator[type[StartupError]]:
        for kind in of.__subclasses__():
            yield kind
            yield from kinds(kind)

    meanings = {
        outcome.OK: "Stopped by a signal.",
        outcome.USAGE: "An option doesn't exist, or has a value that isn't allowed.",
        outcome.SOFTWARE: "A bug. `--log_level=debug` shows where.",
        outcome.INTERRUPTED: "Interrupted before it served.",
    }
    for kind in kinds(StartupError):
        assert kind.exit_code not in meanings, f"the exit code of {kind.__name__} has a meaning already"
        meanings[kind.exit_code] = " ".join((kind.__doc__ or "").split())
    return meanings


def test_the_options_table() -> None:
    assert options_table() in README, f"the table should be\n\n{options_table()}"


def test_nothing_else_is_called_an_option() -> None:
    flags = {flag for option in OPTIONS for flag in option.flags}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", README)) <= flags
    assert set(re.findall(r"COGMENT_[A-Z_]+", README)) == {option.env for option in OPTIONS}


def test_the_exit_codes() -> None:
    assert log.LogFileUnusable.exit_code in exit_codes()
    expected = table(("Code", "Meaning"), *((str(code), meaning) for code, meaning in sorted(exit_codes().items())))
    assert expected in README, f"the table should be\n\n{expected}"


def test_the_layout_is_drawn_as_in_the_code() -> None:
    drawing = re.search(r"::\n\n(.*?)\n\n(?=\S)", inspect.getdoc(layout) or "", re.DOTALL)
    assert drawing is not None
    assert textwrap.dedent(drawing.group(1)) + "\n" in blocks("")


def test_two_commands_do_everything() -> None:
    start, test, reflection = (block.strip() for block in blocks("bash"))
    assert start == "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/modelreg serve"
    assert test == "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/pytest"
    assert reflection == ".venv/bin/modelreg serve --grpc_reflection"


def transcripts() -> Iterator[tuple[str, str]]:
    """Each command of the README's transcripts, and what it prints."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, method, output = re.split(r"(cogmentAPI\.ModelRegistrySP/\w+)\n", part, maxsplit=1)
            yield command + method, output


def comparable(output: str) -> object:
    """grpcurl's output, but for what is another every time."""
    return json.loads(re.sub(r'("creationTimestamp": )"\d{19}"', r'\1"now"', output))


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl isn't installed")
def test_the_transcripts(tmp_path: Path) -> None:
    with serving(tmp_path, "--grpc_reflection") as program:
        for command, expected in transcripts():
            ended = subprocess.run(
                ["bash", "-c", command.replace("localhost:9002", f"localhost:{program.port}")],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (ended.returncode, ended.stderr) == (0, ""), command
            assert comparable(ended.stdout) == comparable(expected), command
    assert len(list(transcripts())) == 10


def test_the_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert modelreg.__version__ in headings or len(headings) == 1
