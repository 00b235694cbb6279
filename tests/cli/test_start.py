"""How the program begins and ends: closed standard streams, encodings, and signals that come at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelreg.cli import start
from tests.support.server import PATIENCE, ServerProgram, command, environment, server_program

NAME = "模型 😀"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProgram]:
    with server_program(tmp_path_factory.mktemp("archive")) as program:
        yield program


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    return path


def redirected(
    server: ServerProgram, redirections: str, *args: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with a shell's redirections."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirections}', "sh", *command(*map(str, args))],
        env=environment(COGMENT_MODEL_REGISTRY_ENDPOINT=f"grpc://{server.address}", **variables),
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=PATIENCE,
        check=False,
    )


def versions(server: ServerProgram, model: str) -> int:
    listed = redirected(server, "", "versions", model, "--format=json")
    return len(json.loads(listed.stdout)) if listed.returncode == 0 else 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_what_was_stored_is_not_said_to_have_failed(server: ServerProgram, file: Path, closed: str) -> None:
    model = f"push {closed}"
    ended = redirected(server, closed, "push", model, file)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert versions(server, model) == 1
    assert ended.stdout.startswith("1\t") is (">&-" not in closed.split())


def test_other_commands_do_their_work_without_output(server: ServerProgram, file: Path, tmp_path: Path) -> None:
    redirected(server, "", "push", "policy", file)
    for args in (
        ("set", "policy", "a=1"),
        ("pull", "policy", "-o", tmp_path / "pulled"),
        ("watch", "policy", "--count=1", "--exec", f"cat > {tmp_path / 'seen'}; echo shown"),
        ("verify", f"--archive_dir={server.archive_dir}"),
        ("rm", "policy", "--yes"),
    ):
        ended = redirected(server, ">&-", *args)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), args
    assert (tmp_path / "pulled").read_bytes() == b"data"
    assert json.loads((tmp_path / "seen").read_text())["version"] == 1


@pytest.mark.parametrize("args", [["models"], ["pull", "asked"], ["status"]])
def test_an_answer_that_has_no_place_is_an_error(server: ServerProgram, file: Path, args: list[str]) -> None:
    redirected(server, "", "push", "asked", file)
    ended = redirected(server, ">&-", *args)
    assert ended.returncode == 29
    assert ended.stderr == "modelreg: standard output: closed, and the answer would go there\n"


def test_notes_are_no_results(server: ServerProgram) -> None:
    """What is for standard error doesn't go to standard output where that is closed."""
    ended = redirected(server, "2>&-", "set", "new without standard error", "a=1")
    assert (ended.returncode, "is new" in ended.stdout) == (0, False)


def test_nothing_comes_from_a_closed_standard_input(server: ServerProgram) -> None:
    ended = redirected(server, "<&-", "push", "nothing")
    assert ended.returncode == 2
    assert "nothing came on standard input" in ended.stderr
    assert versions(server, "nothing") == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("args", [["models"], ["--help"], ["completion", "bash"]])
def test_output_that_is_full_is_named(server: ServerProgram, args: list[str]) -> None:
    redirected(server, "", "set", "something to show")
    ended = redirected(server, ">/dev/full", *args)
    assert ended.returncode == 29
    assert "No space left on device: make room there" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_output_that_the_encoding_can_not_hold(server: ServerProgram, file: Path) -> None:
    for encoding in ("latin-1", "ascii"):
        pushed = redirected(server, "", "push", NAME, file, "-p", f"name={NAME}é", PYTHONIOENCODING=encoding)
        assert (pushed.returncode, pushed.stderr) == (0, "")
        assert "name=\\u6a21\\u578b \\U0001f600" in pushed.stdout
        listed = subprocess.run(
            command("versions", NAME, "--format=json"),
            env=environment(COGMENT_MODEL_REGISTRY_ENDPOINT=f"grpc://{server.address}", PYTHONIOENCODING=encoding),
            stdout=subprocess.PIPE,
            check=True,
        )
        assert json.loads(listed.stdout.decode(encoding))[-1]["properties"] == {"name": f"{NAME}é"}
    ended = redirected(server, "", "show", NAME, "7", PYTHONIOENCODING="latin-1")
    assert ended.returncode == 20
    assert "\\u6a21" in ended.stderr


def test_a_server_without_standard_streams(tmp_path: Path) -> None:
    """Files and sockets that it opens must not get their numbers: a library that prints would write into them."""
    options = ["serve", "--port=0", f"--log_file={tmp_path / 'log'}", f"--archive_dir={tmp_path / 'archive'}"]
    with ended_at_last(
        subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command(*options)], env=environment(), text=True)
    ) as process:
        while not (found := list(tmp_path.glob("log.*"))) or "serving" not in found[0].read_text():
            assert process.poll() is None
        assert {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)} == {os.devnull}
        process.terminate()
        assert process.wait(PATIENCE) == 0


@contextlib.contextmanager
def ended_at_last(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that a test that fails doesn't wait for."""
    with process:
        try:
            yield process
        finally:
            process.kill()


# Sends itself a signal at the point that its first argument names, and another one when it ends.
_TOLD = """
import atexit, os, runpy, signal, sys
point, number = sys.argv.pop(1), int(sys.argv.pop(1))
def tell(event, args):
    global point
    if point and f"{event} {args[0] if args else ''}".endswith(point):
        point = ""
        os.kill(os.getpid(), number)
sys.addaudithook(tell)
atexit.register(lambda: [os.kill(os.getpid(), each) for each in (signal.SIGTERM, signal.SIGHUP)])
runpy.run_module("modelreg", run_name="__main__", alter_sys=True)
"""

_MOMENTS = (
    "import modelreg.cli.command",
    "import trio",
    "import modelreg.server",
    "/LOCK",  # the archive is opened
    "/FORMAT",
)


def told(tmp_path: Path, moment: str, number: int) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    options = ["serve", "--port=0", "--log_format=json", f"--archive_dir={tmp_path / moment.rpartition('/')[2]}"]
    process = subprocess.Popen(
        [sys.executable, "-c", _TOLD, moment, str(int(number)), *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return ended_at_last(process)


def test_sigterm_while_it_starts_is_as_orderly_as_later(tmp_path: Path) -> None:
    for moment in _MOMENTS:
        with told(tmp_path, moment, signal.SIGTERM) as process:
            out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, ""), moment
        assert "stopping" in [json.loads(line)["event"] for line in out.splitlines()], moment


def test_sighup_while_it_starts_ends_nothing(tmp_path: Path) -> None:
    with told(tmp_path, "import trio", signal.SIGHUP) as process:
        assert process.stdout is not None
        while (
            json.loads(process.stdout.readline())["event"] != "serving"
        ):  # what has ended says nothing, which isn't JSON
            pass
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")


def test_ctrl_c_while_it_imports_is_one_line(tmp_path: Path) -> None:
    with told(tmp_path, "import trio", signal.SIGINT) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, "modelreg: interrupted\n")


def test_other_commands_hold_no_signal_back() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = [signal.getsignal(number) for number in start.HELD_SIGNALS]
    for args in ([], ["models"], ["verify", "serve"]):
        start.hold_signals(args)
        start.ignore_signals(args)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert [signal.getsignal(number) for number in start.HELD_SIGNALS] == handlers
