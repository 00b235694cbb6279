from __future__ import annotations

import pytest

from modelreg import errors
from modelreg.errors import ModelregError
from modelreg.services.statuses import as_status
from modelreg.transport._purerpc import RpcFailedError, status_of

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelregError)]


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not ModelregError])
def test_each_of_the_domains_errors_has_its_status(kind: type[ModelregError]) -> None:
    failed = as_status(kind("what a person reads"))
    assert isinstance(failed, RpcFailedError)
    assert status_of(failed) == (kind.status, "what a person reads")


def test_any_other_error_is_a_bug() -> None:
    assert as_status(ZeroDivisionError("a bug")) is None
