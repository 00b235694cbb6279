"""The README says what is: its tables and drawing are compared with the code, its transcripts are carried out."""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import inspect
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import modelreg
from modelreg.cli import command, outcome
from modelreg.client import RegistryError
from modelreg.errors import StartupError
from modelreg.registry.numbers import BLOCK
from modelreg.services.status import HIGHEST_LOAD
from modelreg.settings import OPTIONS, Option
from modelreg.storage import layout
from tests.support.server import ROOT, environment, server_program

README = (ROOT / "README.md").read_text()

COMMANDS = command.modelreg.commands
CONTEXT = click.Context(command.modelreg)

# What newer releases of click have for a default that isn't given.
UNSET = getattr(click.core, "UNSET", None)


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    found = re.findall(r"^```([\w-]*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [block for of, block in found if of == language]


def table(*rows: tuple[str, ...]) -> str:
    header, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ("---",) * len(header), *body))


def options_table() -> str:
    def row(option: Option) -> tuple[str, ...]:
        return f"`{option.flags[0]}`", f"`{option.env}`", option.default_text, option.meaning

    return table(("Flag", "Variable", "Default", "Meaning"), *(row(option) for option in OPTIONS))


def flags_of(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def common_flags() -> list[click.Option]:
    """The flags that every command has which talks to a registry."""
    return [flag for flag in flags_of(COMMANDS["models"]) if flag.name != "output"]


def commands_table() -> str:
    common = {flag.opts[0] for flag in common_flags()}

    def row(name: str) -> tuple[str, ...]:
        command = COMMANDS[name]
        arguments = command.collect_usage_pieces(CONTEXT)[1:]
        own = [flag.opts[0] for flag in flags_of(command) if flag.opts[0] not in common | {"--format"}]
        meaning = command.get_short_help_str(limit=1000)
        return f"`{' '.join([name, *arguments])}`", meaning, ", ".join(f"`{flag}`" for flag in own)

    return table(("Command", "Meaning", "Flags"), *(row(name) for name in COMMANDS if name != "serve"))


def common_flags_table() -> str:
    def row(flag: click.Option) -> tuple[str, ...]:
        meaning, _, said = (flag.help or "").partition("  [default: ")
        default = said.rstrip("]") or ("none" if flag.default in (None, UNSET) else f"{flag.default}")
        variable = "" if flag.envvar is None else f"`{flag.envvar}`"
        return f"`{flag.opts[0]}`", variable, default, meaning

    return table(("Flag", "Variable", "Default", "Meaning"), *map(row, common_flags()))


def exit_codes() -> dict[int, str]:
    def kinds(of: type[StartupError]) -> Iterator[type[StartupError]]:
        for kind in of.__subclasses__():
            yield kind
            yield from kinds(kind)

    meanings = {
        outcome.OK: "Done; a server was stopped by a signal.",
        outcome.INCOMPLETE: "Done, and it found damage, left out entries, or a command that it ran failed.",
        outcome.USAGE: "The command line is wrong: an option, an argument, or a file it names that isn't there.",
        outcome.SOFTWARE: "A bug. `--log_level=debug` shows where.",
        outcome.INTERRUPTED: "Interrupted; a server, before it served.",
        outcome.DEAF: "What read the output has gone.",
    }
    further = [(ending.exit_code, ending.meaning) for ending in outcome.CLIENT_ENDINGS.values()]
    for code, meaning in (*further, (outcome.FileTrouble.exit_code, inspect.getdoc(outcome.FileTrouble) or "")):
        assert code not in meanings
        meanings[code] = meaning
    for kind in kinds(StartupError):
        assert kind.exit_code not in meanings, f"the exit code of {kind.__name__} has a meaning already"
        meanings[kind.exit_code] = " ".join((kind.__doc__ or "").split())
    return meanings


def test_the_options_table() -> None:
    assert options_table() in README, f"the table should be\n\n{options_table()}"


def test_nothing_else_is_called_an_option() -> None:
    flags = {flag for command in COMMANDS.values() for option in flags_of(command) for flag in option.opts} | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", README)) <= flags
    variables = {option.env for option in OPTIONS} | {str(flag.envvar) for flag in common_flags() if flag.envvar}
    assert set(re.findall(r"COGMENT_[A-Z_]+", README)) == variables | {"COGMENT_MODEL_REGISTRY_TOKEN"}


def test_the_tables_of_commands_and_their_flags() -> None:
    assert commands_table() in README, f"the table should be\n\n{commands_table()}"
    assert common_flags_table() in README, f"the table should be\n\n{common_flags_table()}"


def test_every_command_that_talks_to_a_registry_has_the_same_flags() -> None:
    local = {"serve", "import-archive", "verify", "gc", "completion"}
    for name in set(COMMANDS) - local:
        assert {flag.opts[0] for flag in common_flags()} <= {flag.opts[0] for flag in flags_of(COMMANDS[name])}, name
    for name in set(COMMANDS) - {"serve", "completion"}:
        assert "--format" in {flag.opts[0] for flag in flags_of(COMMANDS[name])}, name


def test_every_error_of_the_client_has_an_exit_code() -> None:
    assert set(outcome.CLIENT_ENDINGS) == {kind.__name__ for kind in RegistryError.__subclasses__()}


def test_the_exit_codes() -> None:
    expected = table(("Code", "Meaning"), *((str(code), meaning) for code, meaning in sorted(exit_codes().items())))
    assert expected in README, f"the table should be\n\n{expected}"


def test_the_layout_is_drawn_as_in_the_code() -> None:
    drawing = re.search(r"::\n\n(.*?)\n\n(?=\S)", inspect.getdoc(layout) or "", re.DOTALL)
    assert drawing is not None
    assert textwrap.dedent(drawing.group(1)) + "\n" in blocks("")


def test_the_figures_that_the_code_has() -> None:
    text = " ".join(README.split())
    assert f"a model that had transient versions skips up to {BLOCK} numbers" in text
    assert f"in percent of the machine's cores, at most {HIGHEST_LOAD}" in text


def test_two_commands_do_everything() -> None:
    start, test, reflection = (block.strip() for block in blocks("bash"))
    assert start == "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/modelreg serve"
    assert test == "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/pytest"
    assert reflection == ".venv/bin/modelreg serve --grpc_reflection"


def transcripts() -> Iterator[tuple[str, str]]:
    """Each command of the README's transcripts, and what it prints."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, method, output = re.split(r"(cogmentAPI\.ModelRegistrySP/\w+)\n", part, maxsplit=1)
            yield line + method, output


def comparable(output: str) -> object:
    """grpcurl's output, but for what is another every time."""
    return json.loads(re.sub(r'("creationTimestamp": )"\d{19}"', r'\1"now"', output))


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl isn't installed")
def test_the_transcripts(tmp_path: Path) -> None:
    with server_program(tmp_path, "--grpc_reflection") as program:
        for line, expected in transcripts():
            ended = subprocess.run(
                ["bash", "-c", line.replace("localhost:9002", f"localhost:{program.port}")],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (ended.returncode, ended.stderr) == (0, ""), line
            assert comparable(ended.stdout) == comparable(expected), line
    assert len(list(transcripts())) == 10


def carried_out(commands: list[str], cwd: Path, **variables: str) -> str:
    """What a terminal shows where these commands are typed, but for what goes to standard error, of which there is to be none."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    script = "\n".join(
        [
            f'modelreg() {{ {sys.executable} -m modelreg "$@"; }}',
            *(f"echo '$ '{shlex.quote(line)}; {line}" for line in commands),
        ]
    )
    with open(ours, "rb", buffering=0) as terminal, open(cwd / "stderr", "w+") as stderr:
        with subprocess.Popen(
            ["bash", "-c", script], cwd=cwd, env=environment(**variables), stdin=theirs, stdout=theirs, stderr=stderr
        ) as process:
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # EIO, when the last process has closed the terminal
                while data := terminal.read(4096):
                    shown += data
            process.wait(60)
        stderr.seek(0)
        assert stderr.read() == ""
    return shown.decode().replace("\r\n", "\n")


def without_times(session: str) -> str:
    """A session with the same time everywhere, and without what is bold on a terminal."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", session)
    lines = [line.rstrip() for line in plain.split("\n")]
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "now", "\n".join(lines))


