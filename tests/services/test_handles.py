from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelreg.errors import InvalidArgument
from modelreg.services import handles


@pytest.mark.parametrize(("handle", "number"), [("", 0), ("0", 0), ("7", 7), ("007", 7), ("9" * 40, int("9" * 40))])
def test_plain_number(handle: str, number: int) -> None:
    assert handles.parse(handle, "model_handle") == number


@given(st.text(min_size=1).filter(lambda text: not (text.isascii() and text.isdecimal())))
def test_anything_else_is_refused_with_the_fields_name(handle: str) -> None:
    with pytest.raises(InvalidArgument, match="model_handle"):
        handles.parse(handle, "model_handle")


def test_number_beyond_all_numbers_is_refused_before_it_costs_anything() -> None:
    with pytest.raises(InvalidArgument) as caught:
        handles.parse("1" * 1_000_000, "model_handle")
    assert len(str(caught.value)) < 200


def test_after_versions_is_the_last_number_and_one() -> None:
    assert handles.after_versions(9, "1") == "10"


@pytest.mark.parametrize(("handle", "expected"), [("", "0"), ("0", "0"), ("57", "57")])
def test_after_no_versions_is_the_handle_given(handle: str, expected: str) -> None:
    assert handles.after_versions(None, handle) == expected


available = st.integers(1, 50)


@given(st.lists(available, min_size=1, max_size=12), st.integers(1, 13), st.booleans())
def test_pages_by_number_join_to_what_was_asked_whatever_it_was(numbers: list[int], count: int, negative: bool) -> None:
    # What was asked for, of which the first may have been asked for from the end.
    asked = [-1, *numbers[1:]] if negative else numbers
    found: list[int] = []
    handle = ""
    while True:
        start = handles.place_among(numbers, handle)
        page = numbers[start : start + count]
        found += page
        assert len(found) <= len(numbers)
        handle = handles.after_numbers(page[-1] if page else None, asked, start + len(page), handle)
        assert handle
        if page and not negative and len(set(numbers)) == len(numbers):
            assert handle == str(page[-1] + 1)
        if len(page) < count:
            break
    assert found == numbers


@pytest.mark.parametrize("handle", ["", "0", "1"])
def test_handle_before_all_versions_begins_at_the_first(handle: str) -> None:
    assert handles.place_among([5, 3], handle) == 0


@pytest.mark.parametrize("handle", ["5", "x", "-1", "4@", "4@x", "4@-1", "@x", "x@1"])
def test_handle_that_this_list_did_not_give_out_is_refused(handle: str) -> None:
    with pytest.raises(InvalidArgument, match="version_handle"):
        handles.place_among([5, 3], handle)
