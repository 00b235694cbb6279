"""A content's SHA-256 as text, as Cogment's API and archives have it: base64 (RFC 4648, section 4), 44 characters."""

from __future__ import annotations

import base64
import binascii

DIGEST_BYTES = 32


def to_base64(digest: bytes) -> str:
    """A SHA-256 as text."""
    return binascii.b2a_base64(digest, newline=False).decode()


def from_base64(text: str) -> bytes:
    """A SHA-256 from text.

    Raises:
        ValueError: it isn't one, or isn't written as :func:`to_base64` writes it.
    """
    digest = base64.b64decode(text, validate=True)
    # The comparison refuses padding that some Pythons let pass.
    if len(digest) != DIGEST_BYTES or to_base64(digest) != text:
        msg = "not a SHA-256 in base64"
        raise ValueError(msg)
    return digest
