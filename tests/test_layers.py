"""The rooms of the house, and that an arrow between them only points down: cli → server → services → registry →
storage, with transport beside the last two. Imports are read from the source, so those inside functions and for type
checking count, too. What an import brings along by way of others is seen in a process of its own."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelreg.client

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "modelreg"

# What a room may import besides itself. The first seven are for all.
LEAVES = {"api", "bell", "errors", "grpc", "log", "renameat2", "settings"}
ROOMS: dict[str, set[str]] = {
    "api": set(),
    "bell": set(),
    "grpc": set(),
    "errors": {"grpc"},
    "machine": set(),
    "renameat2": set(),
    "settings": {"machine"},
    "log": {"errors", "settings"},
    "storage": LEAVES,
    "registry": {"storage", *LEAVES},
    "transport": LEAVES,
    "services": {"registry", "storage", "transport", *LEAVES},
    "client": {"transport", *LEAVES},
    "directory": {"client", *LEAVES},
    "credentials": {"services", "transport", *LEAVES},
    "server": {"credentials", "directory", "machine", "services", "registry", "storage", "transport", *LEAVES},
    "cli": {"client", "server", "services", "registry", "storage", "transport", *LEAVES},
    "__main__": {"cli"},
    "__init__": set(),
}

# The one module that speaks to purerpc, beside the generated stubs.
BRIDGE = PACKAGE / "transport/_purerpc.py"

# What a room has no business with.
STRANGERS: dict[str, set[str]] = {
    "registry": {"google", "grpc", "h2", "hpack", "purerpc", "socket", "modelreg.api"},
    "storage": {"google", "grpc", "h2", "hpack", "purerpc", "modelreg.api"},
    "transport": {"modelreg.api"},
}

# What importing a module, or all of a package, must not bring along, not even by way of others.
HTTP2 = {"h2", "hpack", "hyperframe", "purerpc"}
NEVER_LOADED: dict[str, set[str]] = {
    "modelreg.errors": {*HTTP2, "google", "trio", "anyio"},
    "modelreg.grpc": {*HTTP2, "google", "trio", "anyio"},
    "modelreg.storage": {*HTTP2, "google", "grpc", "modelreg.transport", "modelreg.api"},
    "modelreg.registry": {*HTTP2, "google", "grpc", "modelreg.transport", "modelreg.api"},
    "modelreg.client.errors": {*HTTP2, "google", "trio", "anyio", "modelreg.api"},
    "modelreg.client": {
        "purerpc",
        "trio",
        "modelreg.services",
        "modelreg.storage",
        "modelreg.registry",
        "modelreg.server",
    },
}

# Of `transport`, the client loads what both sides need.
SHARED_TRANSPORT = {"_hpack", "blocks", "buffers", "faults", "frames", "limits", "suites"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The full names of what a module imports, ``modelreg.errors.NotFound`` for example."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    found = set()
    for name in imports(path):
        top, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        if top == "modelreg" and room in ROOMS:  # else a name of modelreg/__init__.py
            found.add(room)
    return found


def test_every_room_is_known() -> None:
    assert {room_of(path) for path in MODULES} - set(ROOMS) == set(), "say in ROOMS where it belongs"


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_only_point_down(room: str) -> None:
    for path in MODULES:
        if room_of(path) == room:
            upwards = rooms_imported(path) - ROOMS[room] - {room}
            assert not upwards, f"{path.relative_to(ROOT)} imports {sorted(upwards)}"


@pytest.mark.parametrize("room", STRANGERS)
def test_rooms_know_nothing_of(room: str) -> None:
    for path in MODULES:
        if room_of(path) == room:
            known = [name for name in imports(path) for other in STRANGERS[room] if f"{name}.".startswith(f"{other}.")]
            assert not known, f"{path.relative_to(ROOT)} imports {known}"


def test_only_the_bridge_imports_purerpc() -> None:
    for path in MODULES:
        if path != BRIDGE and room_of(path) != "api":
            assert not any(f"{name}.".startswith("purerpc.") for name in imports(path)), path.relative_to(ROOT)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_module_imports_itself_by_way_of_others() -> None:
    paths = {dotted(path): path for path in MODULES}
    imported: dict[str, set[str]] = {}
    for module, path in paths.items():
        found = (next((name for name in prefixes(full) if name in paths), module) for full in imports(path))
        imported[module] = set(found) - {module}
    while leaves := {module for module, names in imported.items() if not names & imported.keys()}:
        for module in leaves:
            del imported[module]
    assert not imported, "each of these imports another of them"


def prefixes(name: str) -> Iterator[str]:
    """A name, and the packages around it: the nearest first."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def loaded_by(name: str) -> set[str]:
    """All modules that a process has loaded once it has imported a module, or all of a package."""
    wanted = [module for module in map(dotted, MODULES) if f"{module}.".startswith(f"{name}.")]
    code = f"import sys, {', '.join(wanted)}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("name", NEVER_LOADED)
def test_imports_bring_along_no_more_than_they_should(name: str) -> None:
    loaded = loaded_by(name)
    assert name in loaded
    assert not {module for module in loaded if NEVER_LOADED[name] & set(prefixes(module))}
    if name == "modelreg.client":
        of_transport = {module for module in loaded if module.startswith("modelreg.transport.")}
        assert of_transport == {f"modelreg.transport.{module}" for module in SHARED_TRANSPORT}


def test_the_names_of_the_client_are_all_there() -> None:
    assert set(modelreg.client._HOMES) == set(modelreg.client.__all__)
    for name, home in modelreg.client._HOMES.items():
        assert getattr(modelreg.client, name) is getattr(sys.modules[home], name)
    assert set(modelreg.client.__all__) <= set(dir(modelreg.client))
    with pytest.raises(AttributeError, match="no attribute 'ModelRegistri'"):
        getattr(modelreg.client, "ModelRegistri")  # noqa: B009 - mypy knows that it isn't there


def test_relative_imports_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "modelreg/storage/blobs.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "def f():\n    from . import a\n    from .b import c\n    from ..registry import d\n    import os.path\n"
    )
    assert list(imports(path)) == ["modelreg.storage.a", "modelreg.storage.b.c", "modelreg.registry.d", "os.path"]
    assert rooms_imported(path) == {"storage", "registry"}


def declared(extra: str = "") -> set[str]:
    """The distributions that setup.cfg asks for, by normalised name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.extras_require"][extra] if extra else setup["options"]["install_requires"]
    names = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines.splitlines())
    return {re.sub(r"[-_.]+", "-", name.group()).lower() for name in names if name}


# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "attr": "attrs",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "pytest_trio": "pytest-trio",
    "typing_extensions": "typing-extensions",
    "yaml": "pyyaml",
}


def distributions(paths: list[Path]) -> set[str]:
    """The distributions that modules get their imports from, besides Python and the project itself."""
    ours = {"modelreg", "tests", "benchmarks"}
    tops = {name.partition(".")[0] for path in paths for name in imports(path)} - sys.stdlib_module_names - ours
    return {DISTRIBUTIONS.get(top, top) for top in tops}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    assert distributions(MODULES) == declared()


def test_what_the_tests_import_is_declared() -> None:
    # The official SDK's requirements contradict the tests' own: they skip where it isn't installed.
    used = distributions(sorted((ROOT / "tests").rglob("*.py"))) - {"cogment"}
    assert used <= declared() | declared("test"), "the extra 'test' lacks some"
