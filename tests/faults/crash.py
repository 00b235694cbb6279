"""Servers that crash on command: at the n-th call that they make on their archive directory, or from outside.

`Launcher` starts them, `Control` says at which call what is to happen (``crash.c`` does it, preloaded), and `Server` is one of them.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.calls import Calls, connected
from tests.support.server import PATIENCE

HERE = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")

COUNT, KILL, CUT_POWER, FAIL, HOLD = range(5)


class _Shared(ctypes.Structure):
    """``struct control`` of crash.c."""

    _fields_ = (
        ("armed", ctypes.c_int),
        ("action", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("short_writes", ctypes.c_int32),
        ("calls", ctypes.c_long),
        ("at", ctypes.c_int64),
        ("only", ctypes.c_char * 32),
        ("root", ctypes.c_char * 256),
        ("seen", ctypes.c_char * 32),
        ("names", ctypes.c_char * 8192),
        ("named", ctypes.c_int),
        ("changed", ctypes.c_int),
    )


class Control:
    """What the servers of one launcher are told to do; made by :func:`launcher` only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_Shared)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._shared = _Shared.from_buffer(self._memory)

    def arm(
        self, root: Path, action: int = COUNT, *, at: int = 0, error: int = 0, only: str = "", short_writes: int = 0
    ) -> None:
        """From now on count the calls on *root* (those named *only*, or "changing" something), and act in place of call number *at*."""
        self.disarm()
        shared = self._shared
        shared.calls = shared.named = shared.changed = 0
        shared.names = shared.seen = b""
        shared.action, shared.at, shared.error, shared.short_writes = action, at, error, short_writes
        shared.only, shared.root = only.encode(), os.fsencode(root)
        ctypes.memset(ctypes.addressof(shared) + _Shared.names.offset, 0, _Shared.names.size)
        shared.armed = 1

    def disarm(self) -> None:
        self._shared.armed = 0

    @property
    def calls(self) -> int:
        """How many have been counted."""
        return int(self._shared.calls)

    @property
    def names(self) -> list[str]:
        """Their names, in order."""
        names: bytes = self._shared.names
        return names.decode().split()

    @property
    def seen(self) -> str:
        """The call that it acted at; empty while it hasn't."""
        seen: bytes = self._shared.seen
        return seen.decode()


class Ended(Exception):
    """A server ended before it served."""

    def __init__(self, code: int, log: list[dict[str, Any]], said: str) -> None:
        super().__init__(f"it ended with {code}: {said or log}")
        self.code = code
        self.log = log
        self.said = said


