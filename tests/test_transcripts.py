"""The transcripts of the README and docs/ are carried out, and give what is printed there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import modelreg.client.blocking as cogment
from tests.support.pages import PAGES, blocks
from tests.support.server import environment, server_program


def transcripts(page: str) -> list[tuple[str, str]]:
    """Each command of a page's transcripts, and what it prints."""
    found = []
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, output = re.split(r"\n(?=\{)", part, maxsplit=1)
            found.append((line, output))
    return found


def comparable(output: str) -> list[object]:
    """The messages that grpcurl prints, but for what is another every time."""
    text = re.sub(r'("creationTimestamp": )"\d{19}"', r'\1"now"', output).strip()
    decoder, messages, position = json.JSONDecoder(), [], 0
    while position < len(text):
        found, position = decoder.raw_decode(text, position)
        messages.append(found)
        position += len(text[position:]) - len(text[position:].lstrip())
    return messages


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl isn't installed")
def test_the_transcripts(tmp_path: Path) -> None:
    with server_program(tmp_path, "--grpc_reflection") as program:
        for line, expected in transcripts("docs/grpc.md"):
            ended = subprocess.run(
                ["bash", "-c", line.replace("localhost:9002", f"localhost:{program.port}")],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (ended.returncode, ended.stderr) == (0, ""), line
            assert comparable(ended.stdout) == comparable(expected), line
    assert len(transcripts("docs/grpc.md")) == 13


def test_the_names_of_status(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`\w[^|]*`) \| ", PAGES["docs/grpc.md"].partition("## Status")[2], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w:]+)`", row)} - {"damaged_versions:MODEL"}
    with server_program(tmp_path) as program, cogment.Context("test") as context:
        registry = context.get_model_registry_v2(cogment.Endpoint(f"grpc://127.0.0.1:{program.port}"))
        assert set(registry.status("*", "max_version_bytes", "cache_max_bytes")) == named
        assert set(registry.status("*")) == named - {"max_version_bytes", "cache_max_bytes"}


def test_all_transcripts_are_carried_out() -> None:
    assert [page for page in PAGES if blocks(page, "console")] == ["docs/grpc.md"]
    assert [page for page in PAGES if blocks(page, "shell-session")] == ["README.md"]


def carried_out(commands: list[str], cwd: Path, **variables: str) -> str:
    """What a terminal shows where these commands are typed, but for what goes to standard error, of which there is to be none."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    script = "\n".join(
        [
            f'modelreg() {{ {sys.executable} -m modelreg "$@"; }}',
            *(f"echo '$ '{shlex.quote(line)}; {line}" for line in commands),
        ]
    )
    with open(ours, "rb", buffering=0) as terminal, open(cwd / "stderr", "w+") as stderr:
        with subprocess.Popen(
            ["bash", "-c", script], cwd=cwd, env=environment(**variables), stdin=theirs, stdout=theirs, stderr=stderr
        ) as process:
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # EIO, when the last process has closed the terminal
                while data := terminal.read(4096):
                    shown += data
            process.wait(60)
        stderr.seek(0)
        assert stderr.read() == ""
    return shown.decode().replace("\r\n", "\n")


def without_times(session: str) -> str:
    """A session with the same time everywhere, and without what is bold on a terminal."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", session)
    lines = [line.rstrip() for line in plain.split("\n")]
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "now", "\n".join(lines))


def test_the_session_on_the_command_line(tmp_path: Path) -> None:
    (session,) = blocks("README.md", "shell-session")
    with open(tmp_path / "checkpoint.pt", "wb") as checkpoint:
        checkpoint.truncate(100_000_000)
    with server_program(tmp_path / "archive") as program:
        endpoint = f"grpc://127.0.0.1:{program.port}"
        commands = re.findall(r"^\$ (.*)$", session, re.MULTILINE)
        shown = carried_out(commands, tmp_path, COGMENT_MODEL_REGISTRY_ENDPOINT=endpoint, TERM="xterm", TZ="UTC")
    assert without_times(shown) == without_times(session)
    assert len(commands) == 5
