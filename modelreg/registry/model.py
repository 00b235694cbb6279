"""One model of the registry: what's known of it, and who is busy with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from modelreg.bell import Bell
from modelreg.errors import NotFound
from modelreg.registry.index import VersionIndex
from modelreg.registry.numbers import VersionNumbers
from modelreg.registry.records import ModelInfo
from modelreg.registry.requests import RequestMemory
from modelreg.storage.sidecars import ModelRecord


class Model:
    """A model, from its creation to its deletion. One of the same id that's created afterwards is another one.

    Attributes:
        info: what callers are told of it.
        versions: those that are available.
        numbers: gives its versions' numbers.
        requests: what became of uploads that may be tried again.
        changed: rung when a version became available, when the model is deleted, and when the registry stops.
        record: held while the model's record is written.
        deleted: nothing can be committed to it any more.
    """

    def __init__(
        self, info: ModelInfo, versions: VersionIndex, numbers: VersionNumbers, requests: RequestMemory
    ) -> None:
        self.info = info
        self.versions = versions
        self.numbers = numbers
        self.requests = requests
        self.changed = Bell()
        self.record = trio.Lock()
        self.deleted = False
        self._commits = 0
        self._idle = Bell()

    def to_record(self, number_ceiling: int) -> ModelRecord:
        return ModelRecord(model_id=self.info.model_id, user_data=self.info.user_data, number_ceiling=number_ceiling)

    @contextmanager
    def commit(self) -> Iterator[None]:
        """A version is being committed: the model can't be deleted meanwhile.

        Raises:
            NotFound: it has been.
        """
        if self.deleted:
            raise no_model(self.info.model_id)
        self._commits += 1
        try:
            yield
        finally:
            self._commits -= 1
            if not self._commits:
                self._idle.ring()

    @property
    def busy(self) -> bool:
        """Whether something is being committed."""
        return self._commits > 0

    async def wait_idle(self) -> None:
        """Wait until nothing is being committed."""
        while self._commits:
            await self._idle.wait()


def no_model(model_id: str) -> NotFound:
    return NotFound(f'no model "{model_id}" found')
