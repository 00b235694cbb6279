"""What proves who is who: the server's certificate, and the tokens that calls need. Renewed without a restart."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import trio

from modelreg.errors import CredentialsUnusable
from modelreg.log import Logger
from modelreg.services import Tokens
from modelreg.services.authentication import TokensUnusable
from modelreg.settings import Settings
from modelreg.transport.tls import TlsListener, TlsUnusable, make_context

# What nobody may do but a secret file's owner; its group may read it.
OTHERS = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


class Credentials:
    """The files that *settings* name, as they were when they were last read.

    Raises:
        CredentialsUnusable: one of them can't be used.
    """

    def __init__(self, settings: Settings, logger: Logger) -> None:
        self._settings = settings
        self._logger = logger
        self._listeners: list[TlsListener] = []
        self._context, self._tokens = self._read()

    def tokens(self) -> Tokens | None:
        """The tokens that calls need; None where they need none."""
        return self._tokens

    def protected(self, listener: trio.SocketListener) -> trio.SocketListener | TlsListener:
        """The listener with TLS, where there is a certificate."""
        if self._context is None:
            return listener
        protected = TlsListener(listener, self._context, self._logger)
        self._listeners.append(protected)
        return protected

    def renew(self) -> None:
        """Read the files again, for new connections and calls. What can't be used is logged, and changes nothing."""
        if self._context is None and self._tokens is None:
            return
        try:
            self._context, self._tokens = self._read()
        except CredentialsUnusable as error:
            # No bug, which would need its traceback: the reason says it all.
            self._logger.error("credentials could not be renewed, those from before stay", reason=str(error))  # noqa: TRY400
            return
        for listener in self._listeners:
            assert self._context is not None
            listener.context = self._context
        self._logger.info("renewed credentials")

    def _read(self) -> tuple[ssl.SSLContext | None, Tokens | None]:
        settings = self._settings
        context = tokens = None
        self._look_at(settings.tls_certificate)
        self._look_at(settings.tls_key, secret=True)
        self._look_at(settings.tls_client_ca)
        self._look_at(settings.authentication_token_file, secret=True)
        try:
            if settings.tls_certificate is not None and settings.tls_key is not None:
                context = make_context(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
            if settings.authentication_token_file is not None:
                tokens = Tokens.read(settings.authentication_token_file)
        except (TlsUnusable, TokensUnusable) as error:
            raise CredentialsUnusable(str(error)) from error
        return context, tokens

    def _look_at(self, path: Path | None, *, secret: bool = False) -> None:
        """Refuse what may never come to an end, as a pipe, and warn where others than its owner can read or change a secret."""
        try:
            mode = stat.S_IFREG if path is None else path.stat().st_mode
        except OSError:  # who reads it says why it can't be
            return
        if not stat.S_ISREG(mode):
            msg = f"{str(path)!r} can't be used: it's no regular file"
            raise CredentialsUnusable(msg)
        if secret and mode & OTHERS:
            self._logger.warning("other users of this machine can read or change a secret: chmod 600", file=str(path))
