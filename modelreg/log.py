"""Logging: `open_log` gives a server the logger it passes on to its parts.

Nothing is configured globally, so two servers in one process log to two places. Lines are rendered where they are
logged and written by a thread of the log's own: a slow disk, a full one, or a terminal that nobody reads holds up no
call. What can't be written is dropped and counted, and the count is logged as soon as writing works again.

`off` logs nothing; `error`, `warning`, `info` and `debug` are structlog's; `trace` lets everything through, which is
what `debug` does as long as nothing is logged below it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import IO, Protocol

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from modelreg.errors import LogFileUnusable
from modelreg.settings import LogFormat, LogLevel, Settings

Logger = FilteringBoundLogger
Clock = Callable[[], datetime]

_THRESHOLDS: dict[LogLevel, int] = {
    "off": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.NOTSET,
}

# A burst of this many lines is kept while the writer is held up, which is a few MiB; more are dropped.
MAX_WAITING_LINES = 10_000

# Lines about one event that clients can cause as often as they like: so many a minute, and so many of them about one key.
# A line has some 300 bytes, so a flood that goes on for a day writes 26 MB of an event.
LINES_A_MINUTE = 60
LINES_OF_A_KEY = 20

# How long the end of the program waits for lines to be written to something that doesn't take them.
CLOSE_SECONDS = 2.0


@contextlib.contextmanager
def open_log(settings: Settings, *, clock: Clock | None = None, stdout: IO[str] | None = None) -> Iterator[Logger]:
    """A logger as *settings* have it, until the end of the block; lines logged are written by then.

    *clock* gives the present time, in UTC, and *stdout* takes the place of standard output. Raises LogFileUnusable.
    """
    clock = clock or _utc_now
    target = None if settings.log_level == "off" else _target(settings, clock, stdout or sys.stdout)
    if target is None:
        yield silent_logger()
        return
    sink = _Sink(target, clock)
    logger: Logger = structlog.wrap_logger(
        sink,
        processors=[_Stamp(clock), *_renderers(settings.log_format, colors=target.is_terminal)],
        wrapper_class=structlog.make_filtering_bound_logger(_THRESHOLDS[settings.log_level]),
        context_class=dict,
    ).bind()
    sink.start(
        report_loss=lambda lines: logger.error("log lines were lost", lines=lines),
        report_kept=lambda reason: logger.warning("old log files can't be deleted", reason=reason),
    )
    try:
        yield logger
    finally:
        sink.close()


def silent_logger() -> Logger:
    """A logger that drops everything: for parts that are used without a server."""
    logger: Logger = structlog.wrap_logger(
        None,
        processors=[_drop],
        wrapper_class=structlog.make_filtering_bound_logger(_THRESHOLDS["off"]),
        context_class=dict,
    ).bind()
    return logger


class LineQuota:
    """Bounds the lines of events that clients can cause as often as they like, and counts the rest.

    A key says what a line is about: the lines of one key leave room for those of others. The owner calls `renew` once a
    minute and at the end.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._lines: Counter[str | tuple[str, str]] = Counter()
        self._left_out: Counter[str] = Counter()

    def allows(self, event: str, key: str) -> bool:
        """Return whether there is room for one more line, which counts as written then."""
        lines = self._lines
        if lines[event] >= LINES_A_MINUTE or lines[event, key] >= LINES_OF_A_KEY:
            self._left_out[event] += 1
            return False
        lines[event] += 1
        lines[event, key] += 1
        return True

    def renew(self) -> None:
        """Begin a new minute: log how many lines were left out of the last one."""
        self._lines.clear()
        left_out, self._left_out = self._left_out, Counter()
        for event, lines in left_out.items():
            self._logger.info("left lines out of the log", of=event, lines=lines)


def shown(text: str, longest: int) -> str:
    """Return *text* from a client as one line of at most *longest* characters, without control characters."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode("ascii")[:longest]


def daily_name(base: Path, day: date) -> Path:
    """The log file of one day: ``cogment.log.2025-01-31`` for ``cogment.log``."""
    return base.with_name(f"{base.name}.{day:%Y-%m-%d}")


def day_of(base: Path, name: str) -> date | None:
    """The day of a log file's name; None where `daily_name` gives no such name."""
    try:
        day = date.fromisoformat(name.removeprefix(f"{base.name}."))
    except ValueError:
        return None
    return day if daily_name(base, day).name == name else None


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


def _drop(_logger: WrappedLogger, _method: str, _event: EventDict) -> EventDict:
    raise structlog.DropEvent


# Processors: what is logged becomes a line.


class _Stamp:
    """Puts time and level first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {"timestamp": self._clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "level": method, "event": None, **event}


def _keep_on_one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Whatever was interpolated into the event, a reader of text can't take it for a line of the log."""
    text = str(event["event"])
    event["event"] = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return event


