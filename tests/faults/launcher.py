"""Starts servers by forking a process that has imported everything already: a crash test needs hundreds, and each takes
some 20 ms in place of half a second. What's forked off runs the program itself, ``modelreg serve``, and is killed like any other.

It talks to the test over the Unix socket that's its standard input: a message is JSON, with the descriptors for the server's output.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
from typing import Any

from modelreg import server  # noqa: F401  # what `modelreg serve` would import when it's told to serve
from modelreg.cli import main


def launch(arguments: list[str], outputs: list[int], files: int | None) -> int:
    """Fork off the program; return its process id."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(outputs[0], 1)
        os.dup2(outputs[1], 2)
        os.closerange(3, 100)
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        code = main(arguments)
    finally:
        os._exit(code)


def obey(tests: socket.socket) -> None:
    children: set[int] = set()
    gc.freeze()  # a collection in a child would copy every page
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(tests, 1 << 16, 2)
            if not message:
                return
            order: dict[str, Any] = json.loads(message)
            if "serve" in order:
                answer = launch(order["serve"], descriptors, order["files"])
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
