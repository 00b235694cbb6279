"""Answers that aren't gRPC: a proxy's error page, a login page, HTTP/1.1 on a port where HTTP/2 was expected.

gRPC wants `:status` and the content type looked at before the body (PROTOCOL-HTTP2.md, "Responses"). The status then
becomes a gRPC status by http-grpc-status-mapping.md. The body is for people: the message shows its first readable line.
"""

from __future__ import annotations

import html
import http
import re
from collections.abc import Mapping

from modelreg.client.transport.status import Outcome
from modelreg.grpc.status import Code

PAGE_BYTES = 4096
"""What is kept of a page; the first readable line is in there, if anywhere."""

LINE_LENGTH = 200

_FROM_HTTP = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}

# Further failures that may have passed the next time. 501 and 505 say that it's never going to work.
_PASSING = {408, *range(500, 600)} - {501, 505}

_READABLE = re.compile(rb"text/|json|xml", re.IGNORECASE)
_UNSEEN = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
_HTTP1 = re.compile(rb"(HTTP/1\.[01]) (\d{3})\b[^\r\n]*\r?\n")


class Page:
    """A response that isn't gRPC. From `page_of`."""

    def __init__(self, status: int, content_type: bytes) -> None:
        self._status = status
        self._content_type = content_type
        self._body = bytearray()

    def feed(self, data: memoryview | bytes) -> None:
        """Take a piece of the body."""
        self._body += data[: PAGE_BYTES - len(self._body)]

    @property
    def full(self) -> bool:
        """Whether no more of the body is of any use."""
        return len(self._body) >= PAGE_BYTES

    @property
    def outcome(self) -> Outcome:
        """What the call's end is."""
        status = self._status
        code = _FROM_HTTP.get(status, Code.UNKNOWN)
        cut = status in _PASSING
        return Outcome(code, f"{self._said()}{'' if cut or code == Code.UNAVAILABLE else _advice(status)}", cut=cut)

    def refusal(self, protocol: str) -> Outcome:
        """What a connection's end is on which this came, in HTTP/1."""
        code = _FROM_HTTP.get(self._status, Code.UNKNOWN)
        if code in (Code.INTERNAL, Code.UNKNOWN):
            code = Code.UNIMPLEMENTED  # it isn't the registry that has failed
        advice = "gRPC needs HTTP/2: is the endpoint right, and does the proxy there take HTTP/2?"
        return Outcome(code, f"{self._said()}, in {protocol}: {advice}", cut=self._status in _PASSING)

    def _said(self) -> str:
        try:
            phrase = f" {http.HTTPStatus(self._status).phrase}"
        except ValueError:
            phrase = ""
        line = readable(bytes(self._body)) if _READABLE.search(self._content_type) else ""
        return f"HTTP status {self._status}{phrase} instead of a gRPC answer" + (f" ({line})" if line else "")


def _advice(status: int) -> str:
    if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return ": a proxy limits the size of requests (in nginx: client_max_body_size 0)"
    if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        return ", from a proxy or from what is no registry: is the endpoint right, and its token?"
    return ", from a proxy or from what is no registry: is the endpoint right?"


def page_of(fields: Mapping[bytes, bytes]) -> Page | None:
    """The page that begins with these response headers; None where they are gRPC's."""
    status = fields.get(b":status", b"")
    content_type = fields.get(b"content-type", b"")
    if b"grpc-status" in fields or (status == b"200" and _is_grpc(content_type)):
        return None
    return Page(int(status) if len(status) == 3 and status.isdigit() else 0, content_type)


def _is_grpc(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/grpc" or kind.startswith(b"application/grpc+")


def http1_refusal(received: bytes) -> Outcome | None:
    """The outcome that stands for the first bytes of a connection, where they are HTTP/1's; None where they aren't."""
    match = _HTTP1.match(received)
    if match is None:
        return None
    head, _, body = received[match.end() :].partition(b"\r\n\r\n")
    content_type = re.search(rb"^content-type:([^\r\n]*)", head, re.IGNORECASE | re.MULTILINE)
    if re.search(rb"^transfer-encoding:[^\r\n]*chunked", head, re.IGNORECASE | re.MULTILINE):
        body = body.partition(b"\r\n")[2]
    page = Page(int(match[2]), content_type[1] if content_type is not None else b"")
    page.feed(body)
    return page.refusal(match[1].decode())


def readable(body: bytes) -> str:
    """The first line of a page that people can read: no tags, no control characters, and of bounded length."""
    text = _TAG.sub("\n", _UNSEEN.sub("\n", body.decode("utf-8", "replace")))
    for line in html.unescape(text).splitlines():
        shown = " ".join("".join(char if char.isprintable() else " " for char in line).split())
        if any(char.isalnum() for char in shown):
            return shown if len(shown) <= LINE_LENGTH else f"{shown[:LINE_LENGTH]}…"
    return ""
