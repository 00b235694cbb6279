from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from modelreg.errors import PermissionDenied, Unauthenticated
from modelreg.services.authentication import Tokens, TokensUnusable

WRITER, READER = "writer-token-1", "reader-token-1"
FILE = f"# tokens\n\nread-write {WRITER}\n  read-only\t{READER}  \n"


@attrs.frozen
class Call:
    """A call's metadata."""

    fields: tuple[tuple[str, str | bytes], ...] = ()

    def metadata(self, wanted: str, /) -> list[str | bytes]:
        return [value for name, value in self.fields if name == wanted]


def call(name: str, value: str | bytes) -> Call:
    return Call(((name, value),))


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    (tmp_path / "tokens").write_text(FILE)
    return Tokens.read(tmp_path / "tokens")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_token_comes_either_way(tokens: Tokens, scheme: str) -> None:
    for request in (call("authentication-token", WRITER), call("authorization", f"{scheme} {WRITER}")):
        tokens.check(request, writes=True)


def test_a_read_only_token_reads(tokens: Tokens) -> None:
    tokens.check(call("authentication-token", READER), writes=False)
    with pytest.raises(PermissionDenied, match="read-only"):
        tokens.check(call("authentication-token", READER), writes=True)


def test_of_two_tokens_one_that_may_is_enough(tokens: Tokens) -> None:
    for other in ("wrong-token", READER):
        both = (("authentication-token", other), ("authorization", f"Bearer  {WRITER} "))
        tokens.check(Call(both), writes=True)
        tokens.check(Call(both[::-1]), writes=True)


def test_more_than_two_tokens_are_not_looked_at(tokens: Tokens) -> None:
    with pytest.raises(Unauthenticated, match="more than 2"):
        tokens.check(Call((("authentication-token", WRITER),) * 3), writes=True)


@pytest.mark.parametrize(
    "request_",
    [
        Call(),
        call("authentication-token", ""),
        call("authentication-token", WRITER[:-1]),
        call("authentication-token", WRITER + "x"),
        call("authentication-token", WRITER.upper()),
        call("authentication-token", WRITER.encode()),
        call("authorization", WRITER),
        call("authorization", f"Basic {WRITER}"),
        call("token", WRITER),
    ],
    ids=str,
)
def test_without_a_known_token_nothing_passes(tokens: Tokens, request_: Call) -> None:
    for writes in (False, True):
        with pytest.raises(Unauthenticated) as caught:
            tokens.check(request_, writes=writes)
        assert WRITER[:-1] not in str(caught.value)


def test_tokens_are_not_kept(tokens: Tokens) -> None:
    assert WRITER not in repr(tokens)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no token"),
        ("# nothing\n", "holds no token"),
        ("read-write", "line 1"),
        (f"\nwrite {WRITER}", "line 2"),
        (f"read-write {WRITER} and more", "line 1"),
        ("read-write seven77", "line 1"),
        (f"read-write {WRITER}\x1b", "line 1.*printable ASCII"),
        (f"read-write {WRITER}\0", "line 1"),
        (f"read-write {WRITER}é", "line 1"),
        (f"read-write {WRITER}{'x' * 4096}", "line 1.*4096"),
        (f"read-only {WRITER}\n\nread-write {WRITER}", "line 3.*line before"),
        (f"read-write {READER} {WRITER}", "line 1.*name="),
        (f"read-write name=trainer {WRITER}", "line 1.*name="),
        (f"read-write {READER} name=", "line 1.*name="),
        (f"read-write {READER} name={'x' * 65}", "line 1.*name="),
        (f"read-write {READER} name=a b", "line 1"),
    ],
)
def test_a_bad_file_is_refused_without_showing_it(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "tokens").write_text(text, "utf-8")
    with pytest.raises(TokensUnusable, match=complaint) as caught:
        Tokens.read(tmp_path / "tokens")
    assert WRITER not in str(caught.value)


def test_a_file_is_utf_8_whatever_the_editor_puts_before_it(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"read-write {WRITER}\n# café", "utf-8-sig")
    Tokens.read(tmp_path / "tokens").check(call("authentication-token", WRITER), writes=True)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokensUnusable, match="can't be read"):
        Tokens.read(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"read-write \xff\xfe\xfd\xfc\xfb")
    with pytest.raises(TokensUnusable, match="UTF-8"):
        Tokens.read(tmp_path / "binary")


def test_a_token_is_called_by_its_name_or_else_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# tokens\nread-only {READER}\nread-write {WRITER}  name=trainer@a-1\n")
    tokens = Tokens.read(tmp_path / "tokens")
    assert tokens.name_of(call("authentication-token", WRITER)) == "trainer@a-1"
    assert tokens.name_of(call("authorization", f"Bearer {READER}")) == "line 2"
    both = (("authentication-token", READER), ("authorization", f"Bearer {WRITER}"))
    assert tokens.name_of(Call(both)) == tokens.name_of(Call(both[::-1])) == "trainer@a-1"
    assert tokens.name_of(call("authentication-token", "another-token")) is None
    assert tokens.name_of(Call()) is None
