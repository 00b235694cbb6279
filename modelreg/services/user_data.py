"""Messages with user data, which may have any number of entries: too many are refused before they are parsed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from modelreg.errors import ResourceExhausted
from modelreg.services.fields import has_more_fields

T_co = TypeVar("T_co", covariant=True)

# Fields that a message may have beside the entries.
OTHERS = 100


class _Message(Protocol[T_co]):
    def FromString(self, data: bytes, /) -> T_co: ...


def parser(kind: _Message[T_co], most_entries: int, within: Sequence[int]) -> Callable[[bytes], T_co]:
    """Return what parses a message whose user data is in the message that the path *within* leads to."""

    def parse(body: bytes) -> T_co:
        if has_more_fields(body, most_entries + OTHERS, within):
            msg = (
                f"the user data has more entries than --max_user_data_entries allows, which is {most_entries}: "
                "leave some out, or store them as a version"
            )
            raise ResourceExhausted(msg)
        return kind.FromString(body)

    return parse
