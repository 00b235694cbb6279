"""The client for programs without an event loop: scripts and training loops.

    import modelreg.client.blocking as cogment

    with cogment.Context(user_id="trainer") as context:
        registry = context.get_model_registry_v2(cogment.Endpoint("grpc://localhost:9002"))
        info = registry.store_model("policy", weights)

Every class and method is the twin of one in `modelreg.client`, with the same arguments, results and exceptions; each call
returns when it's done. Any number of threads may use the same objects. A context runs an event loop in a thread of its own;
progress callbacks are called there, so they mustn't call the client.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeVar

import anyio
import anyio.from_thread
from typing_extensions import Buffer, Self

from modelreg.client import context as _context
from modelreg.client import latest as _latest
from modelreg.client import registry as _registry
from modelreg.client import updates as _updates
from modelreg.client.background import FORKED, call_soon
from modelreg.client.cache import Cache
from modelreg.client.endpoint import DISCOVER, Endpoint
from modelreg.client.errors import (
    Damaged,
    DeadlineExceeded,
    Denied,
    Exhausted,
    Failed,
    NotFound,
    OutcomeUnknown,
    Refused,
    RegistryError,
    Unavailable,
)
from modelreg.client.infos import ModelInfo, ModelIterationInfo
from modelreg.client.logs import make_logger
from modelreg.client.properties import Properties
from modelreg.client.retry import Patience
from modelreg.client.sources import Model
from modelreg.client.transport.connection import Timing
from modelreg.client.upload import Progress
from modelreg.client.workers import is_late

__all__ = [
    "Cache",
    "Context",
    "Damaged",
    "DeadlineExceeded",
    "Denied",
    "Endpoint",
    "Exhausted",
    "Failed",
    "IterationUpdates",
    "LatestModel",
    "ModelInfo",
    "ModelIterationInfo",
    "ModelRegistry",
    "NotFound",
    "OutcomeUnknown",
    "Patience",
    "Refused",
    "RegistryError",
    "Timing",
    "Unavailable",
    "make_logger",
]

T = TypeVar("T")


_CLOSED = "the client has been closed: make another Context"


class _Loop:
    """An event loop in a thread of its own. It ends when it's closed or forgotten, and doesn't keep a program from ending.

    The thread doesn't refer to this object.
    """

    def __init__(self, backend: str) -> None:
        self._pid = os.getpid()
        started: Future[tuple[anyio.from_thread.BlockingPortal, Callable[[], None]]] = Future()
        self._thread = threading.Thread(target=_run, args=(backend, started), name="modelreg client", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            if not is_late(error):
                raise
            raise RuntimeError(
                "a Context can't be made any more, as Python starts no threads while the program ends: make it earlier"
            ) from error
        self._portal, end = started.result()
        self._end = weakref.finalize(self, end)
        self._end.atexit = False  # functions of `atexit` may use it
        self._starting = threading.RLock()  # held while a call is begun, and while it's decided that none is any more
        self._closed = False

    def call(self, function: Callable[..., Awaitable[T]], *args: object, **options: object) -> T:
        """Run a coroutine function there, and wait for what it returns. Interrupted (Ctrl-C), it's cancelled."""
        self._check()
        with self._starting:
            if self._closed:
                raise Unavailable(_CLOSED)
            future = self._portal.start_task_soon(partial(function, *args, **options))
        try:
            return future.result()
        except CancelledError:  # by `close`
            raise Unavailable(_CLOSED) from None
        except BaseException:
            future.cancel()
            raise

    def close(self, function: Callable[[], Awaitable[None]]) -> None:
        """Call a function there for the last time, and end it. Done before, it does nothing."""
        self._check()
        with self._starting:
            if not self._closed:
                last = self._portal.start_task_soon(function)
                self._closed = True
                last.result()
        self._end()
        self._thread.join()

    def close_part(self, function: Callable[[], Awaitable[None]]) -> None:
        """Call a function that closes something there, which has been done where all of it is closed."""
        self._check()
        if not self._closed:
            try:
                self.call(function)
            except Unavailable:
                if not self._closed:
                    raise

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one that has the thread."""
        return os.getpid() != self._pid

    def _check(self) -> None:
        if self.forked:
            raise RuntimeError(FORKED)
        if threading.current_thread() is self._thread:
            raise RuntimeError("this is the client's own thread: progress callbacks can't call the client")


def _run(backend: str, started: Future[tuple[anyio.from_thread.BlockingPortal, Callable[[], None]]]) -> None:
    async def main() -> None:
        ended = anyio.Event()
        async with anyio.from_thread.BlockingPortal() as portal:
            started.set_result((portal, call_soon(ended.set)))
            await ended.wait()
            await portal.stop(cancel_remaining=True)

    try:
        anyio.run(main, backend=backend)
    except BaseException as error:  # noqa: BLE001  # to be raised where the start is waited for
        if not started.done():
            started.set_exception(error)


class _Closing:
    """A context that closes an object of the client."""

    _loop: _Loop

    def close(self) -> None:
        """End it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or not self._loop.forked:  # a forked child that ends has nothing to close
            self.close()


