from __future__ import annotations

import signal
import sys

import pytest
import trio

from modelreg import __version__
from modelreg.cli import main
from modelreg.errors import AddressUnavailable, ArchiveInUse, StartupError
from modelreg.settings import OPTIONS, Option, Settings
from tests.test_settings import EXAMPLES

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


class Server:
    """In the server's place: takes the settings, and ends as it is told."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.settings: Settings | None = None

    async def __call__(self, settings: Settings) -> None:
        self.settings = settings
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_flag_in_both_spellings_and_forms(option: Option) -> None:
    text, value = EXAMPLES[option.name][0]
    for flag in option.flags:
        for args in ([f"{flag}={text}"], [flag, text]):
            server = Server()
            assert main(["serve", *args], run=server) == 0
            assert server.settings is not None
            assert getattr(server.settings, option.name) == value
            assert server.settings.given == {option.name}


def test_variables_and_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGMENT_MODEL_REGISTRY_PORT", "1")
    monkeypatch.setenv("COGMENT_LOG_LEVEL", "5")
    server = Server()
    assert main(["serve", "--port=2"], run=server) == 0
    assert server.settings == Settings(port=2, log_level="trace", given=frozenset({"port", "log_level"}))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--grpc_reflection"], True),
        (["--grpc_reflection", "--port=1"], True),
        (["--grpc-reflection=true"], True),
        (["--grpc-reflection=0"], False),
        ([], False),
    ],
)
def test_a_switch_needs_no_value(args: list[str], expected: bool) -> None:
    server = Server()
    assert main(["serve", *args], run=server) == 0
    assert server.settings is not None
    assert server.settings.grpc_reflection is expected


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--port=x"], "modelreg: --port: 'x' is not a number from 0 to 65535\n"),
        (
            ["--log-level", "9"],
            "modelreg: --log_level: '9' is not one of off, error, warning, info, debug, trace, or a number ",
        ),
        (["--directory_authentication_token=é"], "modelreg: --directory_authentication_token: the value given is not "),
        (["--prot=1"], "modelreg: No such option"),
        (["--port"], "modelreg: Option '--port' requires an argument"),
        (["somewhere"], "modelreg: Got unexpected extra argument (somewhere)"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    assert main(["serve", *args], run=server) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert len(err.splitlines()) == 1
    assert server.settings is None


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COGMENT_MODEL_REGISTRY_PORT", "http")
    assert main(["serve"], run=Server()) == 2
    assert capsys.readouterr().err == "modelreg: COGMENT_MODEL_REGISTRY_PORT: 'http' is not a number from 0 to 65535\n"


@pytest.mark.parametrize("kind", [AddressUnavailable, ArchiveInUse])
def test_what_keeps_the_server_from_starting_is_one_line_and_its_exit_code(
    kind: type[StartupError], capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (kind("that is taken"), ExceptionGroup("", [ExceptionGroup("", [kind("that is taken")])])):
        assert main(["serve", "--log_level=trace"], run=Server(error)) == kind.exit_code
        assert capsys.readouterr() == ("", "modelreg: that is taken\n")


def test_a_bug_is_one_line_and_at_debug_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    bug = RuntimeError("two\nlines")
    for error in (bug, ExceptionGroup("", [AddressUnavailable("x"), bug])):
        assert main(["serve"], run=Server(error)) == 70
        assert capsys.readouterr().err == (
            "modelreg: internal error: RuntimeError: two lines (--log_level=debug shows where)\n"
        )
        assert main(["serve", "--log_level=debug"], run=Server(error)) == 70
        err = capsys.readouterr().err
        assert "Traceback (most recent call last)" in err
        assert err.endswith("modelreg: internal error: RuntimeError: two lines\n")


def test_an_interrupt_before_the_server_listens_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    async def interrupted(_settings: Settings) -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    assert main(["serve"], run=interrupted) == 130
    assert capsys.readouterr().err.strip() == "modelreg: interrupted"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"modelreg {__version__}\n"


def test_help_names_every_flag_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    for option in OPTIONS:
        assert {*option.flags, option.env} <= set(words)


def test_without_a_command_it_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "serve" in capsys.readouterr().out
