"""`modelreg serve` for tests: as a program of its own, to be stopped, killed and started again, and within the test's process."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import structlog
import trio

from modelreg import server
from modelreg.settings import Settings
from tests.support import measures

ROOT = Path(__file__).parent.parent.parent

# How long anything may take that a test waits for, in seconds; far beyond what it does take.
PATIENCE = 30.0

LogLine = dict[str, Any]


def command(*arguments: str) -> list[str]:
    """The program as a person starts it."""
    return [sys.executable, "-m", "modelreg", *arguments]


def environment(**variables: str) -> dict[str, str]:
    """What the program is started with: none of the options of the person who runs the tests, and a warning ends it."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COGMENT_")}
    return {**ours, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **variables}


class ServerProgram:
    """A server in a process of its own.

    Arguments:
        archive_dir: its directory; what it's started with again. None leaves it to the program, or to *variables*.
        options: further options, as on the command line.
        cwd: its working directory.
        variables: of its environment.
    """

    # What Python is told to run.
    program: tuple[str, ...] = ("-m", "modelreg")

    def __init__(self, archive_dir: Path | None, *options: str, cwd: Path | None = None, **variables: str) -> None:
        self._archive_dir = archive_dir
        self._cwd = cwd
        self._variables = variables
        self.options = options
        self.port = 0
        self.log: list[LogLine] = []
        self._news = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def archive_dir(self) -> Path:
        assert self._archive_dir is not None, "it chooses its own"
        return self._archive_dir

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "it doesn't run"
        return self._process

    def start(self) -> ServerProgram:
        """Start it, and wait until it says that it's serving."""
        self.launch()
        try:
            self.port = self.wait_for_log("serving")["port"]
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        assert self._process is None, "it runs already"
        archive = [] if self._archive_dir is None else [f"--archive_dir={self._archive_dir}"]
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.log = []
        self._ended = False
        self._process = subprocess.Popen(
            [sys.executable, *self.program, "serve", "--port=0", "--log_format=json", *archive, *self.options],
            cwd=self._cwd,
            env=environment(**self._variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_log, name="reads a server's log", daemon=True)
        self._reader.start()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.log.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for_log(self, event: str, **fields: object) -> LogLine:
        """The first line since the start of this event, with these fields, as soon as it's there."""
        wanted = {"event": event, **fields}

        def found() -> LogLine | None:
            return next((line for line in self.log if wanted.items() <= line.items()), None)

        with self._news:
            self._news.wait_for(lambda: found() or self._ended, PATIENCE)
            line = found()
            assert line is not None, f"no {wanted} in the log: {self.log}, {self._said()!r}"
            return line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def hang_up(self, event: str) -> None:
        """SIGHUP, and wait until the log says *event*."""
        with self._news:
            del self.log[1:]
        self.signal(signal.SIGHUP)
        self.wait_for_log(event)

    def wait(self) -> int:
        """Wait until it has ended, and return its exit code. Nothing may have been said on standard error."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        said = self._forget()
        assert not said, said
        return code

    def stop(self) -> None:
        """SIGTERM, after which it ends well."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log

    def kill(self) -> None:
        """SIGKILL: what a crash leaves behind is what is on the disk now."""
        self.process.kill()
        self.process.wait()
        self._forget()

    def restart(self) -> None:
        """Start it again on its directory, after a stop where it's running; the port is another one."""
        if self.running:
            self.stop()
        self.start()

    def _forget(self) -> str:
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        said = self._said()
        self._stderr.close()
        self._process = None
        return said

    def _said(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def peak_memory_bytes(self) -> int:
        """The most memory it has had so far."""
        return measures.peak_memory_bytes(self.process.pid)


@contextlib.contextmanager
def server_program(
    archive_dir: Path | None, *options: str, cwd: Path | None = None, **variables: str
) -> Iterator[ServerProgram]:
    """A running server. At the end, unless the test has ended it, it's told to stop, and has to end well."""
    program = ServerProgram(archive_dir, *options, cwd=cwd, **variables).start()
    try:
        yield program
    except BaseException:
        if program.running:
            program.kill()
        raise
    if program.running:
        program.stop()


StartServer = Callable[..., ServerProgram]


@contextlib.contextmanager
def server_programs(default_dir: Path) -> Iterator[StartServer]:
    """Starts servers, as many as a test wants, with the options it gives; without *archive_dir* on *default_dir*."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, archive_dir: Path = default_dir) -> ServerProgram:
            return stack.enter_context(server_program(archive_dir, *options))

        yield start


@attrs.frozen
class ServerHere:
    """A server in the test's own process, on its event loop.

    Attributes:
        address: of its port.
        stop: tells it to stop.
        log: what it has logged, as dictionaries; an exception is under ``exc_info``.
    """

    address: str
    stop: trio.Event
    log: list[LogLine]


@contextlib.asynccontextmanager
async def server_here(archive_dir: Path, **settings: Any) -> AsyncIterator[ServerHere]:
    """A server in this process, until the context ends; stopped then, if it hasn't been."""
    log: list[LogLine] = []
    logger = structlog.wrap_logger(
        None,
        processors=[functools.partial(_capture, log)],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        context_class=dict,
    )
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        serve = functools.partial(server.serve, stop=stop)
        port: int = await nursery.start(serve, Settings(port=0, archive_dir=archive_dir, **settings), logger)
        try:
            yield ServerHere(f"127.0.0.1:{port}", stop, log)
        finally:
            stop.set()


def _capture(log: list[LogLine], _logger: object, method: str, event: structlog.typing.EventDict) -> LogLine:
    log.append({"level": method, **event})
    raise structlog.DropEvent