class Context(_Closing):
    """Who calls, and which directory to ask; see `modelreg.client.Context`.

    Arguments:
        backend: the event loop that runs in the background, asyncio or trio.
    """

    served_port: None = None

    def __init__(
        self,
        user_id: str,
        cog_settings: object = None,
        prometheus_registry: object = None,
        directory_endpoint: Endpoint | None = None,
        directory_auth_token: str | None = None,
        *,
        backend: Literal["asyncio", "trio"] = "asyncio",
    ) -> None:
        self._context = _context.Context(
            user_id,
            cog_settings,
            None,
            prometheus_registry,
            directory_endpoint,
            directory_auth_token,
        )
        self.user_id = user_id
        self._loop = _Loop(backend)

    def has_specs(self) -> bool:
        """Whether `cog_settings` was given."""
        return self._context.has_specs()

    def get_model_registry_v2(
        self,
        endpoint: Endpoint = Endpoint(DISCOVER),  # noqa: B008  # as documented; never changed here
        *,
        timeout: float | None = None,
        patience: float | Patience = Patience(),  # noqa: B008
        cache: Cache | Literal[True] | None = None,
        timing: Timing = Timing(),  # noqa: B008
    ) -> ModelRegistry:
        """The registry at an endpoint."""
        get = partial(
            self._context.get_model_registry_v2, timeout=timeout, patience=patience, cache=cache, timing=timing
        )
        return ModelRegistry(self._loop, self._loop.call(get, endpoint))

    def close(self) -> None:
        """Close all registries that came from here, and end the thread. Calls that still run end with `Unavailable`.

        A context that is forgotten is closed, too, as soon as none of its registries is in use.
        """
        self._loop.close(self._context.close)


