"""From header fields to a `Request` (gRPC over HTTP/2, "Requests"; RFC 9113, section 8).

Three kinds of wrong: fields that HTTP/2 forbids are a `StreamFault`; fields that are HTTP but not gRPC get an HTTP status;
fields that are gRPC but wrong get a gRPC status. The last two are a `Refusal`. None of them harms another stream.

Metadata is decoded when it is asked for, as a few bytes of HPACK can be thousands of values: a call of 100 bytes held the
server up for 13 ms, and kept 1.1 MB while it ran.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator

import attrs

from modelreg.grpc.status import Code

from ._purerpc import failure
from .faults import ErrorCode, StreamFault

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])\Z")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)?(\s*;.*)?\Z", re.IGNORECASE)
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
_BAD_VALUE = re.compile(rb"[\0\r\n]")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=, \t]")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_CONNECTION_FIELDS = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_RESERVED = frozenset((b"te", b"content-type", b"user-agent", b"content-length", b"host"))
_ENCODINGS = {b"identity": None, b"gzip": "gzip", b"deflate": "deflate"}

MAX_METADATA = 128
"""Fields of metadata in a call, and values in a field; proxies and meshes add a dozen or two."""

_SHOWN = 64
"""Characters of a name that are shown in a message."""


@attrs.frozen(kw_only=True)
class Request:
    """What a handler is told of its call; the attributes are those of purerpc's `RequestReceived` that matter."""

    service_name: str
    method_name: str
    path: str
    authority: str | None
    fields: tuple[tuple[bytes, bytes], ...]
    """Metadata as it was sent; see `metadata` and `custom_metadata`."""
    timeout: float | None
    """The client's deadline in seconds from when the call was received."""
    user_agent: str | None
    peer: str
    """The client's address as text, empty where there is none."""
    message_encoding: str | None
    """How compressed messages are compressed: gzip, deflate or not at all."""
    content_length: int | None

    def metadata(self, name: str) -> Iterator[str | bytes]:
        """The values of one name (lower case), in the order they were sent; bytes if the name ends in -bin.

        Raises `RpcFailedError`, INVALID_ARGUMENT, for values that are not base64 or too many.
        """
        wanted = name.encode("ascii")
        for found, value in self.fields:
            if found == wanted:
                yield from _values(found, value)

    @property
    def custom_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """All metadata, as purerpc has it, decoded each time it is asked for. Raises as `metadata`."""
        return tuple((name.decode("ascii"), item) for name, value in self.fields for item in _values(name, value))


NO_REQUEST = Request(
    service_name="",
    method_name="",
    path="",
    authority=None,
    fields=(),
    timeout=None,
    user_agent=None,
    peer="",
    message_encoding=None,
    content_length=None,
)
"""For streams that are refused before they are calls."""


class Refusal(Exception):
    """The call gets this reply, and no handler."""

    def __init__(self, code: Code, message: str, http_status: int = 200) -> None:
        super().__init__(message)
        self.code: int = code.value
        self.message = message
        self.http_status = http_status


def parse(fields: Iterable[tuple[bytes, bytes]], peer: str) -> Request:
    """Check the fields of a request; raises `StreamFault` or `Refusal`."""
    pseudo: dict[bytes, bytes] = {}
    known: dict[bytes, bytes] = {}
    metadata: list[tuple[bytes, bytes]] = []
    regular = False
    for name, value in fields:
        if _BAD_VALUE.search(value):
            raise _malformed("a field value with a control character")
        if name[:1] == b":":
            if regular or name not in _PSEUDO or name in pseudo:
                raise _malformed("an unexpected pseudo-header")
            pseudo[name] = value
            continue
        regular = True
        if not _NAME.match(name) or name in _CONNECTION_FIELDS:
            raise _malformed("a field that HTTP/2 does not allow")
        if name in _RESERVED or name.startswith(b"grpc-"):
            known[name] = value
        else:
            metadata.append((name, value))
    if not pseudo.get(b":method") or not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise _malformed("a pseudo-header is missing")
    _check_http(pseudo, known)
    service, method = _split_path(pseudo[b":path"])
    _check_metadata(metadata)
    authority = pseudo.get(b":authority", known.get(b"host"))
    user_agent = known.get(b"user-agent")
    return Request(
        service_name=service,
        method_name=method,
        path=f"/{service}/{method}",
        authority=None if authority is None else authority.decode("latin-1"),
        fields=tuple(metadata),
        timeout=_timeout(known.get(b"grpc-timeout")),
        user_agent=None if user_agent is None else user_agent.decode("latin-1"),
        peer=peer,
        message_encoding=_encoding(known.get(b"grpc-encoding")),
        content_length=_content_length(known.get(b"content-length")),
    )


