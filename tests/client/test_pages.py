"""What is made of answers that aren't gRPC."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.client.transport.pages import LINE_LENGTH, PAGE_BYTES, http1_refusal, page_of, readable
from modelreg.grpc.status import Code


@pytest.mark.parametrize(
    ("page", "line"),
    [
        (b"", ""),
        (b"<html></html>", ""),
        (b"no healthy upstream", "no healthy upstream"),
        (b'{"message":"no Route matched"}', '{"message":"no Route matched"}'),
        (b"<html>\r\n<head><title>503 Service Temporarily Unavailable</title>", "503 Service Temporarily Unavailable"),
        (
            b"<!doctype html><!-- <b>padding</b>\n --><style>b { a: c }</style><b>Sign&nbsp;in &amp; go</b>",
            "Sign in & go",
        ),
        (b"\n \n***\n\x1b[31mred\x07 text\t!\n", "[31mred text !"),
        ("<p>für \u202eevil\u2028alle".encode(), "für evil"),
        (b"\xff\xfe<p>x", "x"),
        (b"x" * 1000, "x" * LINE_LENGTH + "…"),
        (b"<a href='unfinished", "<a href='unfinished"),
    ],
)
def test_the_first_line_that_can_be_read(page: bytes, line: str) -> None:
    assert readable(page) == line


@given(st.binary(max_size=PAGE_BYTES))
def test_what_is_shown_is_short_and_printable(page: bytes) -> None:
    line = readable(page)
    assert line.isprintable()
    assert len(line) <= LINE_LENGTH + 1


@pytest.mark.parametrize("piece", [b"<", b"<!--", b"<style", b"<script>", b"&", b"&#1", b"\n", b"<a>"])
def test_no_page_takes_long(piece: bytes) -> None:
    began = time.process_time()
    readable((piece * PAGE_BYTES)[:PAGE_BYTES])
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "content_type",
    [b"application/grpc", b"application/grpc+proto", b"Application/gRPC; charset=utf-8", b"application/grpc ;x"],
)
def test_what_is_grpc(content_type: bytes) -> None:
    assert page_of({b":status": b"200", b"content-type": content_type}) is None
    page = page_of({b":status": b"503", b"content-type": content_type})
    assert page is not None
    assert page.outcome.code == Code.UNAVAILABLE


@pytest.mark.parametrize("content_type", [b"", b"text/html", b"application/grpc-web", b"application/grpc-web+proto"])
def test_what_is_not(content_type: bytes) -> None:
    page = page_of({b":status": b"200", b"content-type": content_type})
    assert page is not None
    assert page.outcome.code == Code.UNKNOWN


@pytest.mark.parametrize("status", [b"", b"2", b"1000", b"9" * 5000, b"-12", "²³¹".encode()])
def test_a_status_that_is_none(status: bytes) -> None:
    page = page_of({b":status": status})
    assert page is not None
    assert page.outcome.code == Code.UNKNOWN


def test_a_page_that_is_not_text_is_not_shown() -> None:
    page = page_of({b":status": b"503", b"content-type": b"application/octet-stream"})
    assert page is not None
    page.feed(b"binary")
    assert "binary" not in page.outcome.message


@pytest.mark.parametrize(
    ("received", "code", "cut"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\n", Code.UNAVAILABLE, False),
        (b"HTTP/1.1 504 Gateway Time-out\r\nA: b\r\n\r\n", Code.UNAVAILABLE, True),
        (b"HTTP/1.1 500 x\n", Code.UNIMPLEMENTED, True),
        (b"HTTP/1.0 302 Found\r\n", Code.UNIMPLEMENTED, False),
        (b"HTTP/1.1 403 Forbidden\r\n", Code.PERMISSION_DENIED, False),
    ],
)
def test_answers_in_http1(received: bytes, code: Code, cut: bool) -> None:
    outcome = http1_refusal(received)
    assert outcome is not None
    assert (outcome.code, outcome.cut) == (code, cut)


def test_the_page_in_an_answer_in_http1() -> None:
    head = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nContent-Type: text/html\r\n\r\n"
    outcome = http1_refusal(head + b"1a\r\n<h1>default backend - 404</h1>")
    assert outcome is not None
    assert "(default backend - 404), in HTTP/1.1" in outcome.message


@pytest.mark.parametrize("received", [b"", b"HTTP", b"HTTP/2 200\r\n", b"HTTP/1.1 20", b"SSH-2.0-x\r\n", bytes(20)])
def test_what_is_not_http1(received: bytes) -> None:
    assert http1_refusal(received) is None