class Server:
    """A registry in a process of its own; made by :meth:`Launcher.start` only."""

    def __init__(self, launcher: Launcher, archive_dir: Path, pid: int, output: int, errors: int, counts: int) -> None:
        self._launcher = launcher
        self.archive_dir = archive_dir
        self.pid = pid
        self.code: int | None = None
        self.log: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._ended = False
        self._errors = os.fdopen(errors)
        with os.fdopen(counts) as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 16)).cast("q")
        self._reader = threading.Thread(target=self._read_log, args=(os.fdopen(output),), daemon=True)
        self._reader.start()

    def _read_log(self, output: Any) -> None:
        with output:
            for line in output:
                if line.endswith("\n"):  # a kill can cut one short
                    with self._news:
                        self.log.append(json.loads(line))
                        self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for_log(self, event: str) -> dict[str, Any]:
        """The first line of this event, as soon as it's there; raises Ended where the server ended before."""

        def found() -> dict[str, Any] | None:
            return next((line for line in self.log if line["event"] == event), None)

        with self._news:
            assert self._news.wait_for(lambda: found() or self._ended, PATIENCE), f"no {event!r} in {self.log}"
            line = found()
        if line is None:
            code = self.wait()
            raise Ended(code, self.log, self.said)
        return line

    @property
    def port(self) -> int:
        port: int = self.wait_for_log("serving")["port"]
        return port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def tasks(self) -> int:
        """How many tasks it has."""
        return self._counts[0]

    @property
    def most_tasks(self) -> int:
        """How many it has had at most."""
        return self._counts[1]

    @contextmanager
    def calls(self) -> Iterator[Calls]:
        """The calls on a connection of their own."""
        with connected(self.address) as calls:
            yield calls

    @property
    def running(self) -> bool:
        """Whether it hasn't been killed, nor ended. It may be about to."""
        return not self._ended

    def wait(self) -> int:
        """Wait until it has ended; its exit code, or the negative number of the signal that ended it."""
        if self.code is None:
            self._reader.join(PATIENCE)
            assert not self._reader.is_alive(), "it doesn't end"
            self.code = self._launcher.wait(self.pid)
            with self._errors:
                self.said = self._errors.read()
        return self.code

    def signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM."""
        self.signal(signal.SIGTERM)
        return self.wait()


class Launcher:
    """Starts servers; made by :func:`launcher` only.

    Attributes:
        control: tells them when to crash; None where there's no compiler for ``crash.c``.
    """

    def __init__(self, process: socket.socket, control: Control | None) -> None:
        self._socket = process
        self._control = control
        self._servers: list[Server] = []

    @property
    def control(self) -> Control:
        if self._control is None:
            pytest.skip(f"no C compiler ({', '.join(COMPILERS)}) to build crash.c with")
        return self._control

    def launch(self, archive_dir: Path, *options: str, files: int | None = None) -> Server:
        """Start a server, and don't wait for it. *files* is how many descriptors it may have."""
        arguments = ["--port=0", "--log_format=json", f"--archive_dir={archive_dir}", *options]
        with open(os.devnull) as nothing:
            started = self._spawn("serve", arguments, nothing.fileno(), files)
        server = Server(self, archive_dir, *started)
        self._servers.append(server)
        return server

    def _spawn(
        self, what: str, arguments: list[Any], stdin: int, files: int | None = None
    ) -> tuple[int, int, int, int]:
        """Start something; returns its process id, and descriptors of its output, its errors and its counts of tasks."""
        output, its_output = os.pipe()
        errors, its_errors = os.pipe()
        counts = os.memfd_create("tasks")
        os.ftruncate(counts, 16)
        order = json.dumps({"start": what, "arguments": arguments, "files": files}).encode()
        socket.send_fds(self._socket, [order], [stdin, its_output, its_errors, counts])
        pid = self._answer()
        os.close(its_output)
        os.close(its_errors)
        return pid, output, errors, counts

    @contextmanager
    def canary(self, server: Server) -> Iterator[None]:
        """Another client, in a process of its own, calls all the time: none of its calls may take 100 ms."""
        its_stdin, stdin = os.pipe()
        pid, output, errors, counts = self._spawn("canary", [server.port, server.pid], its_stdin)
        os.close(its_stdin)
        os.close(counts)
        with os.fdopen(output) as said, os.fdopen(errors) as complaints:
            try:
                assert said.readline() == '"singing"\n', complaints.read()
                yield
            finally:
                os.close(stdin)
                code = self.wait(pid)
            assert code == 0, complaints.read()
            slowest = json.loads(said.read())
            sys.stdout.write(f"the canary's slowest call: {slowest * 1000:.1f} ms\n")  # pytest -s shows it
            assert slowest < 0.1

    def start(self, archive_dir: Path, *options: str, files: int | None = None) -> Server:
        """Start a server, and wait until it serves. Raises Ended where it doesn't."""
        server = self.launch(archive_dir, *options, files=files)
        server.wait_for_log("serving")
        return server

    def wait(self, pid: int) -> int:
        self._socket.sendall(json.dumps({"wait": pid}).encode())
        return self._answer()

    def _answer(self) -> int:
        answer = json.loads(self._socket.recv(100))
        assert isinstance(answer, int)
        return answer

    def end_servers(self) -> None:
        """Kill what still runs."""
        for server in self._servers:
            server.kill()
        self._servers.clear()


def build(directory: Path) -> Path | None:
    """Build crash.c, where there's a compiler."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    library = directory / "crash.so"
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", library, HERE / "crash.c", "-ldl"], check=True, timeout=PATIENCE
    )
    return library


def preloaded(library: Path | None, control: Control | None) -> dict[str, str]:
    """The environment of a process that crashes on command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COGMENT_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent.parent), environment.get("PYTHONPATH")]))
    if library is not None and control is not None:
        environment |= {"LD_PRELOAD": str(library), "CRASH_CONTROL": str(control.path)}
    return environment


@contextmanager
def open_launcher(directory: Path) -> Iterator[Launcher]:
    """A launcher that keeps its files in *directory*."""
    library = build(directory)
    control = Control(directory / "control") if library else None
    ours, its = socket.socketpair()
    with (
        ours,
        subprocess.Popen(
            [sys.executable, str(HERE / "launcher.py")],
            stdin=its.fileno(),
            env=preloaded(library, control),
            cwd=directory,
        ) as process,
    ):
        its.close()
        launcher = Launcher(ours, control)
        try:
            yield launcher
            launcher.end_servers()
        finally:
            ours.close()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()


def copy_archive(source: Path, target: Path) -> Path:
    """Make *target* a copy of a stopped server's directory. What's there is used again: its 256 directories for blobs take their time."""
    there = tree(target)
    wanted = tree(source)
    for name in sorted(there, reverse=True):
        if not there[name]:
            os.unlink(target / name)
        elif not wanted.get(name):
            os.rmdir(target / name)
    target.mkdir(exist_ok=True)
    for name, is_directory in wanted.items():
        if not is_directory:
            shutil.copy2(source / name, target / name, follow_symlinks=False)
        elif not there.get(name):
            os.mkdir(target / name)
    return target


def tree(root: Path) -> dict[str, bool]:
    """The relative names of all that is below *root*, and whether it's a directory; those first that hold others."""
    found = {}
    waiting = [""] if root.is_dir() else []
    for directory in waiting:
        with os.scandir(os.path.join(root, directory)) as entries:
            for entry in entries:
                name = os.path.join(directory, entry.name)
                found[name] = entry.is_dir(follow_symlinks=False)
                if found[name]:
                    waiting.append(name)
    return found


def files_below(root: Path) -> set[str]:
    """The names of the files and directories below *root*; not the directories of blobs."""
    return {name for name, is_directory in tree(root).items() if not is_directory or len(os.path.basename(name)) != 2}