def _malformed(what: str) -> StreamFault:
    """A malformed request is a stream error (RFC 9113, section 8.1.1)."""
    return StreamFault(ErrorCode.PROTOCOL_ERROR, what)


def _check_http(pseudo: dict[bytes, bytes], known: dict[bytes, bytes]) -> None:
    if pseudo[b":method"] != b"POST":
        raise Refusal(Code.INTERNAL, "gRPC calls are POST requests", 405)
    if not _CONTENT_TYPE.match(known.get(b"content-type", b"")):
        raise Refusal(Code.INVALID_ARGUMENT, "the content-type of gRPC calls is application/grpc", 415)
    te = known.get(b"te")
    if te is None:
        raise Refusal(Code.INTERNAL, "no te: trailers, is there a proxy that knows no gRPC?", 400)
    if te != b"trailers":
        raise _malformed("te is not trailers")


def _split_path(path: bytes) -> tuple[str, str]:
    parts = path.split(b"/")
    if len(parts) != 3 or parts[0] or not parts[1] or not parts[2]:
        raise Refusal(Code.UNIMPLEMENTED, "the path of a call is /service/method")
    try:
        return parts[1].decode("ascii"), parts[2].decode("ascii")
    except UnicodeDecodeError:
        raise Refusal(Code.UNIMPLEMENTED, "the path of a call is /service/method") from None


def _timeout(value: bytes | None) -> float | None:
    if value is None:
        return None
    match = _TIMEOUT.match(value)
    if match is None:
        raise Refusal(Code.INVALID_ARGUMENT, "grpc-timeout is up to 8 digits and one of H, M, S, m, u, n")
    return int(match[1]) * _UNITS[match[2]]


def _encoding(value: bytes | None) -> str | None:
    try:
        return _ENCODINGS[value or b"identity"]
    except KeyError:
        raise Refusal(Code.UNIMPLEMENTED, "messages may be compressed with gzip or deflate") from None


def _content_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise _malformed("content-length is not a number")
    return int(value)


def _check_metadata(metadata: list[tuple[bytes, bytes]]) -> None:
    if len(metadata) > MAX_METADATA:
        raise Refusal(Code.RESOURCE_EXHAUSTED, f"a call may have {MAX_METADATA} fields of metadata")
    for name, value in metadata:
        if name.endswith(b"-bin") and _NOT_BASE64.search(value):
            raise Refusal(Code.INVALID_ARGUMENT, _no_base64(name))


def _values(name: bytes, value: bytes) -> Iterator[str | bytes]:
    """The values of a field of metadata: one text, or bytes in base64, with commas between (gRPC, "Custom-Metadata")."""
    if not name.endswith(b"-bin"):
        yield value.decode("latin-1")
        return
    if value.count(b",") >= MAX_METADATA:
        raise failure(Code.INVALID_ARGUMENT, f"a field of metadata may have {MAX_METADATA} values")
    for item in value.split(b","):
        item = item.strip().rstrip(b"=")
        try:
            yield base64.b64decode(item + b"=" * (-len(item) % 4), validate=True)
        except binascii.Error:
            raise failure(Code.INVALID_ARGUMENT, _no_base64(name)) from None


def _no_base64(name: bytes) -> str:
    return f"the value of {name[:_SHOWN].decode('ascii')} is not base64"
