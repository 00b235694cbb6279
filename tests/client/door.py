"""A TLS server that wants to know who calls, and turns everybody away."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import trustme


class Door:
    """Lets nobody in, and says by an alert why: the handshake is all that it does."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.knocks = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._answer, daemon=True)

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"

    def _answer(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.knocks += 1
            secure = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            with secure, contextlib.suppress(OSError):
                with contextlib.suppress(ssl.SSLError):
                    secure.do_handshake()
                secure.shutdown(socket.SHUT_WR)
                while secure.recv(4096):  # else closing would be a reset, and take the alert with it
                    pass

    @classmethod
    @contextlib.contextmanager
    def that_wants(cls, ca: trustme.CA, version: ssl.TLSVersion, *, of: trustme.CA) -> Iterator[Door]:
        """A door with a certificate from one CA, for certificates of another."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = version
        context.verify_mode = ssl.CERT_REQUIRED
        ca.issue_cert("127.0.0.1").configure_cert(context)
        of.configure_trust(context)
        door = cls(context)
        door._thread.start()
        try:
            yield door
        finally:
            door._listener.shutdown(socket.SHUT_RDWR)
            door._thread.join()
            door._listener.close()
