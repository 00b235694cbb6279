"""A relay between a client and a server that a test can interfere with: swallow what the server says, cut all, let nobody in."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any


class Relay:
    """Passes bytes on between its own port and a server's."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.connections = 0
        self._mute = threading.Event()
        self._closed = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def mute(self) -> None:
        """From now on nothing of what the server says gets through, on connections that are open."""
        self._mute.set()

    def cut(self) -> None:
        """Close all connections, and let new ones through undisturbed."""
        self._mute.clear()
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, function: Any, *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.server_port))
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((client, server))
            self._start(self._pump, client, server, False)
            self._start(self._pump, server, client, True)

    def _pump(self, source: socket.socket, drain: socket.socket, from_server: bool) -> None:
        muted = False
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                muted = muted or (from_server and self._mute.is_set())
                if not muted:
                    drain.sendall(data)
        self._close(source, drain, from_server)

    def _close(self, source: socket.socket, drain: socket.socket, from_server: bool) -> None:
        for end in (source, drain):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if from_server:
            source.close()
            drain.close()


@contextlib.contextmanager
def relay_to(server_port: int) -> Iterator[Relay]:
    relay = Relay(server_port)
    try:
        yield relay
    finally:
        relay.close()
