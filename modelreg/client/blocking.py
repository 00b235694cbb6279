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
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
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


class _Loop:
    """An event loop in a thread of its own. It doesn't keep a program from ending."""

    def __init__(self, backend: str) -> None:
        self._pid = os.getpid()
        self._started: Future[anyio.from_thread.BlockingPortal] = Future()
        self._thread = threading.Thread(target=self._run, args=(backend,), name="modelreg client", daemon=True)
        self._thread.start()
        self._portal = self._started.result()

    def _run(self, backend: str) -> None:
        try:
            anyio.run(self._serve, backend=backend)
        except BaseException as error:  # noqa: BLE001  # to be raised by whoever waits for the start
            if not self._started.done():
                self._started.set_exception(error)

    async def _serve(self) -> None:
        async with anyio.from_thread.BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()

    def call(self, function: Callable[..., Awaitable[T]], *args: object, **options: object) -> T:
        """Run a coroutine function there, and wait for what it returns. Interrupted (Ctrl-C), it's cancelled."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this client was made before a fork, and its thread isn't here: make a Context in each process"
            )
        future = self._portal.start_task_soon(partial(function, *args, **options))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End it."""
        if os.getpid() == self._pid and self._thread.is_alive():
            self._portal.start_task_soon(self._portal.stop, True)
            self._thread.join()


class Context:
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
        """Close all registries that came from here, and end the thread."""
        self._loop.call(self._context.close)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ModelRegistry:
    """Stores and retrieves models; see `modelreg.client.ModelRegistry`. From `Context.get_model_registry_v2`."""

    def __init__(self, loop: _Loop, registry: _registry.ModelRegistry) -> None:
        self._loop = loop
        self._registry = registry

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end the tracking of models."""
        self._loop.call(self._registry.close)

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


class IterationUpdates:
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
        self._loop.call(self._updates.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


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
