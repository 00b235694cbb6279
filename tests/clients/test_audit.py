"""The log says who changed something, and whose calls were refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelreg.api import common_pb2, health_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.client import Exhausted, NotFound, Refused, RegistryError, blocking
from tests.clients.calls import Calls, Code, fails, open_channel
from tests.support.server import LogLine, ServerProgram, server_program

WRITER, READER = "writer-token-1", "reader-token-1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProgram]:
    path = tmp_path_factory.mktemp("audit")
    (path / "tokens").write_text(f"read-write {WRITER} name=trainer\nread-only {READER}\n")
    options = (
        f"--authentication_token_file={path / 'tokens'}",
        "--max_version_bytes=1000",
        "--max_message_bytes=2000",
        "--grpc_reflection",
    )
    with server_program(path / "archive", *options) as server:
        yield server
    assert "-token-" not in str(server.log)


@contextlib.contextmanager
def registry(server: ServerProgram, token: str | None, user: str) -> Iterator[blocking.ModelRegistry]:
    with blocking.Context(user) as context:
        endpoint = blocking.Endpoint(f"grpc://{server.address}", token=token)
        yield context.get_model_registry_v2(endpoint, patience=0)


def line(server: ServerProgram, event: str, **fields: object) -> LogLine:
    """The line of this event with these fields, but for its time, level, and the client's port."""
    found = server.wait_for_log(event, **fields)
    assert found["level"] == "info"
    assert found["peer"].startswith("127.0.0.1:")
    return {name: value for name, value in found.items() if name not in ("timestamp", "level", "peer", "event")}


def test_each_change_names_its_caller(server: ServerProgram) -> None:
    with registry(server, WRITER, "zoë") as models:
        models.store_model("changed", b"weights")
        models.publish_model("changed", b"lighter")
        models.update_model_info("changed", {"a": "b"})
        models.remove_model("changed")
    caller = {"model": "changed", "user": "zoë", "token": "trainer"}
    assert line(server, "created a model", model="changed") == caller
    assert line(server, "stored a version", model="changed") == {**caller, "version": 1, "size": 7}
    assert line(server, "published a version", model="changed") == {**caller, "version": 2, "size": 7}
    assert line(server, "updated a model", model="changed") == caller
    assert line(server, "deleted a model", model="changed") == {**caller, "versions": 2}


def refusal(server: ServerProgram, user: str) -> LogLine:
    return line(server, "refused a call", user=user)


def test_each_refusal_names_its_caller_and_the_reason(server: ServerProgram) -> None:
    with registry(server, "no-token-of-theirs", "stranger") as models, pytest.raises(RegistryError):
        models.list_models()
    refused = refusal(server, "stranger")
    assert refused == {
        "user": "stranger",
        "call": "cogmentAPI.ModelRegistrySP/RetrieveModels",
        "status": "UNAUTHENTICATED",
        "reason": refused["reason"],
    }
    with registry(server, READER, "reader") as models, pytest.raises(RegistryError):
        models.remove_model("kept")
    refused = refusal(server, "reader")
    assert (refused["status"], refused["token"]) == ("PERMISSION_DENIED", "line 2")
    with registry(server, WRITER, "too much") as models, pytest.raises(Exhausted):
        models.store_model("kept", bytes(1001))
    refused = refusal(server, "too much")
    assert (refused["status"], refused["token"]) == ("RESOURCE_EXHAUSTED", "trainer")
    assert "--max_version_bytes" in refused["reason"]
    with registry(server, WRITER, "too large") as models, pytest.raises(Exhausted):
        models.update_model_info("kept", {"a": "b" * 3000})
    assert "max_message_bytes" in refusal(server, "too large")["reason"]
    with registry(server, WRITER, "wrong") as models, pytest.raises(Refused):
        models.update_model_info("two\nlines", {})
    refused = refusal(server, "wrong")
    assert (refused["call"], refused["status"]) == (
        "cogmentAPI.ModelRegistrySP/CreateOrUpdateModel",
        "INVALID_ARGUMENT",
    )


def test_a_call_that_is_refused_by_its_headers_names_its_address(server: ServerProgram) -> None:
    with open_channel(server.address) as channel, fails(Code.RESOURCE_EXHAUSTED):
        many = [("a", str(number)) for number in range(500)]
        Calls(channel).RetrieveModels(api.RetrieveModelsRequest(), metadata=many)
    refused = line(server, "refused a call", call="/")
    assert refused["status"] == "RESOURCE_EXHAUSTED"
    assert "max_header_bytes" in refused["reason"]


def test_an_answer_is_no_refusal(server: ServerProgram) -> None:
    with registry(server, WRITER, "asking") as models:
        with pytest.raises(NotFound):
            models.remove_model("nonsense")
        with pytest.raises(Refused):
            models.remove_model("")
    assert refusal(server, "asking")["status"] == "INVALID_ARGUMENT"  # what came before it isn't there


def test_what_a_client_says_of_itself_stays_on_its_line_and_short(server: ServerProgram) -> None:
    for given, logged in (
        ("a%0A%1b[31mb", "a\\n\\x1b[31mb"),
        ("u" * 5000, "u" * 63 + "…"),
    ):
        with open_channel(server.address) as channel, fails(Code.UNAUTHENTICATED):
            Calls(channel).RetrieveModels(api.RetrieveModelsRequest(), metadata=[("user-id", given)])
        assert refusal(server, logged)["status"] == "UNAUTHENTICATED"
    with open_channel(server.address) as channel, fails(Code.UNAUTHENTICATED):
        channel.unary_unary("/a/" + "b" * 5000)(b"")
    line(server, "refused a call", call="a/" + "b" * 97 + "…")


def test_a_directorys_health_check_needs_no_token_and_learns_the_load_and_nothing_else(server: ServerProgram) -> None:
    with open_channel(server.address) as channel:
        calls = Calls(channel)
        assert calls.Version(common_pb2.VersionRequest()).versions
        assert calls.status() == {}
        assert set(calls.status("overall_load")) == {"overall_load"}
        for names in (["*"], ["models"], ["overall_load", "models"], ["nonsense"], ["overall_load"] * 2):
            with fails(Code.UNAUTHENTICATED):
                calls.status(*names)
        health = Calls(channel, health_pb2.DESCRIPTOR.services_by_name["Health"])
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_a_flood_of_refusals_is_bounded_and_counted(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"read-write {WRITER}\n")
    option = f"--authentication_token_file={tmp_path / 'tokens'}"
    with server_program(tmp_path / "archive", option) as server:
        with open_channel(server.address) as channel:
            for _ in range(100):
                with fails(Code.UNAUTHENTICATED):
                    Calls(channel).status("*")
        server.stop()
        events = [logged["event"] for logged in server.log]
        assert events.count("refused a call") == 20
        (left,) = [logged for logged in server.log if logged["event"] == "left lines out of the log"]
        assert (left["of"], left["lines"]) == ("refused a call", 80)
