"""What is measured: servers that the harness starts in a fresh directory, and those that run already."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks import measure
from benchmarks.clients import OWN_CLIENTS

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 15.0

_DOCKER_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {0}/data}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}
http: {{addr: "127.0.0.1:0", secret: benchmarks}}
"""


class TargetError(Exception):
    """A target did not start, or died: what a row reports as the reason."""


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own: Ctrl-C is the run's, which then ends it. And Ctrl-C waits until it is known here:
    in the middle of Popen, it would leave behind a process that nobody knows of.
    """
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda number, _: caught.append(number)) for number in signals]
    try:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
    if caught:
        process.kill()
        process.wait()
        raise KeyboardInterrupt
    return process


def _module(name: str) -> Callable[[Path, int], list[str]]:
    return lambda directory, chunk: [sys.executable, "-m", name, str(directory), str(chunk)]


def _modelreg(directory: Path, chunk: int) -> list[str]:
    options = ["--host=127.0.0.1", "--port=0", f"--archive_dir={directory}", "--log_level=warning"]
    options += [f"--sent_version_chunk_size={chunk}"] if chunk else []
    return [sys.executable, "-m", "modelreg", "serve", *options]


def _docker_registry(directory: Path, _chunk: int) -> list[str]:
    config = directory / "config.yml"
    config.write_text(_DOCKER_REGISTRY.format(directory))
    return ["docker-registry", "serve", str(config)]


_BYTES = frozenset({"upload", "download", "fetch"})
_CALLS = frozenset({"lookup", "beside", "watch"})


@attrs.frozen(kw_only=True)
class Target:
    """*command* gives the command line for a directory and the size of the chunks to send, 0 for its default. *kinds* are those
    of scenarios that it can do; *transient* says whether it has versions that are not stored. *checked* is false where replies
    are made up. *sweep* is the part of the directory that is emptied after each round, where there's no call for that.
    """

    name: str
    meaning: str
    command: Callable[[Path, int], list[str]] | None = None
    address: str = ""  # of one that runs already
    client: str = ""  # instead of the scenario's
    kinds: frozenset[str] = _BYTES | _CALLS
    transient: bool = True
    checked: bool = True
    sweep: str = ""


TARGETS = (
    Target(name="modelreg", meaning="this project", command=_modelreg, kinds=_BYTES | _CALLS | {"boot"}),
    Target(name="purerpc", meaning="modelreg on purerpc's own transport", command=_module("benchmarks.purerpc_server")),
    Target(
        name="reference",
        meaning="a plain server on gRPC's C core (grpcio, threads)",
        command=_module("benchmarks.reference"),
    ),
    Target(
        name="docker-registry",
        meaning="blobs over HTTP, by one of the most used registries",
        command=_docker_registry,
        client="http",
        kinds=_BYTES - {"fetch"},
        transient=False,
        sweep="data",
    ),
)
# The same target, for scenarios of its own Python client and what is compared with it.
OWN = tuple(attrs.evolve(TARGETS[0], name=f"{client} client", client=client) for client in OWN_CLIENTS)
# Not a target but a limit: the same client, against a server that does nothing.
NULL = Target(
    name="null server",
    meaning="the client's own limit: a server that does nothing",
    command=_module("benchmarks.null"),
    kinds=_BYTES | {"lookup", "watch"},  # it answers one call of a connection after the other
    checked=False,
)


def available() -> list[Target]:
    return [target for target in TARGETS if target.name != "docker-registry" or shutil.which("docker-registry")]


class Server:
    """A target that is running, or was. Its directory is this object's, and goes with `close`."""

    def __init__(self, target: Target, directory: Path, chunk: int) -> None:
        self.target, self.directory, self.chunk = target, directory, chunk
        self.address = target.address
        self.pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._output = directory.with_name(directory.name + ".log")
        directory.mkdir(parents=True)
        host, _, port = target.address.rpartition(":")
        if host in ("localhost", "127.0.0.1", "[::1]"):
            self.pid = measure.process_at(int(port))
            try:
                if self.pid is not None:
                    measure.reset_peak(self.pid)
            except OSError:
                self.pid = None  # somebody else's: its memory can't be measured

    def launch(self) -> None:
        if self.target.command is None:
            return
        command = self.target.command(self.directory, self.chunk)
        with self._output.open("wb") as output:
            self._process = spawn(command, stdout=output, stderr=output)
        self.pid = self._process.pid

    def wait_until_listening(self, timeout: float = START_SECONDS) -> None:
        deadline = time.monotonic() + timeout
        while self._process is not None:
            if self._process.poll() is not None:
                raise TargetError(f"{self.target.name} ended with code {self._process.returncode}{self.last_words()}")
            if port := measure.listening(self._process.pid):
                self.address = f"127.0.0.1:{port}"
                return
            if time.monotonic() > deadline:
                raise TargetError(f"{self.target.name} did not listen within {timeout:g} s{self.last_words()}")
            time.sleep(0.005)

    def last_words(self) -> str:
        lines = self._output.read_text(errors="replace").strip().splitlines() if self._output.exists() else []
        return f": {lines[-1][:300]}" if lines else ""

    def sweep(self) -> None:
        if self.target.sweep:
            shutil.rmtree(self.directory / self.target.sweep, ignore_errors=True)

    def died(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # children too, and a server that won't stop
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._output.unlink(missing_ok=True)
