"""Starts servers by forking a process that has imported everything already: a crash test needs hundreds, and each takes
some 20 ms in place of half a second. What's forked off runs the program itself, ``modelreg serve``, and is killed like any other. Canaries,
too, are forked off it.

It talks to the test over the Unix socket that's its standard input: a message is JSON, with the descriptors for what is to be started: its
standard input, output and error, and the memory in which it counts its tasks.
"""

from __future__ import annotations

import functools
import gc
import json
import mmap
import os
import resource
import signal
import socket
from typing import Any

import trio

from modelreg import server  # noqa: F401  # what `modelreg serve` would import when it's told to serve
from modelreg.cli import main
from tests.faults import canary


class TaskCounter(trio.abc.Instrument):
    """Keeps two numbers in memory that the test sees: how many tasks there are, and how many there have been at most."""

    def __init__(self, descriptor: int) -> None:
        self._counts = memoryview(mmap.mmap(descriptor, 16)).cast("q")

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        counts = self._counts
        counts[0] += 1
        if counts[0] > counts[1]:
            counts[1] = counts[0]

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._counts[0] -= 1


def start(order: dict[str, Any], descriptors: list[int]) -> int:
    """Fork off a server or a canary; return its process id."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        *standard, counts = descriptors
        counter = TaskCounter(counts)
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        os.closerange(3, 100)
        if order["files"] is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (order["files"], order["files"]))
        if order["start"] == "serve":
            setattr(trio, "run", functools.partial(trio.run, instruments=[counter]))  # noqa: B010 - mypy knows it as a function
            code = main(["serve", *order["arguments"]])
        else:
            canary.main(*order["arguments"])
            code = 0
    finally:
        os._exit(code)


def obey(tests: socket.socket) -> None:
    children: set[int] = set()
    gc.freeze()  # a collection in a child would copy every page
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(tests, 1 << 16, 4)
            if not message:
                return
            order: dict[str, Any] = json.loads(message)
            if "start" in order:
                answer = start(order, list(descriptors))
                children.add(answer)
                for descriptor in descriptors:
                    os.close(descriptor)
            else:
                _, status = os.waitpid(order["wait"], 0)
                children.remove(order["wait"])
                answer = os.waitstatus_to_exitcode(status)
            tests.sendall(json.dumps(answer).encode())
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    obey(socket.socket(fileno=0))
