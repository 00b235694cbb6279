"""The program as a person starts it: a process with arguments, signals, an exit code, and what it says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest

from modelreg.log import daily_name
from tests.support.server import command, environment, server_program

# Time for a busy machine; nothing here takes a second on an idle one.
SECONDS = 60


def refusal(cwd: Path, *args: str, **variables: str) -> tuple[int, str]:
    """Run a registry that can't start. Return its exit code and its one line."""
    ended = subprocess.run(
        command("serve", *args),
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("modelreg: ")
    assert "Traceback" not in ended.stdout
    return ended.returncode, lines[0]


def test_it_starts_on_an_embedded_default_directory(tmp_path: Path) -> None:
    with server_program(None, cwd=tmp_path) as program:
        assert (tmp_path / ".cogment/model_registry/FORMAT").is_file()
        line = program.wait_for_log("serving")
        assert line["archive_dir"] == ".cogment/model_registry"
        assert line["host"] == "127.0.0.1"


def test_port_0_takes_a_free_one_and_logs_it(tmp_path: Path) -> None:
    with server_program(tmp_path) as program:
        socket.create_connection(("127.0.0.1", program.port)).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_told_to(tmp_path: Path, number: signal.Signals) -> None:
    with server_program(tmp_path) as program:
        program.signal(number)
        assert program.wait() == 0
    assert [line["event"] for line in program.log] == ["serving", "stopping", "stopped"]


def test_what_was_chosen_by_variables(tmp_path: Path) -> None:
    variables = {"COGMENT_MODEL_REGISTRY_ARCHIVE_DIR": "elsewhere", "COGMENT_LOG_LEVEL": "3"}
    with server_program(None, cwd=tmp_path, **variables):
        assert (tmp_path / "elsewhere/FORMAT").is_file()


def test_the_log_file_has_the_date(tmp_path: Path) -> None:
    base = tmp_path / "cogment.log"
    before = datetime.now(timezone.utc).date()
    with subprocess.Popen(
        command("serve", "--port=0", f"--log_file={base}", "--log_format=json"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            # Until it serves there is nothing to wait for but the file itself.
            while not (files := list(tmp_path.glob("cogment.log.*"))) or "serving" not in files[0].read_text():
                assert process.poll() is None
            process.terminate()
            out, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    after = datetime.now(timezone.utc).date()
    assert out == ""
    assert set(files) <= {daily_name(base, before), daily_name(base, after)}


def test_listening_beyond_this_machine_is_warned_of(tmp_path: Path) -> None:
    with server_program(tmp_path, "--host=0.0.0.0") as program:
        (warning,) = (line["event"] for line in program.log if line["level"] == "warning")
    assert "without authentication" in warning


def test_a_bad_option(tmp_path: Path) -> None:
    code, line = refusal(tmp_path, "--port=http")
    assert code == 2
    assert "--port" in line
    assert "'http'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use(tmp_path: Path, host: str) -> None:
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refusal(tmp_path, f"--port={port}", f"--host={host}")
    assert code == 6
    assert str(port) in line


def test_an_address_that_is_not_this_machines(tmp_path: Path) -> None:
    code, line = refusal(tmp_path, "--port=0", "--host=192.0.2.1")  # TEST-NET-1, RFC 5737
    assert code == 6
    assert "192.0.2.1" in line


def test_an_archive_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    code, line = refusal(tmp_path, "--port=0", "--archive_dir=file/archive")
    assert code == 3
    assert "file/archive" in line


def test_an_archive_directory_that_cannot_be_written(tmp_path: Path) -> None:
    code, line = refusal(tmp_path, "--port=0", "--archive_dir=/proc/self")  # not even root can write there
    assert code in (3, 5)
    assert "/proc/self" in line


def test_an_archive_that_cogment_wrote(tmp_path: Path) -> None:
    archive = tmp_path / "models"
    files = {
        "policy/policy.yaml": "model_id: policy\nuser_data:\n  framework: torch\n",
        "policy/policy-v000001.yaml": "model_id: policy\nversion_number: 1\ndata_size: 4\nuser_data: {}\n",
        "policy/policy-v000001.data": "data",
        "without_versions/without_versions.yaml": "model_id: without_versions\nuser_data: {}\n",
    }
    for name, text in files.items():
        (archive / name).parent.mkdir(parents=True, exist_ok=True)
        (archive / name).write_text(text)
    code, line = refusal(tmp_path, "--port=0", f"--archive_dir={archive}")
    assert code == 5
    assert "Cogment" in line
    assert {str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()} == set(files)


def test_a_second_server_on_the_same_directory(tmp_path: Path) -> None:
    with server_program(tmp_path / "archive") as program:
        code, line = refusal(tmp_path, "--port=0", "--archive_dir=archive")
        assert code == 4
        assert str(program.process.pid) in line
        socket.create_connection(("127.0.0.1", program.port)).close()


def test_a_log_file_that_cannot_be_written(tmp_path: Path) -> None:
    code, line = refusal(tmp_path, "--port=0", "--log_file=missing/cogment.log")
    assert code == 7
    assert "missing/cogment.log" in line
    assert not list(tmp_path.iterdir())


def test_help_into_a_pipe_that_closes(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        ended = subprocess.run(
            command("serve", "--help"),
            cwd=tmp_path,
            env=environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert ended.stderr == ""
