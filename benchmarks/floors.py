"""What the machine itself can do with the same bytes, measured in the same rounds: nothing that serves them can be faster for long.

Payload is made before the clock starts, as for the servers.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from benchmarks import GIB, MIB

PIECE = MIB
LARGEST = GIB  # of what is measured: beyond it, a floor's MB/s doesn't change
_random = memoryview(os.urandom(16 * MIB))


@attrs.frozen
class Floor:
    """*run* does its work on *count* versions of *size* bytes, in *directory* if it writes, and returns seconds."""

    name: str
    meaning: str
    run: Callable[[int, int, Path], float]


def _pieces(size: int) -> list[memoryview]:
    starts = range(0, size, PIECE)
    return [_random[start % len(_random) :][: min(PIECE, size - start)] for start in starts]


def sha256(size: int, count: int, _directory: Path) -> float:
    pieces = _pieces(size)
    start = time.monotonic()
    for _ in range(count):
        sha = hashlib.sha256()
        for piece in pieces:
            sha.update(piece)
    return time.monotonic() - start


def write_fsync(size: int, count: int, directory: Path) -> float:
    pieces = _pieces(size)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        start = time.monotonic()
        for number in range(count):
            with open(f"{folder}/{number}", "xb", buffering=0) as file:
                for piece in pieces:
                    if file.write(piece) != len(piece):
                        raise OSError("a short write")
                os.fsync(file)
        return time.monotonic() - start


def _timed_sending(total: int, send: Callable[[socket.socket], None]) -> float:
    """Seconds to send over loopback TCP, until a thread at the other end (without the interpreter's lock) has it all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), 10)
        theirs, _ = listener.accept()
    ours.settimeout(None)

    def drain() -> None:
        buffer, left = bytearray(MIB), total
        while left and (count := theirs.recv_into(buffer)):
            left -= count

    thread = threading.Thread(target=drain)
    with ours, theirs:
        thread.start()
        start = time.monotonic()
        try:
            send(ours)
        finally:
            ours.shutdown(socket.SHUT_WR)
            thread.join()
        return time.monotonic() - start


def loopback(size: int, count: int, _directory: Path) -> float:
    pieces = _pieces(size)

    def send(sock: socket.socket) -> None:
        for _ in range(count):
            for piece in pieces:
                sock.sendall(piece)

    return _timed_sending(size * count, send)


def sendfile(size: int, count: int, directory: Path) -> float:
    with tempfile.TemporaryFile(dir=directory) as file:
        for piece in _pieces(size):
            file.write(piece)
        file.flush()

        def send(sock: socket.socket) -> None:
            for _ in range(count):
                sent = 0
                while sent < size:
                    sent += os.sendfile(sock.fileno(), file.fileno(), sent, size - sent)

        return _timed_sending(size * count, send)


SHA256 = Floor("sha256", "SHA-256 of the bytes on one core", sha256)
WRITE = Floor("write+fsync", "the bytes written and fsynced", write_fsync)
LOOPBACK = Floor("loopback", "the bytes from socket to socket", loopback)
SENDFILE = Floor("sendfile", "the bytes from the page cache to a socket, by sendfile", sendfile)
