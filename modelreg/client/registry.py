"""The model registry, as a program sees it."""

from __future__ import annotations

import inspect
import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, overload

import anyio
from typing_extensions import Buffer, Self

from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.client.advice import named
from modelreg.client.background import Background, BackgroundTask
from modelreg.client.cache import Cache
from modelreg.client.download import Download
from modelreg.client.errors import NotFound
from modelreg.client.infos import ModelInfo, ModelIterationInfo
from modelreg.client.latest import LatestModel, TrackedModel
from modelreg.client.lists import Pages
from modelreg.client.properties import Properties, as_text
from modelreg.client.retry import Backoff
from modelreg.client.rpc import Rpc, translated
from modelreg.client.sources import Model, flat, opened
from modelreg.client.targets import BytesTarget, FileTarget, MemoryTarget, Target
from modelreg.client.transport.channel import deadline
from modelreg.client.transport.status import CallFailed
from modelreg.client.updates import IterationUpdates
from modelreg.client.upload import Progress, Upload
from modelreg.grpc.status import Code

SHA256_BYTES = 32

LONGEST_LOOK = 1.0
"""Seconds between two looks whether a model that is waited for is there."""


class ModelRegistry:
    """Stores and retrieves models. From `Context.get_model_registry_v2`.

    A context: leaving it closes its connections and ends its tracking. Without that they end with the event loop.

    Methods raise `modelreg.client.RegistryError` of a kind that says what to do next; `timeout` is in seconds, None for what the registry was
    made with. Calls that find nobody are tried again for the registry's `patience`. Calls on another event loop or in a forked child process
    raise `RuntimeError`.

    Attributes:
        closed: whether it was closed.
    """

    def __init__(self, rpc: Rpc, background: Background, cache: Cache | None) -> None:
        self._rpc = rpc
        self._background = background
        self._cache = cache
        self._known: set[str] = set()  # names that exist, or did
        self._tracked: dict[str, tuple[TrackedModel, BackgroundTask]] = {}
        self.closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, and end the tracking of models."""
        self._background.check()
        self.closed = True
        for _, task in self._tracked.values():
            task.cancel()
        self._rpc.channel.close()
        await self._background.close()

    def has_specs(self) -> bool:
        """Always True, as the registry doesn't rely on trial specs."""
        return True

    # Sending

    async def store_model(
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
        """Publish a model, and keep it until it's removed. A name that isn't known yet is created.

        Arguments:
            name: the model name.
            model: the data: bytes-like; a path; a binary file; or an iterable, sync or async, of pieces.
            iteration_properties: custom information about this iteration. Numbers are written as text, True and False as true and false.
            size: in bytes; needed for pieces, and for files that can't seek.
            sha256: the data's hash, where it's known already: computing it takes about as long as sending. The registry
                refuses data of another one.
            progress: told how many bytes of how many are on their way.
            hashing: told how many bytes of how many are hashed, before any is on its way.
            timeout: in seconds, for all of it.

        Raises:
            OutcomeUnknown: the connection was lost at the end, and the registry isn't one that remembers requests.
            Exhausted: there is no room for it, or it's larger than the registry takes.
            TypeError, ValueError: of the model, or of a property, which the message names.
            OSError: a file can't be read, or was changed while it was read.
        """
        return await self._send(name, model, iteration_properties, True, size, sha256, progress, hashing, timeout)

    async def publish_model(
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
        """Send a model to others, for as long as the registry has room for it. As `store_model` otherwise."""
        return await self._send(name, model, iteration_properties, False, size, sha256, progress, hashing, timeout)

    async def _send(
        self,
        name: str,
        model: Model,
        properties: Properties | None,
        stored: bool,
        size: int | None,
        sha256: bytes | None,
        progress: Progress | None,
        hashing: Progress | None,
        timeout: float | None,
    ) -> ModelIterationInfo:
        if sha256 is not None and len(sha256) != SHA256_BYTES:
            raise ValueError(f"a SHA-256 has {SHA256_BYTES} bytes, and the one given has {len(sha256)}")
        texts = as_text(properties or {})
        self._background.check()
        timeout = self._rpc.limit(timeout)
        with translated(), deadline(timeout):
            async with opened(model, size) as source:
                upload = Upload(self._rpc, name, source, stored, texts, progress, hashing, timeout, sha256)
                await upload.prepare()
                if name not in self._known:
                    await self._find_model_or_create_it(name)
                try:
                    info = await upload.run()
                except CallFailed as failure:
                    self._known.discard(name)
                    if failure.code != Code.NOT_FOUND or not source.repeatable:
                        raise
                    await self.update_model_info(name, {})  # another program has removed it
                    info = await upload.run()
                self._known.add(name)
                return info

    async def _find_model_or_create_it(self, name: str) -> None:
        """Make sure that an upload finds its model. modelreg creates it together with its first version."""
        if await self.get_model_info(name) is None and not await self._rpc.is_modelreg():
            await self.update_model_info(name, {})

    # Retrieving

    async def retrieve_model(
        self, name: str, iteration: int = -1, *, progress: Progress | None = None, timeout: float | None = None
    ) -> bytes | None:
        """The data of an iteration, -1 for the latest. None when that isn't available, or with -1 none is.

        Raises:
            NotFound: there is no such model.
            Damaged: it isn't what was stored, by its hash.
        """
        with translated(), deadline(self._rpc.limit(timeout)):
            found = await self._retrieve(name, iteration, progress, timeout)
        return None if found is None else found[0]

    async def _retrieve_latest(self, name: str) -> tuple[bytes, ModelIterationInfo] | None:
        return await self._retrieve(name, -1, None, None)

    async def _retrieve(
        self, name: str, iteration: int, progress: Progress | None, timeout: float | None
    ) -> tuple[bytes, ModelIterationInfo] | None:
        target: BytesTarget | None = None

        def make(info: ModelIterationInfo) -> Target:
            nonlocal target
            target = BytesTarget(info.size)
            return target

        info = await self._fetch(name, iteration, make, progress, timeout)
        return None if info is None or target is None else (target.value(), info)

    @overload
    async def download_model(
        self,
        name: str,
        into: os.PathLike[str],
        iteration: int = -1,
        *,
        overwrite: bool = True,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> ModelIterationInfo | None: ...

    @overload
    async def download_model(
        self,
        name: str,
        into: Buffer,
        iteration: int = -1,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> ModelIterationInfo | None: ...

    async def download_model(
        self,
        name: str,
        into: os.PathLike[str] | Buffer,
        iteration: int = -1,
        *,
        overwrite: bool = True,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> ModelIterationInfo | None:
        """The data of an iteration, into a file or a buffer. None when it isn't available.

        A file appears whole and verified, or not at all. A buffer has to be writable and large enough; what is in it after an
        exception is undefined.

        Raises:
            NotFound: there is no such model.
            Damaged: it isn't what was stored, by its hash.
            FileExistsError: there is such a file, and `overwrite` is False.
            ValueError: the buffer is too small, or its memory isn't plain data.
            TypeError: it's neither a path nor a writable buffer.
        """
        if not isinstance(into, os.PathLike):
            view = _writable(into)
            with translated(), deadline(self._rpc.limit(timeout)):
                return await self._fetch(name, iteration, lambda info: _fitting(view, info), progress, timeout)
        if not overwrite and os.path.lexists(into):  # noqa: ASYNC240
            raise FileExistsError(f"{os.fspath(into)} is there already")
        with translated(), deadline(self._rpc.limit(timeout)):
            return await self._fetch_file(name, into, iteration, overwrite, progress, timeout)

    async def _fetch_file(
        self,
        name: str,
        into: os.PathLike[str],
        iteration: int,
        overwrite: bool,
        progress: Progress | None,
        timeout: float | None,
    ) -> ModelIterationInfo | None:
        with ExitStack() as stack:
            target: FileTarget | None = None

            def make(info: ModelIterationInfo) -> Target:
                nonlocal target
                target = stack.enter_context(FileTarget(into, info.size, overwrite=overwrite))
                return target

            info = await self._fetch(name, iteration, make, progress, timeout)
            if info is not None and target is not None:
                await target.commit()
            return info

    async def _fetch(
        self,
        name: str,
        iteration: int,
        make: Callable[[ModelIterationInfo], Target],
        progress: Progress | None,
        timeout: float | None,
    ) -> ModelIterationInfo | None:
        """Fill a target made for an iteration; the iteration it was, None when it isn't available."""
        tried: ModelIterationInfo | None = None
        while True:
            info = await self.get_iteration_info(name, iteration, timeout=timeout)
            if info is None or info == tried:
                return None
            if await self._fill(info, make(info), progress, timeout):
                return info
            tried = info  # it went meanwhile; where it was the newest, there may be another one

    async def _fill(
        self, info: ModelIterationInfo, target: Target, progress: Progress | None, timeout: float | None
    ) -> bool:
        """Fill a target with an iteration's data, from the cache or the registry. False when it isn't available any more."""
        timeout = self._rpc.limit(timeout)
        if self._cache is not None and await self._cache.fill(info, target):
            if progress is not None:
                progress(info.size, info.size)
            return True
        try:
            with translated():
                await Download(self._rpc, info, target, progress, timeout).run()
        except NotFound:
            return False
        if self._cache is not None:
            await self._cache.keep(info, target)
        return True

    # Models and iterations

    async def remove_model(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a model name with all its iterations.

        Raises:
            NotFound: there is no such model.
            OutcomeUnknown: the connection was lost, and it may have been deleted. The call isn't made again by itself, as it
                could delete what was stored meanwhile.
        """
        self._known.discard(name)
        await self._rpc.unary_once("DeleteModel", api.DeleteModelRequest(model_id=name), api.DeleteModelReply, timeout)

    async def list_models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """All models."""
        found: list[ModelInfo] = []
        pages, handle = Pages(), ""

        async def ask(count: int) -> api.RetrieveModelsReply:
            request = api.RetrieveModelsRequest(models_count=count, model_handle=handle)
            return await self._rpc.unary("RetrieveModels", request, api.RetrieveModelsReply, timeout)

        with translated(), deadline(self._rpc.limit(timeout)):
            while True:
                reply = await pages.get(ask)
                found += map(ModelInfo.of, reply.model_infos)
                if len(reply.model_infos) < pages.size:  # the handle is never empty
                    return found
                handle = reply.next_model_handle

    async def list_iterations(self, model_name: str, *, timeout: float | None = None) -> list[ModelIterationInfo]:
        """All iterations of a model that are available: the stored ones, and the transient ones that are left.

        Raises:
            NotFound: there is no such model.
        """
        found: list[ModelIterationInfo] = []
        pages, handle = Pages(), ""

        async def ask(count: int) -> api.RetrieveVersionInfosReply:
            request = api.RetrieveVersionInfosRequest(model_id=model_name, versions_count=count, version_handle=handle)
            return await self._rpc.unary("RetrieveVersionInfos", request, api.RetrieveVersionInfosReply, timeout)

        with translated(), deadline(self._rpc.limit(timeout)):
            while True:
                reply = await pages.get(ask)
                found += map(ModelIterationInfo.of, reply.version_infos)
                if len(reply.version_infos) < pages.size:
                    return found
                handle = reply.next_version_handle

    async def get_iteration_info(
        self, name: str, iteration: int, *, timeout: float | None = None
    ) -> ModelIterationInfo | None:
        """What is known of an iteration, -1 for the latest. None when that isn't available, or with -1 none is.

        Raises:
            NotFound: there is no such model.
        """
        request = api.RetrieveVersionInfosRequest(model_id=name, version_numbers=[iteration])
        try:
            reply = await self._rpc.unary("RetrieveVersionInfos", request, api.RetrieveVersionInfosReply, timeout)
        except NotFound:
            if await self.get_model_info(name, timeout=timeout) is None:
                raise
            return None
        return ModelIterationInfo.of(reply.version_infos[0]) if reply.version_infos else None

    async def update_model_info(self, name: str, properties: Properties, *, timeout: float | None = None) -> None:
        """Set the properties of a model name, in place of those it had. A name that isn't known yet is created."""
        request = api.CreateOrUpdateModelRequest(model_info=api.ModelInfo(model_id=name, user_data=as_text(properties)))
        await self._rpc.unary("CreateOrUpdateModel", request, api.CreateOrUpdateModelReply, timeout)

    async def get_model_info(self, name: str, *, timeout: float | None = None) -> ModelInfo | None:
        """What is known of a model name. None when there is none."""
        request = api.RetrieveModelsRequest(model_ids=[name])
        try:
            reply = await self._rpc.unary("RetrieveModels", request, api.RetrieveModelsReply, timeout)
        except NotFound:
            return None
        return ModelInfo.of(reply.model_infos[0]) if reply.model_infos else None

    # Following

    def iteration_updates(
        self, model_name: str, *, after: int | None = None, timeout: float | None = None
    ) -> IterationUpdates:
        """The latest iteration at once, then each that becomes available, to be had with ``async for``.

        It goes on through restarts of the registry, and leaves out no iteration that is available.

        Arguments:
            model_name: the model.
            after: begin with the iterations that are newer than this number, instead of the latest one.
            timeout: when to end it, in seconds from now; None for never, also where the registry was made with a timeout.

        Raises, while it's iterated:
            NotFound: there is no such model, or it has been removed.
            Unavailable: nobody answers, and nobody has before.
            DeadlineExceeded: the timeout is over.
        """
        return IterationUpdates(self._rpc, model_name, after, timeout, background=self._background)

    async def track_latest_model(
        self, name: str, deserialize_func: Callable[[bytes], Any] | None = None, initial_wait: float = 0
    ) -> LatestModel:
        """Follow a model in the background, and have its latest iteration at hand.

        Calls for the same model share one task, and one object. For one event loop only.

        Arguments:
            name: the model.
            deserialize_func: makes of the bytes what `LatestModel.get` gives; called in a worker thread.
            initial_wait: how long to wait for the model name to exist, in seconds.

        Raises:
            NotFound: the model name didn't exist in time.
            ValueError: the function doesn't take one argument, or isn't that of an earlier call for the model.
        """
        self._background.check()
        if deserialize_func is not None:
            _check_takes_one(deserialize_func)
        if name not in self._tracked or self._tracked[name][1].ended:
            await self.wait_for_model(name, initial_wait)
        if name not in self._tracked or self._tracked[name][1].ended:  # nobody else was faster
            tracked = TrackedModel(
                name,
                deserialize_func,
                self._background,
                updates=self.iteration_updates,
                fetch=self._retrieve_latest,
            )
            self._tracked[name] = tracked, self._background.spawn(tracked.run, f"modelreg tracks {name}")
        tracked = self._tracked[name][0]
        if deserialize_func is not None and tracked.deserialize != deserialize_func:
            raise ValueError(f"model {name!r} is tracked already, with another deserialize_func")
        return LatestModel(tracked)

    async def wait_for_model(self, name: str, seconds: float) -> None:
        """Wait until a model name exists. Raises `NotFound` when it doesn't within so many seconds."""
        backoff = Backoff(longest=LONGEST_LOOK)
        until = anyio.current_time() + seconds
        while await self.get_model_info(name) is None:
            left = until - anyio.current_time()
            if left <= 0:
                waited = f" after {seconds:g} s" if seconds else ""
                raise NotFound(f"there is no model {name!r}{waited}: store or publish it, or wait longer")
            await anyio.sleep(min(left, backoff.pause()))

    # The registry itself

    async def status(self, *names: str, timeout: float | None = None) -> dict[str, str]:
        """What the registry says of itself under these names; ``*`` for all the usual ones."""
        request = common_pb2.StatusRequest(names=names)
        return dict((await self._rpc.unary("Status", request, common_pb2.StatusReply, timeout)).statuses)

    async def versions(self, *, timeout: float | None = None) -> dict[str, str]:
        """The versions of the registry and of its parts."""
        reply = await self._rpc.unary("Version", common_pb2.VersionRequest(), common_pb2.VersionInfo, timeout)
        return {version.name: version.version for version in reply.versions}


def _writable(into: Buffer) -> memoryview:
    """The bytes of a buffer to download into."""
    if isinstance(into, str):
        raise TypeError("a model can't be downloaded into a text: for the name of a file, give a pathlib.Path")
    if hasattr(into, "write") and not isinstance(into, mmap.mmap):
        raise TypeError("a model can't be downloaded into an open file: give the file's pathlib.Path")
    try:
        view = memoryview(into)
    except TypeError:
        raise TypeError(
            f"a model can't be downloaded into {named(into)}: give a pathlib.Path or a writable buffer, like a bytearray"
        ) from None
    if view.readonly:
        raise TypeError("the buffer to download into has to be writable")
    return flat(view)


def _fitting(view: memoryview, info: ModelIterationInfo) -> MemoryTarget:
    if len(view) < info.size:
        raise ValueError(f"the buffer has {len(view)} bytes, and iteration {info.iteration} has {info.size}")
    return MemoryTarget(view, info.size)


def _check_takes_one(function: Callable[[bytes], Any]) -> None:
    try:
        inspect.signature(function).bind(b"")
    except TypeError:
        raise ValueError("deserialize_func has to take one argument, the bytes") from None
    except ValueError:
        pass  # builtins that don't say
