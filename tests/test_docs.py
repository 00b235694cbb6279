"""The README and docs/ are true: tables, figures and drawings are compared with the code."""

from __future__ import annotations

import configparser
import inspect
import re
import textwrap
from collections.abc import Iterator

import click
import pytest
import yaml

import modelreg
from benchmarks import __main__ as benchmarks
from modelreg.cli import command, outcome
from modelreg.client import LatestModel, ModelRegistry, RegistryError
from modelreg.errors import StartupError
from modelreg.log import LINES_A_MINUTE, LINES_OF_A_KEY
from modelreg.registry.numbers import BLOCK
from modelreg.server import DRAIN_SECONDS
from modelreg.services.audit import USER_ID_KEY
from modelreg.services.messages import CREATE_MODEL_KEY, OFFSET_KEY, REQUEST_ID_KEY, WATCH_KEEPALIVE_KEY
from modelreg.services.status import HIGHEST_LOAD
from modelreg.settings import OPTIONS, Option
from modelreg.storage import layout
from tests.support.pages import PAGES, blocks, prose, sentences
from tests.support.server import ROOT
from tests.test_layers import MODULES, ROOMS, room_of, rooms_imported

LONGEST_README = 150
LONGEST_LINE = 100

# Flags of other programs, in commands that pages show.
FOREIGN_FLAGS = {"--check", "--no-cache-dir", "--uid"}

COMMANDS = command.modelreg.commands
CONTEXT = click.Context(command.modelreg)

# What newer releases of click have for a default that isn't given.
UNSET = getattr(click.core, "UNSET", None)


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
        outcome.USAGE: "The command line is wrong: an option, an argument, or a file that isn't there.",
        outcome.SOFTWARE: "A bug. `--log_level=debug` shows where.",
        outcome.INTERRUPTED: "Interrupted; a server, before it served.",
        outcome.DEAF: "The reader of the output has gone.",
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
    assert options_table() in PAGES["docs/options.md"], f"the table should be\n\n{options_table()}"


def test_nothing_else_is_called_an_option() -> None:
    commands = [*COMMANDS.values(), benchmarks.main]
    flags = {
        flag for command in commands for option in flags_of(command) for flag in option.opts + option.secondary_opts
    }
    text = "\n".join(PAGES.values())
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", text)) <= flags | FOREIGN_FLAGS | {"--help"}
    variables = {option.env for option in OPTIONS} | {str(flag.envvar) for flag in common_flags() if flag.envvar}
    assert set(re.findall(r"COGMENT_[A-Z_]+", text)) == variables | {"COGMENT_MODEL_REGISTRY_TOKEN"}


def test_the_tables_of_commands_and_their_flags() -> None:
    assert commands_table() in PAGES["docs/cli.md"], f"the table should be\n\n{commands_table()}"
    assert common_flags_table() in PAGES["docs/cli.md"], f"the table should be\n\n{common_flags_table()}"


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
    assert expected in PAGES["docs/cli.md"], f"the table should be\n\n{expected}"


def test_the_layout_is_drawn_as_in_the_code() -> None:
    drawing = re.search(r"::\n\n(.*?)\n\n(?=\S)", inspect.getdoc(layout) or "", re.DOTALL)
    assert drawing is not None
    assert textwrap.dedent(drawing.group(1)) + "\n" in blocks("docs/architecture.md", "")


def test_the_house_is_drawn_as_it_stands() -> None:
    (house, *_) = blocks("docs/architecture.md", "text")
    entries = {path.name for path in (ROOT / "modelreg").iterdir()} - {"__pycache__", "py.typed"}
    drawn = re.findall(r"^  ([\w.]+)/? ", house, re.MULTILINE)
    assert set(drawn) == {name for name in entries if not name.startswith("__")}
    for top in re.findall(r"^(\w+)/", house, re.MULTILINE):
        assert (ROOT / top).is_dir()


def test_the_arrows_between_the_layers() -> None:
    def row(room: str) -> tuple[str, ...]:
        found = set().union(*(rooms_imported(path) for path in MODULES if room_of(path) == room)) - {room}
        return f"`{room}`", ", ".join(f"`{other}`" for other in reversed(ROOMS) if other in found)

    drawn = [room for room in reversed(ROOMS) if not room.startswith("__")]
    expected = table(("Part", "Imports"), *map(row, drawn))
    assert expected in PAGES["docs/architecture.md"], f"the table should be\n\n{expected}"


