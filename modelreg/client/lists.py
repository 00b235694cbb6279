"""Lists are asked for page by page, in pages that the registry can answer with.

A page with much user data may be larger than a reply may be (the registry's ``--max_reply_bytes``): the rest of the list is
asked for in pages of half the size, and so on, down to one entry.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from modelreg.client.errors import Exhausted
from modelreg.client.transport.status import CallFailed
from modelreg.grpc.status import Code

T = TypeVar("T")

PAGE = 500


class Pages:
    """The pages of one list.

    Attributes:
        size: entries of a page. A page with fewer is the last one.
    """

    def __init__(self) -> None:
        self.size = PAGE

    async def get(self, ask: Callable[[int], Awaitable[T]]) -> T:
        """Ask for a page of so many entries, and for a smaller one where it's too large."""
        while True:
            try:
                return await ask(self.size)
            except (Exhausted, CallFailed) as error:
                if self.size == 1 or (isinstance(error, CallFailed) and error.code != Code.RESOURCE_EXHAUSTED):
                    raise
                self.size //= 2
