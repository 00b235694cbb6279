"""Which calls may pass, before anything of their bodies is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from modelreg.errors import ModelregError
from modelreg.services import Readiness, Tokens, admission


@attrs.frozen
class Call:
    service_name: str
    method_name: str
    fields: tuple[tuple[str, str | bytes], ...] = ()

    def metadata(self, wanted: str, /) -> list[str | bytes]:
        return [value for name, value in self.fields if name == wanted]


HEALTH = Call("grpc.health.v1.Health", "Check")
HEALTHS = [attrs.evolve(HEALTH, method_name=method) for method in ("Check", "List", "Watch")]
REFLECTION = Call("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo")
LOOKUP = Call("cogmentAPI.ModelRegistrySP", "RetrieveModels")
DIRECTORYS = [Call("cogmentAPI.ModelRegistrySP", method) for method in ("Version", "Status")]
UPLOAD = Call("cogmentAPI.ModelRegistrySP", "CreateVersion")


def refused(admit: Any, call: Call) -> str | None:
    """The status of a call that may not pass."""
    try:
        admit(call)
    except ModelregError as error:
        return str(error.status.name)
    return None


def test_the_registry_answers_only_while_it_is_ready() -> None:
    readiness = Readiness()
    admit = admission(readiness, lambda: None)
    for change, expected in ((None, "UNAVAILABLE"), (readiness.start, None), (readiness.stop, "UNAVAILABLE")):
        if change is not None:
            change()
        assert [refused(admit, call) for call in (LOOKUP, UPLOAD, HEALTH, REFLECTION)] == [
            expected,
            expected,
            None,
            None,
        ]


@pytest.mark.parametrize("token", ["", "reader-token", "writer-token"])
def test_tokens_come_before_readiness_and_are_asked_for_each_time(tmp_path: Path, token: str) -> None:
    (tmp_path / "tokens").write_text("read-write writer-token\nread-only reader-token\n")
    tokens: list[Tokens | None] = [Tokens.read(tmp_path / "tokens")]
    readiness = Readiness()
    admit = admission(readiness, lambda: tokens[0])
    calls = [attrs.evolve(call, fields=(("authentication-token", token),)) for call in (LOOKUP, UPLOAD, REFLECTION)]
    not_ready = [refused(admit, call) for call in calls]
    readiness.start()
    ready = [refused(admit, call) for call in calls]
    if token == "writer-token":
        assert (not_ready, ready) == (["UNAVAILABLE", "UNAVAILABLE", None], [None, None, None])
    elif token == "reader-token":
        assert (not_ready, ready) == (["UNAVAILABLE", "PERMISSION_DENIED", None], [None, "PERMISSION_DENIED", None])
    else:
        assert not_ready == ready == ["UNAUTHENTICATED"] * 3
    assert [refused(admit, call) for call in (*HEALTHS, *DIRECTORYS)] == [None] * 5
    readiness.stop()
    assert [refused(admit, call) for call in (HEALTH, *DIRECTORYS)] == [None, "UNAVAILABLE", "UNAVAILABLE"]
    readiness.start()
    tokens[0] = None
    assert [refused(admit, call) for call in calls] == [None] * 3