def _renderers(log_format: LogFormat, *, colors: bool) -> list[Processor]:
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    console = structlog.dev.ConsoleRenderer(
        colors=colors,
        repr_native_str=True,  # keeps fields on their line, too
        exception_formatter=structlog.dev.plain_traceback,
        sort_keys=False,
    )
    return [_keep_on_one_line, console]


# Sink: lines become bytes in a file.


class _Target(Protocol):
    is_terminal: bool

    def descriptor(self, day: date) -> int:
        """The file that lines of this day go to. Raises OSError."""

    def expire(self, day: date) -> None:
        """Delete files that are too old on this day. Raises OSError."""

    def close(self) -> None: ...


class _StandardOutput:
    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)
        self.is_terminal = os.isatty(fd) and "NO_COLOR" not in os.environ

    def descriptor(self, day: date) -> int:
        return self._fd

    def expire(self, day: date) -> None:
        pass

    def close(self) -> None:
        os.close(self._fd)


class _DailyFile:
    """A file for each day. Those of the last *keep_days* days stay, today's among them; 0 keeps all."""

    is_terminal = False

    def __init__(self, base: Path, keep_days: int) -> None:
        self._base = base
        self._keep_days = keep_days
        self._day: date | None = None
        self._fd = -1

    def descriptor(self, day: date) -> int:
        if day != self._day:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            opened = os.open(daily_name(self._base, day), flags, 0o644)
            self.close()
            self._fd, self._day = opened, day
        return self._fd

    def expire(self, day: date) -> None:
        if not self._keep_days:
            return
        with os.scandir(self._base.parent) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        failed: OSError | None = None
        for name in names:
            written = day_of(self._base, name)
            if written is not None and (day - written).days >= self._keep_days and written != self._day:
                try:
                    self._base.with_name(name).unlink(missing_ok=True)
                except OSError as error:
                    failed = error
        if failed is not None:
            raise failed

    def close(self) -> None:
        if self._day is not None:
            os.close(self._fd)
            self._day = None


def _target(settings: Settings, clock: Clock, stdout: IO[str] | None) -> _Target | None:
    """Where lines go, opened; None where there is no standard output, whose number another file may have by now."""
    if settings.log_file is None:
        return _StandardOutput(stdout.fileno()) if stdout is not None else None
    target = _DailyFile(settings.log_file, settings.log_keep_days)
    try:
        target.descriptor(clock().date())
    except OSError as error:
        raise LogFileUnusable(f"the log file {error.filename} can't be written: {error.strerror}") from error
    return target


class _Sink:
    """What structlog calls a logger: takes lines, and lets a thread write them."""

    def __init__(self, target: _Target, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        # Its put() is reentrant, so that logging from a signal handler or a finalizer can't deadlock.
        self._waiting: queue.SimpleQueue[tuple[date, bytes] | None] = queue.SimpleQueue()
        self._dropped = 0  # lines that found the queue full
        self._failed = 0  # lines that could not be written; only the thread changes it
        self._reported = 0
        self._torn = False  # the last line was only written in part
        self._expired_on: date | None = None

    def start(self, report_loss: Callable[[int], object], report_kept: Callable[[str], object]) -> None:
        self._report_loss = report_loss
        self._report_kept = report_kept
        # A daemon: a terminal that takes nothing must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="modelreg log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        entry = self._clock().date(), line.encode("utf-8", "backslashreplace") + b"\n"
        if threading.current_thread() is self._thread:
            self._write(*entry)  # a report of losses, which mustn't be lost itself
        elif self._waiting.qsize() < MAX_WAITING_LINES:
            self._waiting.put(entry)
        else:
            self._dropped += 1

    debug = info = warning = error = critical = put

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._target.close()

    def _run(self) -> None:
        self._expire(self._clock().date())
        while (entry := self._waiting.get()) is not None:
            written = self._write(*entry)
            self._expire(entry[0])  # by now that day's file is open
            if written and (lost := self._dropped + self._failed) > self._reported:
                self._report_loss(lost - self._reported)
                self._reported = lost

    def _expire(self, day: date) -> None:
        """Once a day, let old files go."""
        if day == self._expired_on:
            return
        self._expired_on = day
        try:
            self._target.expire(day)
        except OSError as error:
            self._report_kept(f"{error.filename}: {error.strerror}")

    def _write(self, day: date, line: bytes) -> bool:
        view = memoryview(b"\n" + line if self._torn else line)
        try:
            fd = self._target.descriptor(day)
            while view:
                view = view[os.write(fd, view) :]
                self._torn = len(view) > 0
        except OSError:
            self._failed += 1
            return False
        return True
