"""TLS for the server: a listener whose streams do their handshake, ALPN included, on first use.

HTTP/2 over TLS is negotiated by ALPN (RFC 9113, section 3.2), and gRPC clients offer "h2"; a client that doesn't is told so by an
alert, or closed. A renewed certificate is taken up by giving the listener another context: connections that exist keep theirs.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import trio

ALPN = "h2"


class TlsUnusable(Exception):
    """Certificate, key or CA can't be read, or don't belong together; the text says which."""


def make_context(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """A server's context: TLS 1.2 or newer, and with *client_ca* only clients that have a certificate from it.

    Arguments:
        certificate: PEM, the server's first, then those that lead to its CA.
        key: PEM, unencrypted.
        client_ca: PEM, the certificates that clients' are signed by.

    Raises:
        TlsUnusable: see there.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([ALPN])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        msg = f"the TLS certificate {str(certificate)!r} and key {str(key)!r} can't be used: {_reason(error)}"
        raise TlsUnusable(msg) from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ValueError) as error:
            msg = f"the CA for clients' certificates {str(client_ca)!r} can't be used: {_reason(error)}"
            raise TlsUnusable(msg) from error
    return context


class TlsListener(trio.abc.Listener["TlsStream"]):
    """Accepts connections for TLS.

    Attributes:
        context: used for the next connection; assign another one to renew the certificate.
    """

    def __init__(self, listener: trio.SocketListener, context: ssl.SSLContext) -> None:
        self.context = context
        self._listener = listener

    async def accept(self) -> TlsStream:
        return TlsStream(await self._listener.accept(), self.context)

    async def aclose(self) -> None:
        await self._listener.aclose()


class TlsStream(trio.abc.Stream):
    """A connection whose first use does the handshake; one that fails, or agrees on another protocol, is a broken stream."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        self.socket = stream.socket
        self._stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        self._handshaking = trio.Lock()
        self._ready = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._handshake()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._handshake()
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        await self._handshake()
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def _handshake(self) -> None:
        if self._ready:
            return
        async with self._handshaking:
            await self._stream.do_handshake()
            if self._stream.selected_alpn_protocol() != ALPN:
                raise trio.BrokenResourceError("the client doesn't speak HTTP/2")
            self._ready = True


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not PEM"
    return getattr(error, "strerror", None) or str(error)