def test_the_session_on_the_command_line(tmp_path: Path) -> None:
    (session,) = blocks("shell-session")
    with open(tmp_path / "checkpoint.pt", "wb") as checkpoint:
        checkpoint.truncate(100_000_000)
    with server_program(tmp_path / "archive") as program:
        endpoint = f"grpc://127.0.0.1:{program.port}"
        commands = re.findall(r"^\$ (.*)$", session, re.MULTILINE)
        shown = carried_out(commands, tmp_path, COGMENT_MODEL_REGISTRY_ENDPOINT=endpoint, TERM="xterm", TZ="UTC")
    assert without_times(shown) == without_times(session)
    assert len(commands) == 5


def test_the_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert modelreg.__version__ in headings or len(headings) == 1


def test_the_oldest_releases_are_tested() -> None:
    def versions(requirements: str, sign: str) -> dict[str, str]:
        """Each requirement's version after this sign, without the zeros at its end."""
        found = re.findall(rf"^([a-z][\w-]*){sign}([\d.]+)", requirements, re.MULTILINE)
        return {name: re.sub(r"(\.0)+$", "", version) for name, version in found}

    setup, tox = configparser.RawConfigParser(), configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg")
    tox.read(ROOT / "tox.ini")
    needed = f"{setup['options']['install_requires']}\n{setup['options.extras_require']['test']}"
    assert versions(tox["testenv:oldest"]["deps"], "==") == versions(needed, ">=")