class ModelRegistry(_Closing):
    """Stores and retrieves models; see `modelreg.client.ModelRegistry`. From `Context.get_model_registry_v2`."""

    def __init__(self, loop: _Loop, registry: _registry.ModelRegistry) -> None:
        self._loop = loop
        self._registry = registry

    def close(self) -> None:
        """Close the connections, and end the tracking of models."""
        self._loop.close_part(self._registry.close)

    def has_specs(self) -> bool:
        """Always True."""
        return self._registry.has_specs()

    def store_model(
        self,
        name: str,
        model: Model,
        iteration_properties: Properties | None = None,
        *,
        size: int | None = None,
        sha256: bytes | None = None,
        progress: Progress | None = None,
        hashing: Progress | None = None,
        timeout: float | None = None,
    ) -> ModelIterationInfo:
        """Publish a model, and keep it until it's removed."""
        options = {"size": size, "sha256": sha256, "progress": progress, "hashing": hashing, "timeout": timeout}
        return self._loop.call(self._registry.store_model, name, model, iteration_properties, **options)

    def publish_model(
        self,
        name: str,
        model: Model,
        iteration_properties: Properties | None = None,
        *,
        size: int | None = None,
        sha256: bytes | None = None,
        progress: Progress | None = None,
        hashing: Progress | None = None,
        timeout: float | None = None,
    ) -> ModelIterationInfo:
        """Send a model to others, for as long as the registry has room for it."""
        options = {"size": size, "sha256": sha256, "progress": progress, "hashing": hashing, "timeout": timeout}
        return self._loop.call(self._registry.publish_model, name, model, iteration_properties, **options)

    def retrieve_model(
        self, name: str, iteration: int = -1, *, progress: Progress | None = None, timeout: float | None = None
    ) -> bytes | None:
        """The data of an iteration, -1 for the latest; None when it isn't available."""
        return self._loop.call(self._registry.retrieve_model, name, iteration, progress=progress, timeout=timeout)

    def download_model(
        self,
        name: str,
        into: os.PathLike[str] | Buffer,
        iteration: int = -1,
        *,
        overwrite: bool = True,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> ModelIterationInfo | None:
        """The data of an iteration, into a file or a buffer; None when it isn't available."""
        download: Callable[..., Awaitable[ModelIterationInfo | None]] = self._registry.download_model
        options = {"overwrite": overwrite, "progress": progress, "timeout": timeout}
        return self._loop.call(download, name, into, iteration, **options)

    def remove_model(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a model name with all its iterations."""
        self._loop.call(self._registry.remove_model, name, timeout=timeout)

    def list_models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """All models."""
        return self._loop.call(self._registry.list_models, timeout=timeout)

    def list_iterations(self, model_name: str, *, timeout: float | None = None) -> list[ModelIterationInfo]:
        """All iterations of a model that are available."""
        return self._loop.call(self._registry.list_iterations, model_name, timeout=timeout)

    def get_iteration_info(
        self, name: str, iteration: int, *, timeout: float | None = None
    ) -> ModelIterationInfo | None:
        """What is known of an iteration, -1 for the latest; None when it isn't available."""
        return self._loop.call(self._registry.get_iteration_info, name, iteration, timeout=timeout)

    def update_model_info(self, name: str, properties: Properties, *, timeout: float | None = None) -> None:
        """Set the properties of a model name."""
        self._loop.call(self._registry.update_model_info, name, properties, timeout=timeout)

    def get_model_info(self, name: str, *, timeout: float | None = None) -> ModelInfo | None:
        """What is known of a model name; None when there is none."""
        return self._loop.call(self._registry.get_model_info, name, timeout=timeout)

    def iteration_updates(
        self, model_name: str, *, after: int | None = None, timeout: float | None = None
    ) -> IterationUpdates:
        """The latest iteration at once, then each that becomes available, to be had with ``for``."""

        async def begin() -> _updates.IterationUpdates:
            return self._registry.iteration_updates(model_name, after=after, timeout=timeout)

        return IterationUpdates(self._loop, self._loop.call(begin))

    def track_latest_model(
        self, name: str, deserialize_func: Callable[[bytes], Any] | None = None, initial_wait: float = 0
    ) -> LatestModel:
        """Follow a model in the background, and have its latest iteration at hand."""
        return LatestModel(
            self._loop, self._loop.call(self._registry.track_latest_model, name, deserialize_func, initial_wait)
        )

    def wait_for_model(self, name: str, seconds: float) -> None:
        """Wait until a model name exists."""
        self._loop.call(self._registry.wait_for_model, name, seconds)

    def status(self, *names: str, timeout: float | None = None) -> dict[str, str]:
        """What the registry says of itself under these names."""
        return self._loop.call(self._registry.status, *names, timeout=timeout)

    def versions(self, *, timeout: float | None = None) -> dict[str, str]:
        """The versions of the registry and of its parts."""
        return self._loop.call(self._registry.versions, timeout=timeout)


class IterationUpdates(_Closing):
    """An iterator over `ModelIterationInfo`, for one thread at a time. A context, which ends it."""

    def __init__(self, loop: _Loop, updates: _updates.IterationUpdates) -> None:
        self._loop = loop
        self._updates = updates

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ModelIterationInfo:
        """The next iteration, as soon as there is one."""
        return self._loop.call(self._updates.__anext__)

    def close(self) -> None:
        """End it. One that isn't closed ends with its registry."""
        self._loop.close_part(self._updates.aclose)


class LatestModel:
    """The latest iteration of a model; see `modelreg.client.LatestModel`.

    Attributes:
        name: of the model.
    """

    def __init__(self, loop: _Loop, latest: _latest.LatestModel) -> None:
        self._loop = loop
        self._latest = latest
        self.name = latest.name

    def get(self) -> tuple[Any, ModelIterationInfo]:
        """The latest iteration's data, and what is known of it. Waits for the first one only."""
        return self._latest.now() or self._loop.call(self._latest.get)

    def is_deserialized(self) -> bool:
        """Whether the data is what `deserialize_func` made of the bytes."""
        return self._latest.is_deserialized()

    def is_available(self) -> bool:
        """Whether there is an iteration, so that `get` doesn't wait."""
        return self._latest.is_available()

    def wait_for_available(self) -> None:
        """Wait for the first iteration."""
        self._loop.call(self._latest.wait_for_available)

    def wait_for_newer(self, iteration: int) -> None:
        """Wait for an iteration with a higher number than this."""
        self._loop.call(self._latest.wait_for_newer, iteration)
