"""The commands that talk to a registry: in the test's process where possible, against one server of the module's."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from modelreg import __version__
from modelreg.cli import main, output, progress, remote
from modelreg.cli.outcome import CLIENT_ENDINGS
from modelreg.client import sources
from modelreg.client.transport.pages import Page
from modelreg.grpc.status import Code
from tests.client.door import Door
from tests.client.fakes import Directory
from tests.client.fakes import serving as serving_directory
from tests.clients.calls import connected
from tests.support.directory import RegisteringDirectory
from tests.support.server import ServerProgram, server_program

DATA = bytes(range(256)) * 20
SHA256 = hashlib.sha256(DATA).hexdigest()

Said = tuple[int, str, str]
Run = Callable[..., Said]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProgram]:
    with server_program(tmp_path_factory.mktemp("archive")) as program:
        yield program


@pytest.fixture
def run(server: ServerProgram, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command. Return its exit code, its output, and what it said on standard error."""
    monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ENDPOINT", f"grpc://{server.address}")

    def run(*args: object) -> Said:
        code = main([str(arg) for arg in args])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    return f"model of {request.node.name}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(DATA)
    return path


def document(said: Said) -> dict[str, object]:
    """The only JSON object of a command that succeeded."""
    code, out, err = said
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def one_line(said: Said) -> str:
    _, out, err = said
    assert out == ""
    assert err.startswith("modelreg: ")
    assert err.count("\n") == 1
    return err


def test_push_and_all_that_is_known_of_it(run: Run, model: str, file: Path) -> None:
    pushed = document(run("push", model, file, "-p", "step=1", "--property=a=b=c", "--format=json"))
    assert pushed == {
        "model": model,
        "version": 1,
        "created": pushed["created"],
        "timestamp": pushed["timestamp"],
        "size": len(DATA),
        "stored": True,
        "sha256": SHA256,
        "properties": {"a": "b=c", "step": "1"},
    }
    assert document(run("push", model, file, "--transient", "--format=json"))["stored"] is False
    code, out, _ = run("versions", model, "--format=json")
    versions = json.loads(out)
    assert code == 0
    assert [(version["version"], version["stored"]) for version in versions] == [(1, True), (2, False)]
    for number in ("1", "-2"):
        assert document(run("show", model, number, "--format=json")) == {**pushed, "damaged": False}
    assert document(run("show", model, "--format=json")) == {
        "model": model,
        "properties": {},
        "versions": 2,
        "stored_versions": 1,
        "damaged_versions": 0,
        "latest": versions[1],
    }


def test_models_as_json(run: Run, model: str) -> None:
    run("set", model, "a=b")
    code, out, err = run("models", "--format=json")
    assert (code, err) == (0, "")
    assert {"model": model, "properties": {"a": "b"}} in json.loads(out)


def test_results_have_one_way_out() -> None:
    """What prints by itself has no --format, and is no result of a command that has."""
    modules = Path(output.__file__).parent.glob("*.py")
    printing = {module.name for module in modules if re.search(r"click\.echo|\bprint\(", module.read_text())}
    assert printing == {"output.py", "outcome.py", "command.py", "completion.py"}


def test_text_into_a_pipe_is_values_between_tabs(run: Run, model: str, file: Path) -> None:
    code, pushed, err = run("push", model, file, "-p", "note=two\nlines\tand \x1b[31mred")
    assert (code, err) == (0, "")
    assert run("versions", model) == (0, pushed, "")
    number, created, size, stored, sha256, properties = pushed.rstrip("\n").split("\t")
    assert (number, size, stored, sha256) == ("1", str(len(DATA)), "yes", SHA256)
    assert created.endswith("Z")
    assert properties == "note=two\\nlines\\tand \\x1b[31mred"
    assert f"{model}\t\n" in run("models")[1]


