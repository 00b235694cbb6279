"""What the program does first, before the imports that take most of its start. This module imports nothing that takes long.

Standard streams: a caller may have closed them (``>&-``). Python has None for such a stream, and the next file that is opened gets
its number. /dev/null takes its place. What an output's encoding can't hold is written as an escape.

Signals: until the server listens for SIGTERM and SIGHUP, they wait: the kernel keeps them, and delivers them as soon as
`modelreg.server.run` lets it. After the server's end they do nothing.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence

HELD_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class ClosedStream(io.TextIOWrapper):
    """/dev/null, in place of a standard stream that the caller has closed."""


def prepare_streams() -> None:
    """Make all three standard streams usable."""
    for name, mode in (("stdin", "rb"), ("stdout", "wb"), ("stderr", "wb")):
        stream = getattr(sys, name)
        if stream is None:
            fd = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is the stream's own
            os.set_inheritable(fd, True)
            null = open(fd, mode, closefd=False)  # noqa: SIM115 (for as long as the process lives)
            setattr(sys, name, ClosedStream(null, encoding="utf-8", errors="backslashreplace"))
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stdout_is_closed() -> bool:
    """Whether the caller has closed standard output."""
    return isinstance(sys.stdout, ClosedStream)


def hold_signals(arguments: Sequence[str]) -> None:
    """Let signals wait for the server, where *arguments* start one."""
    if arguments[:1] == ["serve"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        for number in HELD_SIGNALS:
            signal.signal(number, lambda _number, _frame: None)  # what is left of them at the end


def ignore_signals(arguments: Sequence[str]) -> None:
    """Let no signal change how a server has ended: when Python ends, it gives signals their default action back, unless they're ignored."""
    if arguments[:1] == ["serve"]:
        for number in HELD_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
