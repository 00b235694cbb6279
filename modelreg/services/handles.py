"""Page handles: where the next page of a list starts.

They're opaque to clients, but some values are documented: after models, the offset reached; after versions, the last
number returned + 1, or the handle given where none was returned (``"0"`` for none given). A handle is never empty, as
existing clients go on until a page is short, and an empty handle would send them back to the first.

A page of versions asked for by number needs its place in the request. Where numbers are positive and each is asked for
once, the documented value tells it; else, in a request for a page, ``@`` and the place are added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from modelreg.errors import InvalidArgument

# Digits; far beyond any number there is.
LONGEST = 40


def parse(handle: str, field: str) -> int:
    """A handle that's a plain number; an empty one is 0. Raises InvalidArgument."""
    if not handle:
        return 0
    if not (handle.isascii() and handle.isdecimal() and len(handle) <= LONGEST):
        _refuse(handle, field)
    return int(handle)


def after_versions(last: int | None, handle: str) -> str:
    """The handle after a page of versions that ends with number *last*, or is empty."""
    return handle or "0" if last is None else str(last + 1)


def place_among(numbers: Sequence[int], handle: str) -> int:
    """Where a page of the versions with these numbers starts. Raises InvalidArgument."""
    before, at, place = handle.partition("@")
    last = parse(before, "version_handle") - 1
    if at:
        if not before or not place:
            _refuse(handle, "version_handle")
        return parse(place, "version_handle")
    if last < 1:
        return 0
    if last not in numbers:
        _refuse(handle, "version_handle")
    return numbers.index(last) + 1


def after_numbers(last: int | None, asked: Sequence[int], place: int, handle: str) -> str:
    """The handle after such a page, up to *place*, of versions asked for by these numbers, some perhaps negative."""
    ambiguous = min(asked) < 0 or len(set(asked)) < len(asked)
    return after_versions(last, handle) if last is None or not ambiguous else f"{last + 1}@{place}"


def _refuse(handle: str, field: str) -> NoReturn:
    msg = f"{field} {handle[:40]!r} isn't one that this list gave out: begin with an empty one"
    raise InvalidArgument(msg)