def test_pull_into_a_file_and_not_over_one(run: Run, model: str, file: Path, tmp_path: Path) -> None:
    run("push", model, file)
    path = tmp_path / "pulled"
    assert document(run("pull", model, "-o", path, "--format=json"))["version"] == 1
    assert path.read_bytes() == DATA
    path.write_bytes(b"mine")
    said = run("pull", model, "-o", path)
    assert said[0] == 29
    assert "--force" in one_line(said)
    assert path.read_bytes() == b"mine"
    assert run("pull", model, "latest", "--output", path, "--force")[0] == 0
    assert path.read_bytes() == DATA


def test_pull_with_force_follows_a_link_and_keeps_permissions(run: Run, model: str, file: Path, tmp_path: Path) -> None:
    run("push", model, file)
    real, link = tmp_path / "secret", tmp_path / "latest"
    real.write_bytes(b"mine")
    real.chmod(0o600)
    link.symlink_to(real)
    assert run("pull", model, "-o", link)[0] == 29
    assert run("pull", model, "-o", link, "--force")[0] == 0
    assert link.is_symlink()
    assert (real.read_bytes(), stat.S_IMODE(real.stat().st_mode)) == (DATA, 0o600)


def test_pull_to_standard_output(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a model")
    run("push", model, tmp_path / "text")
    assert run("pull", model) == (0, "a model", "")


def test_pull_into_a_device_leaves_it_one(run: Run, model: str, file: Path) -> None:
    run("push", model, file)
    assert run("pull", model, "-o", "/dev/null", "--force")[0] == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("seekable", [True, False])
def test_push_from_standard_input(
    run: Run, model: str, file: Path, monkeypatch: pytest.MonkeyPatch, seekable: bool
) -> None:
    if seekable:
        stdin = io.TextIOWrapper(file.open("rb"))
    else:
        reader, writer = os.pipe()
        os.write(writer, DATA)
        os.close(writer)
        stdin = io.TextIOWrapper(os.fdopen(reader, "rb"))
    with stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert document(run("push", model, "--format=json"))["sha256"] == SHA256


def test_push_of_a_file_that_does_not_tell_its_size(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version = Path("/proc/version")
    size = len(version.read_bytes())
    assert document(run("push", model, version, "--format=json"))["size"] == size
    with version.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert document(run("push", model, "--format=json"))["size"] == size


def test_push_of_a_file_that_changes(run: Run, model: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(source: sources.FileSource, done: int) -> bytes:
        if not done:
            os.truncate(file, len(DATA) + 1)
        return original(source, done)

    original = sources.FileSource._read
    monkeypatch.setattr(sources.FileSource, "_read", read)
    said = run("push", model, file)
    assert said[0] == 29
    assert f"{file}: it was changed while it was read" in one_line(said)


def test_nothing_on_standard_input_is_no_version(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to write it has failed."""
    reader, writer = os.pipe()
    os.close(writer)
    for nothing in (reader, os.open("/dev/null", os.O_RDONLY)):
        with io.TextIOWrapper(os.fdopen(nothing, "rb")) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            said = run("push", model)
        assert said[0] == 2
        assert "nothing came on standard input" in one_line(said)
    assert run("show", model)[0] == 20
    assert run("push", model, "/dev/null")[0] == 0


def test_watch_tells_of_each_version(run: Run, model: str, file: Path) -> None:
    for _ in range(3):
        run("push", model, file)
    code, out, err = run("watch", model, "--after=0", "--count=3", "--format=json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["version"] for line in out.splitlines()] == [1, 2, 3]
    assert run("watch", model, "--count=1")[1].startswith("3\t")


def test_watch_runs_a_command_with_each(run: Run, model: str, file: Path) -> None:
    run("push", model, file, "--transient")
    shown = 'echo "$MODELREG_MODEL|$MODELREG_VERSION|$MODELREG_SIZE|$MODELREG_STORED|$MODELREG_SHA256"; cat; echo'
    code, out, err = run("watch", model, "--count=1", "--format=json", "--exec", shown)
    assert (code, err) == (0, "")
    assert f"{model}|1|{len(DATA)}|false|{SHA256}" in out.splitlines()
    assert [json.loads(line)["version"] for line in out.splitlines() if line.startswith("{")] == [1, 1]


def test_a_command_that_fails_ends_the_watch_with_1_but_not_at_once(run: Run, model: str, file: Path) -> None:
    for _ in range(2):
        run("push", model, file)
    code, out, err = run("watch", model, "--after=0", "--count=2", "--exec", "exit $((4 - MODELREG_VERSION * 2))")
    assert (code, out.count("\n")) == (1, 2)
    assert err == "modelreg: the command for version 1 ended with 2\n"


def test_watch_waits_for_a_model_when_told_to(run: Run, model: str, file: Path, server: ServerProgram) -> None:
    command = [sys.executable, "-m", "modelreg", "watch", model, "--wait=60", "--count=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as watching:
        run("push", model, file)
        out, _ = watching.communicate(timeout=60)
    assert (watching.returncode, out[:2]) == (0, b"1\t")
    said = run("watch", f"another {model}", "--wait=0.1")
    assert said[0] == 20
    assert "after 0.1 s" in one_line(said)


def test_a_watch_goes_on_after_the_server_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    with server_program(tmp_path / "archive") as program:
        program.options = (f"--port={program.port}",)
        monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ENDPOINT", f"grpc://{program.address}")
        assert main(["push", "policy", str(file)]) == 0
        command = [sys.executable, "-m", "modelreg", "watch", "policy", "--count=3"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert watching.stderr is not None
            assert watching.stdout.readline().startswith("1\t")
            program.kill()
            assert "waiting for it to be back" in watching.stderr.readline()
            program.start()
            for _ in range(2):
                assert main(["push", "policy", str(file)]) == 0
            out, err = watching.communicate(timeout=60)
        assert [line[:2] for line in out.splitlines()] == ["2\t", "3\t"]
        assert (watching.returncode, err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_would_end_it_is_an_interrupt(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), remote._ended_by_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_set_leaves_other_properties_as_they_are(run: Run, model: str) -> None:
    code, _, err = run("set", model, "a=1", "b=2")
    assert (code, err) == (0, f"model {model} is new\n")
    for args, expected in (
        (["b=3", "c="], {"a": "1", "b": "3", "c": ""}),
        (["--unset", "a", "--unset=nothing"], {"b": "3", "c": ""}),
        (["--clear", "d=4"], {"d": "4"}),
    ):
        assert document(run("set", model, *args, "--format=json")) == {"model": model, "properties": expected}


def test_rm_asks(run: Run, model: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("push", model, file)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    said = run("rm", model)
    assert said[0] == 2
    assert "--yes" in one_line(said)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, left in (("n\n", True), ("y\n", False)):
        stdin = io.StringIO(answer)
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = run("rm", model)
        assert code == 0
        assert f"Delete model {model} with 1 version, 5.0 KiB?" in err
        assert (model in run("models")[1]) is left


def test_rm_with_yes(run: Run, model: str, file: Path) -> None:
    for name in (model, model + "2"):
        run("push", name, file)
    code, out, _ = run("rm", model, model + "2", "--yes", "--format=json")
    assert code == 0
    assert [json.loads(line)["model"] for line in out.splitlines()] == [model, model + "2"]
    assert model not in run("models")[1]


def test_rm_deletes_nothing_where_a_name_is_wrong(run: Run, model: str, file: Path) -> None:
    run("push", model, file)
    for version in ("1", "7", "latest", "−1"):
        said = run("rm", model, version, "--yes")
        assert said[0] == 20
        assert f"{version!r} found, so nothing was deleted" in one_line(said)
        assert "a single version can't be deleted yet" in said[2]
    said = run("rm", model, "nothing like it", "--yes")
    assert said[0] == 20
    assert "single version" not in one_line(said)
    assert run("versions", model)[1].startswith("1\t")


def test_rm_takes_no_number_for_a_model_without_asking(
    run: Run, model: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (model, "2"):
        run("push", name, file)
    said = run("rm", model, "2", "--yes")
    assert said[0] == 2
    assert "'modelreg rm 2 --yes'" in one_line(said)
    for answer, left in (("n\n", True), ("y\n", False)):
        run("push", model, file)
        stdin = io.StringIO(answer)
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, err = run("rm", model, "2", "--yes")
        assert (code, model in out) == (0, True)
        assert f"Delete model 2 with 1 version, 5.0 KiB, not version 2 of {model}?" in err
        assert ("2" in {line.partition("\t")[0] for line in run("models")[1].splitlines()}) is left
    run("push", "2", file)
    assert run("rm", "2", "--yes")[0] == 0


def test_status(run: Run) -> None:
    found = document(run("status", "--format=json"))
    software, status = found["software"], found["status"]
    assert isinstance(software, dict)
    assert isinstance(status, dict)
    assert software["modelreg"] == __version__
    assert status["models"] >= 0
    assert f"software.modelreg\t{__version__}\n" in run("status")[1]


@pytest.mark.parametrize(
    ("args", "code", "hint"),
    [
        (["show", "nothing like it"], 20, "'modelreg models'"),
        (["versions", "nothing like it"], 20, "'modelreg models'"),
        (["pull", "nothing like it"], 20, "'modelreg models'"),
        (["watch", "nothing like it"], 20, "'modelreg models'"),
        (["rm", "nothing like it", "--yes"], 20, "'modelreg models'"),
        (["set", "", "a=b"], 21, "id"),
        *(
            ([command, "caf\udce9", *rest], 2, "'caf\\\\xe9' isn't valid UTF-8")
            for command, *rest in (["show"], ["pull"], ["push", "/dev/null"], ["set", "a=b"], ["rm", "--yes"])
        ),
        (["set", "x", "a"], 2, "name=value"),
        (["models", "--endpoint=grpc://127.0.0.1:1", "--patience=0"], 24, "'modelreg serve'"),
        (["models", "--endpoint=127.0.0.1:1"], 2, "grpc://"),
        (["models", "--endpoint=cogment://discover"], 2, "COGMENT_DIRECTORY_ENDPOINT"),
        (["models", "--token-file=/nowhere"], 2, "/nowhere"),
        (["pull", "x", "0"], 2, "latest"),
        (["pull", "x", "newest"], 2, "latest"),
        (["push", "x", "/nowhere"], 2, "/nowhere"),
        (["push", "x", "/dev/null", "-p", "=1"], 2, "name=value"),
        (["pull"], 2, "'modelreg pull --help'"),
        (["pul"], 2, "'pul'"),
        (["models", "--what"], 2, "'modelreg models --help'"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(run: Run, args: list[str], code: int, hint: str) -> None:
    said = run(*args)
    assert said[0] == code
    assert hint in one_line(said)


def test_a_version_that_is_not_there(run: Run, model: str, file: Path, tmp_path: Path) -> None:
    run("push", model, file)
    for args in (["show", model, "7"], ["pull", model, "7"], ["pull", model, "-7", "-o", tmp_path / "x"]):
        said = run(*args)
        assert said[0] == 20
        assert "7" in one_line(said)
    assert not (tmp_path / "x").exists()


def test_a_file_that_can_not_be_written(run: Run, model: str, file: Path, tmp_path: Path) -> None:
    run("push", model, file)
    missing = tmp_path / "missing" / "x"
    said = run("pull", model, "-o", missing)
    assert said[0] == 29
    assert one_line(said) == f"modelreg: {missing}: No such file or directory\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full(run: Run, model: str, file: Path) -> None:
    run("push", model, file)
    said = run("pull", model, "-o", "/dev/full")
    assert said[0] == 29
    assert one_line(said) == "modelreg: /dev/full: No space left on device: make room there\n"


@pytest.mark.parametrize("full", ["file", "spool"])
def test_a_disk_that_is_full_is_named(
    run: Run, model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """What goes through a pipe waits where TMPDIR says; a file waits beside its place."""
    run("push", model, file)

    def write(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modelreg.client.targets.os.write", write)
        said = run("pull", model, *(["-o", tmp_path / "x"] if full == "file" else []))
    assert said[0] == 29
    place = f"{tmp_path / 'x'}" if full == "file" else f"temporary file in {tempfile.gettempdir()}"
    assert f"modelreg: {place}: No space left on device: make room there" in one_line(said)
    assert ("TMPDIR" in said[2]) is (full == "spool")


def test_a_watch_ends_after_its_timeout(run: Run, model: str, file: Path) -> None:
    run("push", model, file)
    code, out, err = run("watch", model, "--timeout=0.2")
    assert (code, out[:2]) == (26, "1\t")
    assert err == "modelreg: not done within 0.2 s: try again with a longer --timeout\n"
    assert run("watch", model, "--timeout=60", "--count=1")[0] == 0
    said = run("watch", f"another {model}", "--wait=60", "--timeout=0.2")  # whatever comes first
    assert said[0] == 20
    assert "after 0.2 s" in one_line(said)


@pytest.mark.parametrize("status", [200, 301, 400, 413])
def test_a_page_is_told_without_advice_for_a_registry(status: int) -> None:
    """Its message asks whether the endpoint is right, and a proxy has no log for the user."""
    page = Page(status, b"text/html").outcome
    assert page.code in (Code.INTERNAL, Code.UNKNOWN)  # the error is Failed then
    assert CLIENT_ENDINGS["Failed"].advice_for(page.message) == ""


def test_advice_fits_what_happened(run: Run, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, read_only = tmp_path / "tokens", tmp_path / "read-only"
    tokens.write_text("read-only GH670ploT\nread-write GH671ploT\n")
    read_only.write_text("GH670ploT\n")
    (tmp_path / "read-write").write_text("GH671ploT\n")
    options = (f"--authentication_token_file={tokens}", "--max_version_bytes=1000", "--cache_max_bytes=900")
    with server_program(tmp_path / "archive", *options) as program:
        endpoint = f"--endpoint=grpc://{program.address}"
        said = run("push", "x", file, endpoint, f"--token-file={read_only}")
        assert said[0] == 22
        assert "read-only" in one_line(said)
        assert "--token-file" in said[2]
        assert "certificate" not in said[2]
        may_write = f"--token-file={tmp_path / 'read-write'}"
        (tmp_path / "small").write_bytes(bytes(950))
        for args, option in (
            (["push", "x", file], "--max_version_bytes"),
            (["push", "x", tmp_path / "small", "--transient"], "--cache_max_bytes"),
        ):
            said = run(*args, endpoint, may_write)
            assert said[0] == 23
            assert option in one_line(said)
            assert "raise" in said[2]
            assert "delete" not in said[2]
            assert run("show", "x", endpoint, may_write)[0] == 20  # nor is an empty model left behind
        monkeypatch.setenv("COGMENT_DIRECTORY_ENDPOINT", f"grpc://{program.address}")  # it's no Directory
        said = run("models", "--endpoint=cogment://discover", "--patience=0")
        assert said[0] == 22
        assert "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN" in one_line(said)
        assert "--token-file" not in said[2]
        said = run("models", "--tls", endpoint, may_write, "--patience=0")
        assert said[0] == 24
        assert "leave out --tls" in one_line(said)
    monkeypatch.setenv("COGMENT_DIRECTORY_ENDPOINT", "grpc://127.0.0.1:1")
    said = run("models", "--endpoint=cogment://discover", "--patience=0")
    assert said[0] == 24
    assert "the directory at 127.0.0.1:1 can't be asked" in one_line(said)
    assert "COGMENT_DIRECTORY_ENDPOINT" in said[2]
    assert "serve" not in said[2]


def test_a_timeout(run: Run) -> None:
    assert run("models", "--timeout=1e-9")[0] == 26


def test_tokens_come_from_a_file_or_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known, unknown = tmp_path / "known", tmp_path / "unknown"
    known.write_text("GH670ploT\n")
    unknown.write_text("another-one")
    (tmp_path / "tokens").write_text("read-only GH670ploT\n")
    with server_program(tmp_path / "archive", f"--authentication_token_file={tmp_path / 'tokens'}") as program:
        monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ENDPOINT", f"grpc://{program.address}")
        assert main(["models"]) == 22
        assert "--token-file" in capfd.readouterr().err
        assert main(["models", f"--token-file={known}"]) == 0
        assert main(["models", f"--token-file={unknown}"]) == 22
        monkeypatch.setenv("COGMENT_MODEL_REGISTRY_TOKEN", "GH670ploT")
        assert main(["models"]) == 0
        assert main(["set", "x", "a=b"]) == 22


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    ours, theirs = authority.issue_cert("me"), authority.issue_cert("127.0.0.1")
    files = {
        "ca": authority.cert_pem,
        "stranger": stranger.cert_pem,
        "my certificate": ours.cert_chain_pems[0],
        "my key": ours.private_key_pem,
        "certificate": theirs.cert_chain_pems[0],
        "key": theirs.private_key_pem,
    }
    at = {name: str(tmp_path / name) for name in files}
    for name, blob in files.items():
        blob.write_to_path(at[name])
    options = (f"--tls_certificate={at['certificate']}", f"--tls_key={at['key']}", f"--tls_client_ca={at['ca']}")
    with server_program(tmp_path / "archive", *options) as program:
        monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ENDPOINT", f"grpc://{program.address}")
        who = ["--certificate-chain", at["my certificate"], "--private-key", at["my key"]]
        assert main(["models", "--root-certificates", at["ca"], *who]) == 0
        assert capfd.readouterr() == ("", "")
        monkeypatch.setenv("SSL_CERT_FILE", at["ca"])  # where OpenSSL looks for those that the system trusts
        assert main(["models", "--tls", *who]) == 0
        assert main(["models", "--root-certificates", at["stranger"], *who]) == 22
        assert "--root-certificates" in capfd.readouterr().err
        assert main(["models", "--root-certificates", at["my key"], *who]) == 2
        assert main(["models", "--patience=0"]) == 24
        assert "--root-certificates" in capfd.readouterr().err


def test_a_token_file_with_a_mark(tmp_path: Path) -> None:
    """As editors on Windows write it: the token is what follows."""
    path = tmp_path / "token"
    path.write_text("GH670ploT\r\n", encoding="utf-8-sig")
    assert remote._token(path) == "GH670ploT"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("\n", "there is no token"),
        ("GH670ploT\nGH671ploT\n", "a token, and nothing else"),
        ("read-only GH670ploT\n", "a token, and nothing else"),  # the server's
        ("GH670plöT", "printable ASCII"),
        ("GH670ploT" * 1000, "no more than 4096"),
    ],
)
def test_a_token_file_that_has_no_token(run: Run, tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    said = run("models", "--token-file", path)
    assert said[0] == 2
    assert hint in one_line(said)
    assert "GH67" not in said[2]


def test_no_certificate_where_one_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    with Door.that_wants(authority, ssl.TLSVersion.TLSv1_3, of=authority) as door:
        monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ENDPOINT", door.url)
        assert main(["models", "--root-certificates", str(tmp_path / "ca")]) == 22
        assert "wants a certificate" in capfd.readouterr().err
        assert door.knocks == 1


def test_discovery(server: ServerProgram, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    servicer = Directory()
    servicer.add(server.port, token="GH670ploT", stage="test")
    with serving_directory(servicer) as directory:
        monkeypatch.setenv("COGMENT_DIRECTORY_ENDPOINT", directory.url)
        monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ENDPOINT", "cogment://discover/modelregistry?stage=test")
        assert main(["status", "--patience=0"]) == 24
        assert "none for this token" in capfd.readouterr().err
        monkeypatch.setenv("COGMENT_DIRECTORY_AUTHENTICATION_TOKEN", "GH670ploT")
        assert main(["status"]) == 0


def test_a_server_that_registered_itself_is_discovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    servicer = RegisteringDirectory()
    with serving_directory(servicer) as directory:
        options = (f"--directory_endpoint={directory.url}", "--directory_registration_properties=stage=test")
        with server_program(tmp_path / "archive", *options) as program:
            program.wait_for_log("registered with the directory")
            monkeypatch.setenv("COGMENT_DIRECTORY_ENDPOINT", directory.url)
            assert main(["models", "--endpoint=cogment://discover?stage=test"]) == 0
            assert main(["models", "--endpoint=cogment://discover?stage=live", "--patience=0"]) == 24
            program.stop()
        assert servicer.services == {}


def test_on_a_terminal_it_is_for_people(run: Run, model: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert run("push", model, file, "-p", "a=[b]")[1].startswith("version 1  ")
    header, line = run("versions", model)[1].splitlines()
    assert header.split() == ["version", "created", "size", "stored", "sha256", "properties"]
    assert line.split()[0] == "1"
    assert line.split()[3:] == ["5.0", "KiB", "stored", SHA256[:12], "a=[b]"]
    assert "latest.size        5.0 KiB\n" in run("show", model)[1]


def test_a_bar_appears_for_what_takes_long(
    run: Run, model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "APPEARS_AFTER", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for args in (["push", model, str(file)], ["pull", model, "-o", str(tmp_path / "x")]):
        code, out, err = run(*args)
        assert code == 0
        assert out.startswith("1\t")
        assert f"{args[0]} {model}" in err
        assert ("hash" in err) == (args[0] == "push")


def test_the_bar_of_a_step_shows_how_much_there_is_before_any_is_done(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    with progress.progress_bar("push it") as bar:
        assert bar is not None
        bar._timer.cancel()
        bar.step("hash [it]")(0, 2**30)
        bar._show()
        bar(2**29, 2**30)
        bar._show()
    first, _, second = capfd.readouterr().err.partition("push it")
    assert "hash [it]" in first
    assert "0.0/1.0 GiB" in first
    assert "0.5/1.0 GiB" in second


def test_a_bar_appears_where_nothing_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "APPEARS_AFTER", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress.progress_bar("push it") as bar:
        assert isinstance(bar, progress.Bar)
        bar._timer.join()
        output.Output().note("by the way")
    err = capfd.readouterr().err
    assert "push it" in err
    assert re.search(r"(^|\n|\r\x1b\[2K)by the way\n", err)  # on a line of its own


def test_a_property_without_a_name_or_given_twice_is_refused_everywhere(run: Run, model: str, file: Path) -> None:
    for args in (["push", model, file, "-p", "=1"], ["set", model, "=1"]):
        assert "name=value" in one_line(run(*args))
    for args in (["push", model, file, "-p", "a=1", "-p", "a=1"], ["set", model, "a=1", "b=1", "a=2"]):
        assert "'a' is given twice" in one_line(run(*args))
    assert "'a' is both given and unset" in one_line(run("set", model, "a=1", "--unset", "a"))
    assert run("show", model)[0] == 20  # nothing was created
    assert "'a'" in one_line(run("push", model, file, "-p", "a=\udcff"))


def test_a_property_without_a_name_from_another_client_can_be_taken_away(
    run: Run, model: str, server: ServerProgram
) -> None:
    with connected(server.address) as calls:
        calls.create(model, **{"": "1", "a": "2"})
    assert "--unset ''" in one_line(run("set", model, "b=3"))
    assert document(run("set", model, "b=3", "--unset", "", "--format=json"))["properties"] == {"a": "2", "b": "3"}


def test_a_pipe_that_closes(run: Run, model: str, file: Path, server: ServerProgram) -> None:
    run("push", model, file)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "modelreg", "pull", model],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_a_shell(run: Run, shell: str) -> None:
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    assert "_MODELREG_COMPLETE" in out


def test_completion_knows_commands_flags_and_models(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = model.replace(" ", "_")
    run("set", name)
    monkeypatch.setenv("_MODELREG_COMPLETE", "bash_complete")
    for words, expected in (
        ("modelreg ver", "plain,versions"),
        ("modelreg pull --ou", "plain,--output"),
        (f"modelreg pull {name[:-1]}", f"plain,{name}"),
    ):
        monkeypatch.setenv("COMP_LINE", words)
        monkeypatch.setenv("COMP_WORD", words.split()[-1])
        with pytest.raises(SystemExit):
            main([])
        assert expected in capfd.readouterr().out.splitlines()
    monkeypatch.setenv("COGMENT_MODEL_REGISTRY_ENDPOINT", "grpc://127.0.0.1:1")
    with pytest.raises(SystemExit):
        main([])
    assert capfd.readouterr() == ("\n", "")
