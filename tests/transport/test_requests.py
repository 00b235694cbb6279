"""Header fields of requests, right and wrong."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.transport._purerpc import RpcFailedError, status_of
from modelreg.transport.faults import ErrorCode, StreamFault
from modelreg.transport.requests import MAX_METADATA, Refusal, parse
from tests.support.h2client import request_fields

PATH = "/package.Service/Method"


def test_all_fields() -> None:
    request = parse(
        request_fields(
            PATH,
            [
                (b"user-agent", b"grpc-python/1.0"),
                (b"grpc-timeout", b"1500m"),
                (b"grpc-encoding", b"gzip"),
                (b"grpc-accept-encoding", b"identity, gzip"),
                (b"grpc-trace-bin", b"AAAA"),
                (b"content-length", b"12"),
                (b"x-text", b"one"),
                (b"x-text", b"two"),
                (b"x-bytes-bin", b"AAE=,AAE"),
            ],
        ),
        "127.0.0.1:1",
    )
    assert (request.service_name, request.method_name, request.path) == ("package.Service", "Method", PATH)
    assert request.authority == "test"
    assert request.user_agent == "grpc-python/1.0"
    assert request.timeout == 1.5
    assert request.message_encoding == "gzip"
    assert request.content_length == 12
    assert request.custom_metadata == (
        ("x-text", "one"),
        ("x-text", "two"),
        ("x-bytes-bin", b"\0\1"),
        ("x-bytes-bin", b"\0\1"),
    )
    assert request.peer == "127.0.0.1:1"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"0n", 0), (b"1H", 3600), (b"2M", 120), (b"99999999S", 99999999), (b"5m", 0.005), (b"5u", 5e-6), (b"5n", 5e-9)],
)
def test_timeouts(value: bytes, seconds: float) -> None:
    assert parse(request_fields(PATH, [(b"grpc-timeout", value)]), "").timeout == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1 S", b"1s", b"1S\n", b"\xff"])
def test_bad_timeouts(value: bytes) -> None:
    with pytest.raises((Refusal, StreamFault)) as caught:
        parse(request_fields(PATH, [(b"grpc-timeout", value)]), "")
    if isinstance(caught.value, Refusal):
        assert (caught.value.code, caught.value.http_status) == (3, 200)


@pytest.mark.parametrize(
    "content_type", [b"application/grpc", b"application/grpc+proto", b"application/grpc; charset=utf-8"]
)
def test_content_types(content_type: bytes) -> None:
    assert parse(request_fields(PATH, content_type=content_type), "").path == PATH


@pytest.mark.parametrize(
    ("fields", "code", "http_status"),
    [
        (request_fields(PATH, method=b"GET"), 13, 405),
        (request_fields(PATH, content_type=b"application/json"), 3, 415),
        (request_fields(PATH, content_type=b"application/grpc+json"), 3, 415),
        (request_fields(PATH, content_type=b"application/grpcish"), 3, 415),
        (request_fields(PATH, without=[b"content-type"]), 3, 415),
        (request_fields(PATH, without=[b"te"]), 13, 400),
        (request_fields("/a/b/c"), 12, 200),
        (request_fields("/a"), 12, 200),
        (request_fields("a/b"), 12, 200),
        (request_fields("//b"), 12, 200),
        (request_fields("*"), 12, 200),
        (request_fields(PATH, [(b"grpc-encoding", b"br")]), 12, 200),
        (request_fields(PATH, [(b"x", b"1")] * (MAX_METADATA + 1)), 8, 200),
        (request_fields(PATH, [(b"x-bin", b"!!!!")]), 3, 200),
    ],
)
def test_refusals(fields: list[tuple[bytes, bytes]], code: int, http_status: int) -> None:
    with pytest.raises(Refusal) as caught:
        parse(fields, "")
    assert (caught.value.code, caught.value.http_status) == (code, http_status)


@pytest.mark.parametrize(
    "fields",
    [
        request_fields(PATH, without=[b":method"]),
        request_fields(PATH, without=[b":scheme"]),
        request_fields(PATH, without=[b":path"]),
        request_fields(""),
        request_fields(PATH, [(b":path", b"/again")]),
        [*request_fields(PATH, without=[b":authority"]), (b":authority", b"late")],
        [(b":status", b"200"), *request_fields(PATH)],
        request_fields(PATH, [(b"X-Upper", b"1")]),
        request_fields(PATH, [(b"", b"1")]),
        request_fields(PATH, [(b"x y", b"1")]),
        request_fields(PATH, [(b"connection", b"close")]),
        request_fields(PATH, [(b"transfer-encoding", b"chunked")]),
        request_fields(PATH, [(b"x", b"a\r\nb")]),
        request_fields(PATH, [(b"content-length", b"-1")]),
        request_fields(PATH, te=b"gzip"),
    ],
)
def test_malformed(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(StreamFault) as caught:
        parse(fields, "")
    assert caught.value.code is ErrorCode.PROTOCOL_ERROR


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=4), st.booleans())
def test_binary_metadata(values: list[bytes], padded: bool) -> None:
    encoded = [base64.b64encode(value) if padded else base64.b64encode(value).rstrip(b"=") for value in values]
    request = parse(request_fields(PATH, [(b"x-bin", b",".join(encoded))]), "")
    assert [value for _, value in request.custom_metadata] == values
    assert list(request.metadata("x-bin")) == values


@pytest.mark.parametrize("value", [b"A", b"AA=A", b"A,AAAA", b"AAAA," * MAX_METADATA])
def test_binary_metadata_is_decoded_when_it_is_asked_for(value: bytes) -> None:
    request = parse(request_fields(PATH, [(b"y", b"1"), (b"x-bin", value), (b"y", b"2")]), "")
    assert list(request.metadata("y")) == ["1", "2"]
    assert not list(request.metadata("z-bin"))
    for ask in (lambda: list(request.metadata("x-bin")), lambda: request.custom_metadata):
        with pytest.raises(RpcFailedError) as caught:
            ask()
        assert status_of(caught.value)[0] == 3


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=5))
def test_any_other_fields(extra: list[tuple[bytes, bytes]]) -> None:
    try:
        parse(request_fields(PATH, extra), "")
    except (Refusal, StreamFault):
        pass
