"""Properties: what is written as which text, and what names the property that can't be."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import pytest

import modelreg.client as cogment
import modelreg.client.blocking
from modelreg.client.properties import as_text
from tests.client.conftest import Run


class Step(enum.IntEnum):
    FIRST = 1


class Text(str, enum.Enum):
    RUN = "run"


GIVEN: dict[str, str | int | float | bool] = {"text": "a b", "int": -7, "float": 0.1, "true": True, "false": False}
WRITTEN = {"text": "a b", "int": "-7", "float": "0.1", "true": "true", "false": "false"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        (Text.RUN, "run"),
        (10**40, "1" + "0" * 40),
        (Step.FIRST, "1"),
        (1e-5, "1e-05"),
        (1e300, "1e+300"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (1 / 3, "0.3333333333333333"),
    ],
)
def test_values(value: Any, text: str) -> None:
    assert as_text({"name": value}) == {"name": text}
    if isinstance(value, (int, float)):
        assert type(value)(float(text) if isinstance(value, float) else int(text)) == value or math.isnan(value)


def test_scalars_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    given = {
        "a": numpy.float64(0.5),
        "b": numpy.float32(0.25),
        "c": numpy.int64(3),
        "d": numpy.bool_(True),
        "e": numpy.array(1.5),
        "f": numpy.str_("text"),
    }
    assert as_text(given) == {"a": "0.5", "b": "0.25", "c": "3", "d": "true", "e": "1.5", "f": "text"}


@pytest.mark.parametrize(
    ("properties", "error", "says"),
    [
        ({"loss": None}, TypeError, "'loss' .* NoneType"),
        ({"fine": "1", "shape": [1, 2]}, TypeError, "'shape' .* list"),
        ({"raw": b"bytes"}, TypeError, "'raw' .* bytes"),
        ({"complex": 1j}, TypeError, "'complex'"),
        ({1: "a"}, TypeError, "name .* 1 is of type int"),
        ({None: "a"}, TypeError, "None"),
        ({"": "a"}, ValueError, "empty"),
        ({"half": "\ud800"}, ValueError, "'half'"),
        ({"\udcff": "a"}, ValueError, "udcff"),
        ([("a", "b")], TypeError, "dict"),
        ("a=b", TypeError, "dict"),
    ],
)
def test_what_is_no_property_is_named(properties: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        as_text(properties)


def test_in_every_call(run: Run, url: str, name: str) -> None:
    async def main() -> None:
        async with cogment.Context("test") as context:
            registry = await context.get_model_registry_v2(cogment.Endpoint(url))
            for call in (
                lambda properties: registry.store_model(name, b"", properties),
                lambda properties: registry.publish_model(name, b"", properties),
                lambda properties: registry.update_model_info(name, properties),
            ):
                with pytest.raises(TypeError, match="'loss'"):
                    await call({"loss": None})
                with pytest.raises(ValueError, match="empty"):
                    await call({"": "a"})
                assert await registry.get_model_info(name) is None
            assert (await registry.store_model(name, b"", GIVEN)).properties == WRITTEN
            assert (await registry.publish_model(name, b"", MappingProxyType(GIVEN))).properties == WRITTEN
            await registry.update_model_info(name, OrderedDict(GIVEN))
            info = await registry.get_model_info(name)
            assert info is not None
            assert info.properties == WRITTEN

    run(main)


def test_in_every_call_of_the_blocking_client(url: str, name: str) -> None:
    with modelreg.client.blocking.Context("test") as context:
        registry = context.get_model_registry_v2(cogment.Endpoint(url))
        assert registry.store_model(name, b"", GIVEN).properties == WRITTEN
        assert registry.publish_model(name, b"", GIVEN).properties == WRITTEN
        registry.update_model_info(name, GIVEN)
        info = registry.get_model_info(name)
        assert info is not None
        assert info.properties == WRITTEN
        with pytest.raises(TypeError, match="'loss'"):
            registry.store_model(name, b"", {"loss": None})  # type: ignore[dict-item]
