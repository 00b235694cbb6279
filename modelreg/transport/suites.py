"""What both sides ask of TLS (RFC 9113, section 9.2)."""

from __future__ import annotations

ALPN = "h2"

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Suites for TLS 1.2: HTTP/2 prohibits those without ephemeral keys or without AEAD (RFC 9113, section 9.2.2, appendix A)."""