def test_the_figures_that_the_code_has() -> None:
    assert f"a model that had transient versions skips up to {BLOCK} numbers" in sentences("docs/guarantees.md")
    assert f"in percent of the machine's cores, at most {HIGHEST_LOAD}" in sentences("docs/grpc.md")
    assert f"running calls have {DRAIN_SECONDS:.0f} seconds to finish" in sentences("docs/operations.md")
    assert f"at most {LINES_A_MINUTE} lines a minute, and {LINES_OF_A_KEY} for" in sentences("docs/operations.md")
    assert f"`FORMAT`, which is {layout.FORMAT_VERSION} today" in sentences("docs/operations.md")


def test_the_figures_of_the_readme() -> None:
    figures = re.findall(r"\d[\d,]*(?= (?:MB/s|ms|MB)\b)", PAGES["README.md"])
    assert len(figures) >= 4
    assert set(figures) <= set(re.findall(r"\d[\d,]*", PAGES["docs/benchmarks.md"]))


def test_the_oldest_python() -> None:
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg")
    oldest = setup["options"]["python_requires"].removeprefix(">=")
    assert f"With Python {oldest} or newer" in sentences("README.md")


def test_the_metadata_that_the_code_knows() -> None:
    keys = {REQUEST_ID_KEY, CREATE_MODEL_KEY, OFFSET_KEY, WATCH_KEEPALIVE_KEY, USER_ID_KEY}
    assert set(re.findall(r"^\| `((?:modelreg|user)-[\w-]+)` \|", PAGES["docs/grpc.md"], re.MULTILINE)) == keys


def test_the_clients_errors() -> None:
    rows = re.findall(r"^\| `([A-Z]\w+)` \| .* \| .* \|$", PAGES["docs/python.md"], re.MULTILINE)
    assert set(rows) == {kind.__name__ for kind in RegistryError.__subclasses__()}


def test_the_methods_of_the_sdk() -> None:
    for kind in (ModelRegistry, LatestModel):
        methods = {name for name in vars(kind) if not name.startswith("_")} - {"close", "closed"}
        assert methods <= set(re.findall(r"`(?:LatestModel\.)?(\w+)\(", PAGES["docs/sdk.md"])), kind


def test_two_commands_do_everything() -> None:
    start, test = (block.strip() for block in blocks("README.md", "bash"))
    assert start == "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/modelreg serve"
    assert test == "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/pytest"
    assert blocks("docs/grpc.md", "bash") == [".venv/bin/modelreg serve --grpc_reflection\n"]


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= LONGEST_README


def test_the_readmes_links_work_wherever_it_is_shown() -> None:
    links = re.findall(r"\]\(([^)]*)\)", prose("README.md"))
    assert links
    assert all(link.startswith("https://") for link in links), "package indexes have no docs/: name the page instead"


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose(page)):
        assert ((ROOT / page).parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named(page: str) -> None:
    for name in re.findall(r"`([\w./-]+\.(?:py|md|c|proto|cfg|toml))`", prose(page)):
        if "/" in name or (ROOT / name).exists():
            assert any((root / name).is_file() for root in (ROOT, ROOT / "modelreg")), name
        else:
            assert list((ROOT / "modelreg").rglob(name)), name


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page: str) -> None:
    for line in prose(page).splitlines():
        assert len(line) <= LONGEST_LINE or line.startswith("| "), line


def test_every_page_is_in_the_sites_menu() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = [page for entry in site["nav"] for of in entry.values() for page in ([of] if isinstance(of, str) else of)]
    named = {page if isinstance(page, str) else next(iter(page.values())) for page in pages}
    assert {f"docs/{name}" for name in named} == {page for page in PAGES if page.startswith("docs/")}


def test_the_faults() -> None:
    text = PAGES["docs/faults.md"]
    named = re.findall(r"`(tests/[\w/]+\.py)`((?:: `\w+`(?:, `\w+`)*)?)", text)
    for file, functions in named:
        source = (ROOT / file).read_text()
        for function in re.findall(r"`(\w+)`", functions):
            assert f"def {function}(" in source, f"{file} has no {function}"
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "tests/faults").glob("test_*.py")}
    assert written <= {file for file, _ in named}, "add a row"
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


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
