"""Tokens: who may call at all, and who may change something.

The token file holds one a line, after what it allows and before its name, which is for the log and may be left out.
Empty lines and those that begin with ``#`` don't count::

    read-write  GH670ploT…  name=trainer
    read-only   x1Tz…

Clients send theirs as metadata, ``authentication-token: …`` or ``authorization: Bearer …`` (RFC 6750, section 2.1).
Tokens are kept, and compared in constant time, as hashes: none can reach a log or a message.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Protocol

import attrs

from modelreg.errors import PermissionDenied, Unauthenticated

READ_WRITE = "read-write"
READ_ONLY = "read-only"

# Shorter ones can be guessed; longer ones don't fit the headers that a server takes.
SHORTEST_TOKEN = 8
LONGEST_TOKEN = 4096

# One of each kind. Each costs a comparison with all that are known, and compressed headers hold hundreds in a few bytes.
MOST_PRESENTED = 2

# What can travel as metadata (gRPC over HTTP/2, "ASCII-Value").
_TOKEN = re.compile(f"[!-~]{{{SHORTEST_TOKEN},{LONGEST_TOKEN}}}")

# With "name=" before it, a token that was put in the wrong place is never taken for a name, which the log shows.
_NAME = re.compile("name=([A-Za-z0-9._@+-]{1,64})")

_HINT = "send metadata authentication-token, or authorization: Bearer"


class TokensUnusable(Exception):
    """The token file can't be read, or has a line that isn't one; the text says which, and holds no token."""


class _Request(Protocol):
    def metadata(self, name: str, /) -> Iterable[str | bytes]: ...


@attrs.frozen
class Token:
    """A token that is known.

    Attributes:
        digest: its hash.
        may_write: whether calls that change something may have it.
        name: how the log calls it: the name in its file, or else the number of its line.
    """

    digest: bytes
    may_write: bool
    name: str


@attrs.frozen
class Tokens:
    """The tokens that are known."""

    known: tuple[Token, ...]

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Read a token file. Raises TokensUnusable."""
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"the token file {str(path)!r} can't be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
            raise TokensUnusable(msg) from error
        known: dict[bytes, Token] = {}
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) not in (2, 3) or words[0] not in (READ_WRITE, READ_ONLY) or not _TOKEN.fullmatch(words[1]):
                msg = (
                    f"line {number} of the token file {str(path)!r} isn't '{READ_WRITE}' or '{READ_ONLY}', "
                    f"a token of {SHORTEST_TOKEN} to {LONGEST_TOKEN} printable ASCII characters, and perhaps its name"
                )
                raise TokensUnusable(msg)
            name = _NAME.fullmatch(words[2]) if len(words) > 2 else None
            if name is None and len(words) > 2:
                msg = (
                    f"what follows the token in line {number} of the token file {str(path)!r} isn't its name: write "
                    "name= and up to 64 letters, digits or any of . _ @ + -"
                )
                raise TokensUnusable(msg)
            digest = _hash(words[1])
            if digest in known:
                msg = (
                    f"line {number} of the token file {str(path)!r} holds a token of a line before: remove one of them"
                )
                raise TokensUnusable(msg)
            known[digest] = Token(digest, words[0] == READ_WRITE, name[1] if name else f"line {number}")
        if not known:
            msg = f"the token file {str(path)!r} holds no token: nobody could call"
            raise TokensUnusable(msg)
        return cls(tuple(known.values()))

    def check(self, request: _Request, *, writes: bool) -> None:
        """Raise Unauthenticated without a known token, PermissionDenied with one that may not do what the call does."""
        presented = _hashes(request)
        if len(presented) > MOST_PRESENTED:
            msg = f"more than {MOST_PRESENTED} tokens came with the call: {_HINT}"
            raise Unauthenticated(msg)
        if not presented:
            msg = f"this registry wants a token: {_HINT}"
            raise Unauthenticated(msg)
        matches = self._matches(presented)
        if not matches:
            msg = f"this registry doesn't know the token: {_HINT}"
            raise Unauthenticated(msg)
        if writes and not any(token.may_write for token in matches):
            raise PermissionDenied("the token is read-only: a call that changes something needs a read-write one")

    def name_of(self, request: _Request) -> str | None:
        """Return the name of the known token that came with a call, of two the one that may write; None without any."""
        matches = self._matches(_hashes(request)[:MOST_PRESENTED])
        return max(matches, key=lambda token: token.may_write).name if matches else None

    def _matches(self, presented: list[bytes]) -> list[Token]:
        # Every pair is compared, so that the time tells nothing about which one matched.
        return [token for digest in presented for token in self.known if hmac.compare_digest(digest, token.digest)]


def _hashes(request: _Request) -> list[bytes]:
    return [_hash(token) for token in islice(_presented(request), MOST_PRESENTED + 1)]


def _presented(request: _Request) -> Iterable[str]:
    for value in request.metadata("authentication-token"):
        yield str(value)
    for value in request.metadata("authorization"):
        scheme, _, token = str(value).partition(" ")
        if scheme.lower() == "bearer":
            yield token.strip()


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
