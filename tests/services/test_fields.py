"""Counting a message's fields before it is parsed."""

from __future__ import annotations

import pytest

from modelreg.api import model_registry_pb2 as api
from modelreg.errors import InvalidArgument, ResourceExhausted
from modelreg.services import parsers, streamed
from modelreg.services.fields import SMALL, has_more_fields
from modelreg.transport.buffers import Allowance
from modelreg.transport.messages import StreamedMessages
from tests.faults.abuse import path
from tests.support.h2client import message

ENTRIES = {str(number): "" for number in range(5000)}


def model() -> bytes:
    info = api.ModelInfo(model_id="m", user_data=ENTRIES)
    return api.CreateOrUpdateModelRequest(model_info=info).SerializeToString()


@pytest.mark.parametrize("beside", [b"", b"\x78\xff\x01", b"\x79" + bytes(8), b"\x7d" + bytes(4), b"\x7b\x7c"])
def test_fields_of_every_kind_are_passed(beside: bytes) -> None:
    body = beside + model()
    fields = {0: 0, 3: 1, 9: 1, 5: 1, 2: 2}[len(beside)] + 1 + 1 + len(ENTRIES)
    assert not has_more_fields(body, fields, (1,))
    assert has_more_fields(body, fields - 1, (1,))
    assert not has_more_fields(body, fields - 1 - len(ENTRIES))


@pytest.mark.parametrize("end", [b"\x0a", b"\x0a\xff", b"\x0f", b"\xff" * 20, b"\x0a\x7fabc"])
def test_an_invalid_message_is_for_the_parser(end: bytes) -> None:
    assert not has_more_fields(b"\x12\x00" * SMALL + end, SMALL + 1)
    assert has_more_fields(b"\x12\x00" * SMALL + end, SMALL - 1)


def test_a_model_with_too_many_entries_is_not_parsed() -> None:
    parse = parsers(len(ENTRIES))[path("CreateOrUpdateModel")]
    assert isinstance(parse(model()), api.CreateOrUpdateModelRequest)
    parse = parsers(100)[path("CreateOrUpdateModel")]
    with pytest.raises(ResourceExhausted, match="more entries than --max_user_data_entries allows, which is 100"):
        parse(model())


def test_an_upload_with_too_many_entries_is_not_parsed() -> None:
    info = api.ModelVersionInfo(model_id="m", user_data=ENTRIES)
    header = api.CreateVersionRequestChunk(header=api.CreateVersionRequestChunk.Header(version_info=info))
    body = memoryview(message(header.SerializeToString()))

    def items(most: int) -> list[object]:
        decoder = streamed(1 << 20, most)[path("CreateVersion")]()
        return list(StreamedMessages(decoder, None, Allowance(1 << 20)).decode(body))

    assert items(len(ENTRIES)) == [header]
    with pytest.raises(ResourceExhausted, match="--max_user_data_entries"):
        items(100)


def test_a_list_of_too_many_names_is_not_parsed() -> None:
    parse = parsers(100)[path("RetrieveModels")]
    assert isinstance(
        parse(api.RetrieveModelsRequest(model_ids=["m" * 20] * 1000).SerializeToString()), api.RetrieveModelsRequest
    )
    with pytest.raises(InvalidArgument, match="more than 1000 are asked for"):
        parse(b"\x0a\x00" * 200_000)
