"""The user data of models and versions: how much of it a request may bring, and the memory that it takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import attrs

from modelreg.errors import ResourceExhausted


@attrs.frozen(kw_only=True)
class UserDataLimits:
    """How much user data a model or a version may have.

    Attributes:
        entries: how many entries. Each costs time in every list that has it, and memory beyond its text.
        size: how many bytes of UTF-8, keys and values together.
        arriving: how many bytes of memory it takes in all uploads to the archive that are under way. Little isn't counted.
    """

    entries: int = 10_000
    size: int = 1 << 20
    arriving: int = 64 << 20

    def checked(self, user_data: Mapping[str, str]) -> dict[str, str]:
        """Return a copy of user data.

        Raises:
            ResourceExhausted: there is more of it than the limits allow.
        """
        if len(user_data) > self.entries:
            msg = (
                f"the user data has {len(user_data)} entries, and --max_user_data_entries allows {self.entries}: "
                "leave some out, or store them as a version"
            )
            raise ResourceExhausted(msg)
        copy = dict(user_data)
        size = sum(_utf8(key) + _utf8(value) for key, value in copy.items())
        if size > self.size:
            msg = (
                f"the user data has {size} bytes, and --max_user_data_bytes allows {self.size}: "
                "leave some out, or store it as a version"
            )
            raise ResourceExhausted(msg)
        return copy


def _utf8(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


# Bytes of memory for user data that aren't counted: about as many as the rest of what is known of a version.
UNCOUNTED = 1024


def memory_of(user_data: Mapping[str, str]) -> int:
    """Return the bytes of memory that user data takes; 0 where it is little."""
    size = sys.getsizeof(user_data) + sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in user_data.items())
    return size if size > UNCOUNTED else 0
