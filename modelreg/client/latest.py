"""A model's latest iteration, kept at hand by a background task."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import anyio

from modelreg.client.background import FORKED, Background
from modelreg.client.errors import DeadlineExceeded, Denied, Refused, RegistryError, Unavailable
from modelreg.client.infos import ModelIterationInfo
from modelreg.client.logs import logger
from modelreg.client.retry import Backoff
from modelreg.client.workers import in_thread


class TrackedModel:
    """A model that is tracked, for all that asked for it.

    Arguments:
        name: of the model.
        deserialize: makes the value of the data; None leaves the data as it is.
        background: where `run` runs.
        updates: follows the model.
        fetch: gives the data of the newest iteration, None where there is none.
    """

    def __init__(
        self,
        name: str,
        deserialize: Callable[[bytes], Any] | None,
        background: Background,
        *,
        updates: Callable[[str], AsyncIterable[ModelIterationInfo]],
        fetch: Callable[[str], Awaitable[tuple[bytes, ModelIterationInfo] | None]],
    ) -> None:
        self.name = name
        self.deserialize = deserialize
        self.latest: tuple[Any, ModelIterationInfo] | None = None
        self.error: Exception | None = None
        """Why tracking has ended."""
        self._background = background
        self._updates = updates
        self._newest = fetch
        self._changed = anyio.Event()

    async def run(self) -> None:
        """Track it until that isn't possible any more."""
        try:
            async for info in self._updates(self.name):
                if (
                    self.latest is None
                    or info.iteration > self.latest[1].iteration
                    or info.timestamp > self.latest[1].timestamp
                ):
                    await self._fetch()
        except RegistryError as error:
            logger.warning("model %r isn't tracked any more: %s", self.name, error)
            self.error = error
        except Exception as error:  # noqa: BLE001  # `get` raises it
            logger.exception("model %r isn't tracked any more: please report this", self.name)
            self.error = error
        finally:
            self.error = self.error or RuntimeError(
                f"model {self.name!r} isn't tracked any more: the client was closed"
            )
            self._tell()

    async def _fetch(self) -> None:
        """Make the newest iteration there is now the latest one."""
        backoff = Backoff()
        while True:
            try:
                found = await self._newest(self.name)
                break
            except (Unavailable, DeadlineExceeded) as error:
                logger.info("the latest iteration of model %r can't be had yet: %s", self.name, error)
                await anyio.sleep(backoff.pause())
            except (Denied, Refused):
                raise  # of the next iteration, too
            except RegistryError as error:
                logger.warning("the latest iteration of model %r can't be had: %s", self.name, error)
                return
        if found is None:
            return  # gone already: another one is to come
        data, info = found
        if self.latest is not None and info == self.latest[1]:
            return
        value: Any = data
        if self.deserialize is not None:
            try:
                value = await in_thread(self.deserialize, data)
            except Exception:  # noqa: BLE001  # the caller's function
                logger.exception("iteration %d of model %r can't be deserialized", info.iteration, self.name)
                return
        self.latest = value, info
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def check(self) -> None:
        """Raise what has ended the tracking, if it has ended: the latest iteration known here may not be the latest."""
        if self._background.forked:
            raise RuntimeError(FORKED)
        if self.error is not None:
            raise self.error.with_traceback(None)  # which would grow with each time that it's raised

    async def wait(self, newer_than: int) -> None:
        """Until an iteration with a higher number is the latest. Raises what has ended the tracking."""
        self._background.check()
        self.check()
        while self.latest is None or self.latest[1].iteration <= newer_than:
            await self._changed.wait()
            self.check()


class LatestModel:
    """The latest iteration of a model that is available here, from `ModelRegistry.track_latest_model`.

    Tracking goes on through restarts and lost connections. It ends when the registry says that it's over (the model was
    deleted, the token isn't valid any more) and with the client. From then on all methods raise the error that ended it,
    as the iteration that was the latest may be old. The same model can be tracked anew.

    Attributes:
        name: of the model.
    """

    def __init__(self, tracked: TrackedModel) -> None:
        self._tracked = tracked
        self.name = tracked.name

    async def get(self) -> tuple[Any, ModelIterationInfo]:
        """The latest iteration's data, and what is known of it. Waits for the first one only.

        Raises:
            RegistryError: the model isn't tracked any more.
        """
        await self.wait_for_available()
        assert self._tracked.latest is not None
        return self._tracked.latest

    def now(self) -> tuple[Any, ModelIterationInfo] | None:
        """What `get` would give, None where it would wait. May be asked from any thread. Raises as `get`."""
        self._tracked.check()
        return self._tracked.latest

    def is_deserialized(self) -> bool:
        """Whether the data is what `deserialize_func` made of the bytes."""
        return self._tracked.deserialize is not None

    def is_available(self) -> bool:
        """Whether there is an iteration, so that `get` doesn't wait. Raises as `get`."""
        self._tracked.check()
        return self._tracked.latest is not None

    async def wait_for_available(self) -> None:
        """Wait for the first iteration. Raises as `get`."""
        await self._tracked.wait(-1)

    async def wait_for_newer(self, iteration: int) -> None:
        """Wait for an iteration with a higher number than this. Raises as `get`."""
        await self._tracked.wait(iteration)
