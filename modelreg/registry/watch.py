"""Who waits for new versions of a model.

A watcher has no queue: it remembers the number it was at, and looks up in the index what comes after it. However slowly
it reads, it costs nothing and holds up nobody.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable

import trio

from modelreg.errors import Unavailable
from modelreg.registry.model import Model, no_model
from modelreg.registry.records import VersionInfo


class Watches:
    """The watches of a registry.

    Attributes:
        running: how many there are.
        stopped: whether they end, and new ones, too, as the registry is about to close. Whoever sets it rings the
            models' bells.
    """

    def __init__(self) -> None:
        self.running = 0
        self.stopped = False

    async def follow(
        self, model: Model, is_there: Callable[[], bool], silence: float
    ) -> AsyncGenerator[VersionInfo | None, None]:
        """The newest version at once, if there is one, then each newer one, in order, as they become available.

        None where there was nothing for *silence* seconds.

        Raises:
            NotFound: *is_there* says that the model has been deleted.
            Unavailable: the registry stops.
        """
        version = model.versions.newest
        seen = 0
        self.running += 1
        try:
            while True:
                if self.stopped:
                    raise Unavailable("the registry is stopping")
                if not is_there():
                    raise no_model(model.info.model_id)
                if version is not None:
                    seen = version.number
                    yield version
                elif silence == math.inf:  # a cancel scope costs 5 us, of the 15 that a watch takes for a version
                    await model.changed.wait()
                else:
                    with trio.move_on_after(silence) as waiting:
                        await model.changed.wait()
                    if waiting.cancelled_caught:
                        yield None
                version = model.versions.after(seen)
        finally:
            self.running -= 1
