"""Completion, as a shell does it: keys are typed at a terminal, and the command says which arguments it got."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelreg.client.blocking as cogment
from modelreg.cli.completion import quoted, split
from tests.support.server import PATIENCE, environment, server_program

NAMES = (
    "a/b",
    "one two",
    "it's",
    'say "hi"',
    "cost $5",
    "x:y z",
    "k=v w",
    "模型 7",
    "back\\slash",
    "semi;colon",
    "bang!",
)

# What is typed before the Tab, and the arguments that the command gets.
TYPED = {
    "rm a": ["rm", "a/b"],
    "rm on": ["rm", "one two"],
    'rm "on': ["rm", "one two"],
    "rm x it": ["rm", "x", "it's"],
    'rm "say': ["rm", 'say "hi"'],
    'show "cost': ["show", "cost $5"],
    "rm x:": ["rm", "x:y z"],
    "push 模": ["push", "模型 7"],
    "rm back": ["rm", "back\\slash"],
    "push a/b chec": ["push", "a/b", "checkpoint"],
}


@contextlib.contextmanager
def bash(cwd: Path, **variables: str) -> Iterator[int]:
    """A bash with a terminal of its own; the other end of that."""
    ours, theirs = pty.openpty()
    with open(ours, "r+b", buffering=0) as terminal:
        with subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            cwd=cwd,
            env=environment(TERM="dumb", LC_ALL="C.UTF-8", PS1="", PS2="", **variables),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            try:
                yield terminal.fileno()
            finally:
                process.kill()


def read_until(terminal: int, end: bytes) -> bytes:
    read = b""
    until = time.monotonic() + PATIENCE
    while end not in read:
        assert select.select([terminal], [], [], max(0.0, until - time.monotonic()))[0], read
        read += os.read(terminal, 65536)
    return read


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash isn't installed")
def test_bash_completes_each_name_into_one_argument(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "checkpoint").touch()
    program = tmp_path / "bin" / "modelreg"
    program.write_text(
        f'#!/bin/sh\nif [ -n "$_MODELREG_COMPLETE" ]; then exec {shlex.quote(sys.executable)} -m modelreg "$@"; fi\n'
        'printf "<%s>" "$@"; echo "<>"\n'
    )
    program.chmod(0o755)
    script = subprocess.run([sys.executable, "-m", "modelreg", "completion", "bash"], capture_output=True, check=True)
    (tmp_path / "script").write_bytes(script.stdout)
    with server_program(tmp_path / "archive") as server:
        url = f"grpc://{server.address}"
        with cogment.Context("test") as context:
            registry = context.get_model_registry_v2(cogment.Endpoint(url))
            for name in NAMES:
                registry.update_model_info(name, {})
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        with bash(tmp_path, COGMENT_MODEL_REGISTRY_ENDPOINT=url, PATH=path) as terminal:
            os.write(terminal, b"bind 'set enable-bracketed-paste off'; . ./script; echo rea''dy\n")
            read_until(terminal, b"ready\r\n")
            for typed, arguments in TYPED.items():
                os.write(terminal, f"modelreg {typed}\t\n".encode())
                shown = read_until(terminal, b"<>\r\n").decode()
                expected = "".join(f"<{argument}>" for argument in arguments)
                assert shown.endswith(f"{expected}<>\r\n"), (typed, shown)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash isn't installed")
def test_what_is_quoted_is_read_again() -> None:
    names = (*NAMES, "~", "-", "a  b", "'\"", "`x`", "$(x)", "\\", "*?[]{}", "#", "!!", "a\\$b")
    typed = []
    for name in names:
        for quote in ("", "'", '"'):
            word = quote + quoted(name, quote)
            closed = word if not quote or (len(word) > 1 and word.endswith(quote)) else word + quote  # as readline does
            assert [each.text for each in split(f"modelreg rm {closed}")] == ["modelreg", "rm", name]
            typed.append(closed)
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {' '.join(typed)}"],
        env=environment(LC_ALL="C.UTF-8"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert words.stdout.split("\0") == [*(name for name in names for _ in range(3)), ""]


@pytest.mark.parametrize(
    ("line", "texts", "quote"),
    [
        ("", [""], ""),
        ("modelreg  rm ", ["modelreg", "rm", ""], ""),
        ("a\\", ["a"], ""),
        ('a "b c', ["a", "b c"], '"'),
        ("a 'b\\", ["a", "b\\"], "'"),
        ('a "b\\', ["a", "b"], '"'),
        ('a "b\\x"', ["a", "b\\x"], ""),
    ],
)
def test_a_line_that_ends_anywhere(line: str, texts: list[str], quote: str) -> None:
    words = split(line)
    assert [word.text for word in words] == texts
    assert words[-1].quote == quote
