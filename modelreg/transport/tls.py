"""TLS for the server: a listener whose streams do their handshake, ALPN included, on first use.

HTTP/2 over TLS is negotiated by ALPN (RFC 9113, section 3.2), and gRPC clients offer "h2"; one that doesn't is closed. Whoever fails the
handshake is told why by an alert (RFC 8446, section 6), and so is the log, at debug. A renewed certificate is taken up by giving the
listener another context: connections that exist keep theirs.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import trio

from .suites import ALPN, CIPHERS

# How long a client whose handshake failed has to take the alert, in seconds, and how often more is read of what it sends.
ALERT_TIMEOUT = 1.0
ALERT_READS = 8

# What OpenSSL says where the files are good, each by itself.
_REASONS = dict.fromkeys(
    ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"),
    "the key is another certificate's; if the certificate's file has several, the server's must be the first",
)


class Logger(Protocol):
    """What is needed of a logger; structlog's fits."""

    def debug(self, event: str, **fields: object) -> object: ...


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
    _check_pem("the TLS certificate", certificate, "CERTIFICATE")
    _check_pem("the TLS key", key, "PRIVATE KEY")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION  # RFC 9113, section 9.2.1
    context.set_alpn_protocols([ALPN])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _Encrypted as error:
        msg = f"the TLS key {str(key)!r} can't be used: it's encrypted; `openssl pkey` makes one that isn't"
        raise TlsUnusable(msg) from error
    except (OSError, ValueError) as error:
        msg = f"the TLS certificate {str(certificate)!r} and key {str(key)!r} can't be used: {_reason(error)}"
        raise TlsUnusable(msg) from error
    if client_ca is not None:
        _check_pem("the CA for clients' certificates", client_ca, "CERTIFICATE")
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

    def __init__(self, listener: trio.SocketListener, context: ssl.SSLContext, logger: Logger) -> None:
        self.context = context
        self._listener = listener
        self._logger = logger
        self._turns = trio.Lock()

    async def accept(self) -> TlsStream:
        return TlsStream(await self._listener.accept(), self.context, self._turns, self._logger)

    async def aclose(self) -> None:
        await self._listener.aclose()


class TlsStream(trio.abc.Stream):
    """A connection whose first use does the handshake; one that fails, or agrees on another protocol, is a broken stream."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, turns: trio.Lock, logger: Logger) -> None:
        self.transport_stream = stream
        self._logger = logger
        self._stream: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(
            _InTurn(stream, turns), context, server_side=True, https_compatible=True
        )
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
            try:
                await self._stream.do_handshake()
            except trio.BrokenResourceError as error:
                if isinstance(error.__cause__, ssl.SSLError):
                    self._log(_reason(error.__cause__))
                    await self._alert()
                raise
            if self._stream.selected_alpn_protocol() != ALPN:
                self._log("the client doesn't offer HTTP/2 by ALPN")
                raise trio.BrokenResourceError("the client doesn't speak HTTP/2")
            self._stream.transport_stream = self.transport_stream
            self._ready = True

    def _log(self, reason: str) -> None:
        try:
            client = self.transport_stream.socket.getpeername()[0]
        except OSError:  # gone
            client = ""
        self._logger.debug("a TLS handshake failed", client=client, reason=reason)

    async def _alert(self) -> None:
        """Send the alert that OpenSSL has made of its failure, and give the client a moment to take it."""
        # trio leaves the alert in its private buffer of what is to be sent: there is no other way to it.
        alert = self._stream._outgoing.read()  # noqa: SLF001
        with trio.move_on_after(ALERT_TIMEOUT), suppress(trio.BrokenResourceError):
            await self.transport_stream.send_all(alert)
            await self.transport_stream.send_eof()
            # A socket that is closed with unread bytes makes the client forget what it hasn't read, so some are taken in.
            for _ in range(ALERT_READS):
                if not await self.transport_stream.receive_some():
                    break


class _InTurn(trio.abc.Stream):
    """A connection during its handshake: what came is handed on in turn, one of a listener's each time the loop goes round.

    OpenSSL takes milliseconds to answer a client's hello. Dozens in one round would hold up every call for as long as all of them take.
    """

    def __init__(self, stream: trio.SocketStream, turns: trio.Lock) -> None:
        self._stream = stream
        self._turns = turns

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        async with self._turns:
            await trio.lowlevel.checkpoint()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _check_pem(what: str, path: Path, kind: str) -> None:
    """Raise TlsUnusable for a file that holds nothing of this kind: OpenSSL doesn't say which of two files it is."""
    try:
        text = path.read_bytes()
    except OSError as error:
        msg = f"{what} {str(path)!r} can't be read: {error.strerror}"
        raise TlsUnusable(msg) from error
    if not re.search(f"-----BEGIN ([A-Z0-9 ]*{kind})-----.+?-----END \\1-----".encode(), text, re.DOTALL):
        msg = f"{what} {str(path)!r} can't be used: it isn't PEM, from -----BEGIN {kind}----- to -----END {kind}-----"
        raise TlsUnusable(msg)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return _REASONS.get(error.reason, error.reason or "not PEM")
    return getattr(error, "strerror", None) or str(error)
