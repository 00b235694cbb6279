"""Model ids, and the calls about models: CreateOrUpdateModel, DeleteModel, RetrieveModels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelreg.api import model_registry_pb2 as api
from tests.clients.calls import Calls, Code, OpenRequest, connected, fails, header, model_info
from tests.support.server import StartServer, server_program

# Ids, numbers, handles: model ids

VALID_IDS = [
    "a",
    "A",  # another one than the last
    "a" * 512,
    "é" * 256,
    "💡" * 128,
    "/" * 512,
    "team/policy",
    "../x",
    "../../../../../../../../tmp/x",
    "/etc/passwd",
    ".",
    "..",
    "...",
    "a.",
    ".hidden",
    " ",
    "a b ",
    "with:colon*star?\"quote'<|>\\back",
    "%2e%2e",
    "!a~b%",
    "模型",
    "\u00e9",  # é as one character
    "e\u0301",  # é as two, which some file systems take for the same
    "CON",
    "nul.json",
    "model.json",
    "versions",
]

INVALID_IDS = {
    "empty": "",
    "513 bytes": "a" * 513,
    "513 bytes, fewer characters": "é" * 256 + "a",
    "NUL": "a\0b",
    "newline": "a\nb",
    "escape": "\x1b[31m",
    "delete": "a\x7f",
    "C1 control": "a\x85b",
}


def test_model_id_may_have_any_characters_but_control_characters_and_stays_within_the_archive(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server(archive_dir=tmp_path / "outer" / "archive")
    with connected(server.address) as calls:
        for number, model_id in enumerate(VALID_IDS):
            calls.create(model_id, number=str(number))
            assert calls.store(model_id, f"{number}".encode()).version_number == 1
    assert [path.name for path in tmp_path.iterdir()] == ["outer"]
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["archive"]
    server.restart()
    with connected(server.address) as calls:
        found = calls.RetrieveModels(api.RetrieveModelsRequest()).model_infos
        assert {model.model_id: model.user_data["number"] for model in found} == {
            model_id: str(number) for number, model_id in enumerate(VALID_IDS)
        }
        for number, model_id in enumerate(VALID_IDS):
            assert calls.data(model_id) == f"{number}".encode()
            assert calls.info(model_id)[0].model_id == model_id
            calls.DeleteModel(api.DeleteModelRequest(model_id=model_id))
        assert calls.model_ids() == []


@pytest.mark.parametrize("model_id", INVALID_IDS.values(), ids=INVALID_IDS.keys())
@pytest.mark.parametrize(
    "call",
    [
        "CreateOrUpdateModel",
        "DeleteModel",
        "RetrieveModels",
        "CreateVersion",
        "RetrieveVersionInfos",
        "RetrieveVersionData",
        "VersionUpdate",
    ],
)
def test_empty_overlong_or_control_character_model_id_in_every_call_is_invalid(
    calls: Calls, call: str, model_id: str
) -> None:
    requests = {
        "CreateOrUpdateModel": model_info(model_id),
        "DeleteModel": api.DeleteModelRequest(model_id=model_id),
        "RetrieveModels": api.RetrieveModelsRequest(model_ids=[model_id]),
        "RetrieveVersionInfos": api.RetrieveVersionInfosRequest(model_id=model_id),
        "RetrieveVersionData": api.RetrieveVersionDataRequest(model_id=model_id, version_number=-1),
        "VersionUpdate": api.VersionUpdateRequest(model_id=model_id),
    }
    before = calls.model_ids()
    with OpenRequest(header(model_id)) as request, fails(Code.INVALID_ARGUMENT) as caught:
        reply = calls.method(call)(requests.get(call, request))
        # Streams say so at the first message.
        next(iter(reply))
    assert "model id" in str(caught.value)
    assert calls.model_ids() == before


# CreateOrUpdateModel


def test_create_model_new(calls: Calls) -> None:
    calls.create("brand new", colour="red", shape="round")
    reply = calls.RetrieveModels(api.RetrieveModelsRequest(model_ids=["brand new"]))
    assert dict(reply.model_infos[0].user_data) == {"colour": "red", "shape": "round"}
    assert calls.info("brand new") == []


def test_update_model_existing_replaces_user_data_whole_and_keeps_versions(calls: Calls, model: str) -> None:
    calls.store(model, b"data")
    calls.create(model, colour="red", shape="round")
    calls.create(model, colour="blue")
    reply = calls.RetrieveModels(api.RetrieveModelsRequest(model_ids=[model]))
    assert dict(reply.model_infos[0].user_data) == {"colour": "blue"}
    calls.create(model)
    reply = calls.RetrieveModels(api.RetrieveModelsRequest(model_ids=[model]))
    assert dict(reply.model_infos[0].user_data) == {}
    assert calls.numbers(model) == [1]


def test_model_user_data_is_kept_over_a_restart(start_server: StartServer) -> None:
    server = start_server()
    with connected(server.address) as calls:
        calls.create("m", colour="blue", **{"": "", "ключ": "значение\n", "k": "\0"})
        calls.create("m", colour="red", **{"": "", "ключ": "значение\n", "k": "\0"})
    server.restart()
    with connected(server.address) as calls:
        reply = calls.RetrieveModels(api.RetrieveModelsRequest())
        assert dict(reply.model_infos[0].user_data) == {"colour": "red", "": "", "ключ": "значение\n", "k": "\0"}


def test_create_model_without_model_info_is_invalid(calls: Calls) -> None:
    with fails(Code.INVALID_ARGUMENT):
        calls.CreateOrUpdateModel(api.CreateOrUpdateModelRequest())


# DeleteModel


def test_delete_model_known_takes_model_versions_and_watches_and_the_id_begins_anew(
    start_server: StartServer,
) -> None:
    with connected(start_server().address) as calls:
        calls.create("m", colour="red")
        calls.store("m", b"stored")
        calls.publish("m", b"transient")
        with calls.watch("m") as watch:
            assert watch.next().version_number == 2
            calls.DeleteModel(api.DeleteModelRequest(model_id="m"))
            with fails(Code.NOT_FOUND, 'no model "m" found'):
                watch.next()
        assert calls.model_ids() == []
        with fails(Code.NOT_FOUND, 'no model "m" found'):
            calls.info("m")
        calls.wait_for_status(models=0, versions=0, stored_bytes=0, transient_bytes=0, watchers=0)
        calls.create("m")
        reply = calls.RetrieveModels(api.RetrieveModelsRequest(model_ids=["m"]))
        assert dict(reply.model_infos[0].user_data) == {}
        assert calls.numbers("m") == []
        assert calls.publish("m", b"anew").version_number == 1
        assert calls.store("m", b"anew").version_number == 2


def test_deleted_model_stays_deleted_over_a_restart_and_leaves_no_file(start_server: StartServer) -> None:
    server = start_server()
    with connected(server.address) as calls:
        for model_id in ("m", "kept"):
            calls.create(model_id)
            calls.store(model_id, b"both have it")
            calls.store(model_id, model_id.encode())
        calls.DeleteModel(api.DeleteModelRequest(model_id="m"))
    blobs = [path for path in (server.archive_dir / "blobs").rglob("*") if path.is_file()]
    assert sorted(path.read_bytes() for path in blobs) == [b"both have it", b"kept"]
    assert list((server.archive_dir / "tmp").iterdir()) == []
    server.restart()
    with connected(server.address) as calls:
        assert calls.model_ids() == ["kept"]
        assert calls.data("kept", 1) == b"both have it"


def test_delete_model_unknown(calls: Calls) -> None:
    with fails(Code.NOT_FOUND, 'no model "never there" found'):
        calls.DeleteModel(api.DeleteModelRequest(model_id="never there"))


# RetrieveModels

# In the order of their code points, which is neither that of UTF-16 nor that of a dictionary.
LISTED = ["B", "Z", "a", "b", "ba", "é", "\uffff", "\U00010000"]


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """The calls of a server that has these models, and no test changes."""
    directory = tmp_path_factory.mktemp("listing")
    with server_program(directory) as server, connected(server.address) as calls:
        for model_id in reversed(LISTED):
            calls.create(model_id, name=model_id)
        yield calls


def page(calls: Calls, handle: str = "", count: int = 0, ids: list[str] | None = None) -> tuple[list[str], str]:
    """The ids of a page of models, and the next handle."""
    request = api.RetrieveModelsRequest(model_ids=ids or [], models_count=count, model_handle=handle)
    reply = calls.RetrieveModels(request)
    assert all(dict(model.user_data) == {"name": model.model_id} for model in reply.model_infos)
    return [model.model_id for model in reply.model_infos], reply.next_model_handle


def test_list_models_no_ids_gives_all_in_order_of_code_points(listing: Calls) -> None:
    assert page(listing) == (LISTED, "8")


def test_list_models_in_an_empty_registry(start_server: StartServer) -> None:
    with connected(start_server().address) as calls:
        assert page(calls) == ([], "0")
        assert page(calls, count=3) == ([], "0")


@pytest.mark.parametrize(
    ("handle", "count", "expected", "next_handle"),
    [
        ("", 3, LISTED[:3], "3"),
        ("0", 3, LISTED[:3], "3"),
        ("3", 3, LISTED[3:6], "6"),
        ("6", 3, LISTED[6:], "8"),
        ("6", 2, LISTED[6:], "8"),
        ("5", 0, LISTED[5:], "8"),
        ("", 2**32 - 1, LISTED, "8"),
        ("8", 3, [], "8"),
        ("57", 3, [], "57"),
        ("57", 0, [], "57"),
        (str(2**64), 3, [], str(2**64)),
    ],
)
def test_list_models_from_the_handles_offset_and_past_the_end_none_with_the_handle_unchanged(
    listing: Calls, handle: str, count: int, expected: list[str], next_handle: str
) -> None:
    assert page(listing, handle, count) == (expected, next_handle)


def test_models_by_ids_come_in_the_order_asked(listing: Calls) -> None:
    assert page(listing, ids=["b", "B", "é", "b"]) == (["b", "B", "é", "b"], "4")


def test_models_by_ids_any_unknown(listing: Calls) -> None:
    with fails(Code.NOT_FOUND, 'no model "x" found'):
        page(listing, ids=["b", "x", "B"])


@pytest.mark.parametrize(
    ("handle", "count", "expected", "next_handle"),
    [
        ("", 2, ["b", "B"], "2"),
        ("2", 2, ["é"], "3"),
        ("", 100, ["b", "B", "é"], "3"),
        ("1", 0, ["B", "é"], "3"),
        ("3", 2, [], "3"),
        ("57", 2, [], "57"),
    ],
)
def test_models_by_ids_count_beyond_what_is_left_and_handle_past_the_end_give_what_there_is(
    listing: Calls, handle: str, count: int, expected: list[str], next_handle: str
) -> None:
    assert page(listing, handle, count, ["b", "B", "é"]) == (expected, next_handle)


@pytest.mark.parametrize("handle", ["x", "-1", "+1", " 1", "1.0", "1e3", "0x1", "٣", "1_000", "9" * 1000])
@pytest.mark.parametrize("ids", [[], ["b"]])
def test_models_handle_that_is_no_number_or_negative_is_invalid(listing: Calls, handle: str, ids: list[str]) -> None:
    with fails(Code.INVALID_ARGUMENT) as caught:
        page(listing, handle, 3, ids)
    assert "model_handle" in str(caught.value)
