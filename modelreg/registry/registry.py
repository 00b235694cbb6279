"""The registry: what the calls do, in the domain's terms."""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from weakref import WeakValueDictionary

import attrs
import trio

from modelreg.errors import InvalidArgument, ModelregError, NotFound, ResourceExhausted
from modelreg.log import LineQuota, Logger, silent_logger
from modelreg.registry.index import WALK, VersionIndex
from modelreg.registry.model import Model, no_model
from modelreg.registry.numbers import VersionNumbers
from modelreg.registry.records import ModelInfo, UploadHeader, VersionInfo, check_model_id
from modelreg.registry.requests import REMEMBERED, RequestMemory
from modelreg.registry.transfer import Upload, VersionReader, open_blob
from modelreg.registry.user_data import UserDataLimits, memory_of
from modelreg.registry.watch import Watches
from modelreg.storage.archive import Archive, Incoming
from modelreg.storage.recovery import FoundModel
from modelreg.storage.transient import TransientIncoming, TransientStore

# How long writing back the number ceilings may take when the registry closes, in seconds.
CLOSING_SECONDS = 10

EVICTED = "evicted a version to make room for another model"
EVICTED_NEWEST = (
    "evicted the newest version of a model to make room for another model, as nothing else was left: "
    "raise --cache_max_items or --cache_max_bytes"
)

TransientKey = tuple[str, int]


@attrs.frozen(kw_only=True)
class Statistics:
    """The registry at one moment."""

    models: int
    # Available ones, stored and transient.
    versions: int
    # On disk, each content once.
    stored_bytes: int
    # In memory.
    transient_bytes: int
    # Transient versions that had to go for versions of other models, since the start.
    evicted: int
    # Running watches.
    watchers: int
    # How often stored data was found damaged since the start.
    damage_found: int
    # Stored contents that are known to be damaged, and haven't been healed or deleted.
    damaged: int


class Registry:
    """Models and their versions; made by :func:`open_registry` only.

    Every method raises InvalidArgument for what isn't a model id, NotFound for a model or version that isn't there,
    and, where it writes, ResourceExhausted, StorageFailed or Unavailable as :class:`~modelreg.storage.threads.Threads`
    does.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        cache_max_items: int,
        cache_max_items_per_model: int = 0,
        cache_max_bytes: int,
        max_version_bytes: int,
        user_data_limits: UserDataLimits,
        clock: Callable[[], int],
        logger: Logger,
        quota: LineQuota,
    ) -> None:
        self._archive = archive
        self._clock = clock
        self._max_version_bytes = max_version_bytes
        self._user_data_limits = user_data_limits
        # Bytes of user data in uploads to the archive that are under way.
        self._arriving = 0
        self._watches = Watches()
        self._transient: TransientStore[TransientKey] = TransientStore(
            archive,
            max_items=cache_max_items,
            max_items_of_a_model=cache_max_items_per_model,
            max_bytes=cache_max_bytes,
            evicted=self._forget_evicted,
        )
        self._evicted = 0
        self._logger = logger
        self._quota = quota
        self._models: dict[str, Model] = {}
        for found in archive.found:
            self._models[found.record.model_id] = _restored(found)
        self._model_ids = sorted(self._models)
        # Held while a model is created, changed or deleted.
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    # Models

    async def create_or_update_model(self, model_id: str, user_data: Mapping[str, str]) -> bool:
        """Create a model, or replace the user data of one. Return whether it was created."""
        check_model_id(model_id)
        info = ModelInfo(model_id=model_id, user_data=self._user_data_limits.checked(user_data))
        async with self._lock(model_id):
            model = known = self._models.get(model_id)
            if model is None:
                model = await self._create(info)
            elif model.info != info:
                async with model.record:
                    await self._archive.write_model(
                        attrs.evolve(model.to_record(model.numbers.ceiling), user_data=info.user_data)
                    )
                    model.info = info
        return model is not known

    async def _create(self, info: ModelInfo) -> Model:
        """Create a model that isn't there; its lock is held."""
        model = Model(info, VersionIndex(), VersionNumbers(0, 0), RequestMemory())
        await self._archive.write_model(model.to_record(0))
        self._models[info.model_id] = model
        insort(self._model_ids, info.model_id)
        return model

    async def delete_model(self, model_id: str) -> int:
        """Delete a model. Return how many versions it had.

        Those who read one of them still can, and those who follow the model are told.
        """
        async with self._lock(model_id):
            model = self._model(model_id)
            with trio.CancelScope(shield=True):  # half a deletion is none
                await self._delete(model)
        return len(model.versions)

    async def _delete(self, model: Model) -> None:
        model_id = model.info.model_id
        model.deleted = True
        await model.wait_idle()
        try:
            async with model.record:
                await self._archive.delete_model(model_id)
        except ModelregError:
            model.deleted = False
            raise
        del self._models[model_id]
        del self._model_ids[bisect_left(self._model_ids, model_id)]
        for version in model.versions:
            if version.stored:
                self._archive.blobs.release(version.digest, version.size)
            else:
                self._transient.remove((model_id, version.number))
        model.changed.ring()
        await self._archive.blobs.collect()

    def models(self, *, offset: int = 0) -> Iterator[ModelInfo]:
        """The models from the *offset*-th on, by id. Models may come and go meanwhile: it skips none that stays."""
        while model_ids := self._model_ids[offset : offset + WALK]:
            yield from [self._models[model_id].info for model_id in model_ids]
            offset = bisect_right(self._model_ids, model_ids[-1])

    def model(self, model_id: str) -> ModelInfo:
        """A model."""
        return self._model(model_id).info

    # Versions

    def versions(self, model_id: str, *, first: int = 0) -> Iterator[VersionInfo]:
        """A model's available versions from number *first* on, by number; see :meth:`VersionIndex.walk`."""
        return self._model(model_id).versions.walk(first)

    def versions_by_number(self, model_id: str, numbers: Iterable[int]) -> list[VersionInfo]:
        """Versions of a model in the order in which they're asked for; each as :meth:`version` finds it."""
        model = self._model(model_id)
        return [self._version(model, number) for number in numbers]

    def version(self, model_id: str, number: int) -> VersionInfo:
        """Version *number* of a model; if that's negative, the n-th to last of those available now."""
        return self._version(self._model(model_id), number)

    def committed(self, header: UploadHeader) -> VersionInfo | None:
        """The version that came of an upload's request when it was sent before; None for one that's new, or has no id.

        Raises:
            InvalidArgument: the id was another upload's.
        """
        model = self._model_of(header)
        return None if model is None else _known(model, header)

    @asynccontextmanager
    async def upload(self, header: UploadHeader) -> AsyncIterator[Upload]:
        """A new version, to be written and committed within the context. Nothing is left of one that isn't committed.

        Raises:
            ResourceExhausted: it's larger than a version may be, or than there is room for.
        """
        model = self._model_of(header)
        if self._max_version_bytes and header.size > self._max_version_bytes:
            allowed = f"--max_version_bytes allows, which is {self._max_version_bytes}"
            msg = f"a version of {header.size} bytes is larger than {allowed}: make it smaller, or raise that option"
            raise ResourceExhausted(msg)
        if header.user_data:
            header = attrs.evolve(header, user_data=self._user_data_limits.checked(header.user_data))
        if header.stored:
            with self._holding(header):
                async with self._archive.incoming(header.size, header.digest) as storing:
                    store = partial(self._commit_stored, header, storing)
                    yield Upload(header, storing, partial(self._commit, model, header, store))
        else:
            try:
                beside = memory_of(header.user_data)
                async with self._transient.incoming(header.size, header.model_id, beside=beside) as caching:
                    cache = partial(self._commit_transient, header, caching)
                    yield Upload(header, caching, partial(self._commit, model, header, cache))
            finally:
                await self._archive.blobs.collect()  # what it made room for may have been a blob's last user

    @contextmanager
    def _holding(self, header: UploadHeader) -> Iterator[None]:
        """Account for the memory of a header while its upload is under way."""
        size = memory_of(header.user_data)
        if size and self._arriving and self._arriving + size > self._user_data_limits.arriving:
            msg = "uploads with much user data are under way, too many for another one: try again when they have ended"
            raise ResourceExhausted(msg)
        self._arriving += size
        try:
            yield
        finally:
            self._arriving -= size

    @asynccontextmanager
    async def read(self, model_id: str, number: int) -> AsyncIterator[VersionReader]:
        """The content of a version, whole for as long as the context lasts, whatever happens to the version meanwhile.

        Raises:
            DataLoss: the content is damaged or missing, as far as that shows before it is read.
        """
        version = self._version(self._model(model_id), number)
        blobs = self._archive.blobs
        content = None if version.stored else self._transient.use((model_id, version.number))
        try:
            if content is not None and (content.data is not None or content.fd is not None):
                yield VersionReader(version, data=content.data, fd=content.fd)
                return
            blobs.retain(version.digest, version.size)
            try:
                reader = await open_blob(version, self._archive)
                try:
                    yield reader
                finally:
                    reader.close()
            finally:
                blobs.release(version.digest, version.size)
        finally:
            if content is not None:
                self._transient.release(content)
            await blobs.collect()

    def watch(self, model_id: str, *, silence: float = math.inf) -> AsyncGenerator[VersionInfo | None, None]:
        """The newest version at once, if there is one, then each newer one, in order of their numbers, as they become
        available. None where there was nothing for *silence* seconds.

        What it returns raises, besides what all methods do, NotFound when the model is deleted, and Unavailable when
        the registry stops.
        """
        model = self._model(model_id)
        return self._watches.follow(model, lambda: model is self._models.get(model_id), silence)

    def stop_watches(self) -> None:
        """End every watch, now and from now on, as the registry is about to close."""
        self._watches.stopped = True
        for model in self._models.values():
            model.changed.ring()

    @property
    def damaged(self) -> frozenset[bytes]:
        """The SHA-256 of stored contents that are known to be damaged, and haven't been healed or deleted."""
        return frozenset(self._archive.blobs.damaged)

    def has_damaged_content(self, version: VersionInfo) -> bool:
        """Return whether a version can't be read, as far as that is known."""
        return version.digest in self._archive.blobs.damaged and (
            version.stored or self._transient.is_in_archive((version.model_id, version.number))
        )

    def is_damaged(self) -> bool:
        """Whether any stored content is known to be damaged, and hasn't been healed or deleted."""
        return bool(self._archive.blobs.damaged)

    @property
    def limits(self) -> dict[str, int]:
        """The most bytes that a version may have, by the option that says so; 0 for no limit. The second is for transient ones."""
        return {"max_version_bytes": self._max_version_bytes, "cache_max_bytes": self._transient.max_bytes}

    def statistics(self) -> Statistics:
        """A snapshot."""
        return Statistics(
            models=len(self._models),
            versions=sum(len(model.versions) for model in self._models.values()),
            stored_bytes=self._archive.blobs.bytes,
            transient_bytes=self._transient.in_memory,
            evicted=self._evicted,
            watchers=self._watches.running,
            damage_found=self._archive.blobs.damage_found,
            damaged=len(self._archive.blobs.damaged),
        )

    # Commits

    async def _commit(
        self, model: Model | None, header: UploadHeader, commit: Callable[[Model], Awaitable[VersionInfo]]
    ) -> tuple[VersionInfo, bool]:
        """Commit an upload. Return its version, and whether its model was created for it.

        Where it creates its model, that happens now, and is undone where the commit fails.
        """
        if not header.creates_model:
            assert model is not None, "only those that create it go without"
            return await _once(model, header, partial(commit, model)), False
        while True:
            with trio.CancelScope(shield=True):
                model, created = await self._existing_or_new(header.model_id)
                committed = False
                try:
                    version = await _once(model, header, partial(commit, model))
                    committed = True
                except NotFound:
                    if not model.deleted:
                        raise
                    continue  # deleted before its commit began, by a failed upload that had created it, for example
                finally:
                    if created and not committed:
                        await self._delete_unused(model)
            return version, created

    async def _existing_or_new(self, model_id: str) -> tuple[Model, bool]:
        """A model, and whether it was created for this."""
        async with self._lock(model_id):
            model = self._models.get(model_id)
            if model is not None:
                return model, False
            return await self._create(ModelInfo(model_id=model_id, user_data={})), True

    async def _delete_unused(self, model: Model) -> None:
        """Delete a model that was created for an upload, unless others have put something into it since."""
        async with self._lock(model.info.model_id):
            if not (model.deleted or model.busy or model.versions or model.info.user_data):
                with suppress(ModelregError):  # it's in the log
                    await self._delete(model)

    async def _commit_stored(self, header: UploadHeader, incoming: Incoming, model: Model) -> VersionInfo:
        blobs, digest = self._archive.blobs, incoming.digest
        with (
            trio.CancelScope(shield=True),
            model.commit(),
        ):  # as long as the disk takes: the result is a version, or none
            await blobs.retain_for_commit(digest, header.size)
            committed = False
            try:
                await self._archive.install_large(incoming)
                number = model.numbers.take()
                try:
                    version = self._describe(header, number, digest)
                    await self._archive.store_version(version.to_record(header.request_id), incoming)
                    await model.numbers.turn(number)
                    self._make_available(model, version)
                    committed = True
                finally:
                    # A failed sync of a directory leaves the outcome open: the next boot may find the sidecar.
                    model.numbers.settle(number, given=committed or self._archive.threads.failed.is_set())
            finally:
                if not committed:
                    blobs.release(digest, header.size)
                    await blobs.collect()
        return version

    async def _commit_transient(
        self, header: UploadHeader, incoming: TransientIncoming[TransientKey], model: Model
    ) -> VersionInfo:
        with trio.CancelScope(shield=True), model.commit():  # at most a small write, and those of lower numbers
            await self._reserve_number(model)
            number = model.numbers.take()
            committed = False
            try:
                await model.numbers.turn(number)
                version = self._describe(header, number, incoming.digest)
                self._demote_newest(model)  # if somebody has to make room now, it needn't be another model's newest
                self._transient.put((header.model_id, number), incoming)
                self._make_available(model, version)
                committed = True
            finally:
                model.numbers.settle(number, given=committed)
        return version

    async def _reserve_number(self, model: Model) -> None:
        """Make sure that the next number is one that no crash gives again."""
        while not model.numbers.reserved:
            async with model.record:
                if not model.numbers.reserved:
                    ceiling = model.numbers.next_ceiling()
                    await self._archive.write_model(model.to_record(ceiling))
                    model.numbers.ceiling = ceiling

    def _describe(self, header: UploadHeader, number: int, digest: bytes) -> VersionInfo:
        return VersionInfo(
            model_id=header.model_id,
            number=number,
            timestamp=self._clock() if header.timestamp is None else header.timestamp,
            stored=header.stored,
            digest=digest,
            size=header.size,
            user_data=header.user_data,
        )

    def _make_available(self, model: Model, version: VersionInfo) -> None:
        self._demote_newest(model)
        model.versions.add(version)
        model.changed.ring()

    def _demote_newest(self, model: Model) -> None:
        newest = model.versions.newest
        if newest is not None and not newest.stored:
            self._transient.demote((newest.model_id, newest.number))

    def _forget_evicted(self, key: TransientKey, needing: str) -> None:
        model_id, number = key
        versions = self._models[model_id].versions
        evicted = versions[number]
        newest = evicted is versions.newest
        versions.remove(number)
        if needing == model_id:
            return
        self._evicted += 1
        event = EVICTED_NEWEST if newest else EVICTED
        if self._quota.allows(event, model_id):
            log = self._logger.warning if newest else self._logger.info
            log(event, model=model_id, version=number, needing=needing)

    # Lookups

    def _model(self, model_id: str) -> Model:
        model = self._models.get(model_id)
        if model is None:
            check_model_id(model_id)
            raise no_model(model_id)
        return model

    def _model_of(self, header: UploadHeader) -> Model | None:
        """The model that an upload is for; None where that is to be created."""
        if header.creates_model and header.model_id not in self._models:
            check_model_id(header.model_id)
            return None
        return self._model(header.model_id)

    def _version(self, model: Model, number: int) -> VersionInfo:
        version = model.versions.find(number)
        if version is None:
            named = number if number >= 0 else f"n{number}"
            msg = f'no version "{named}" for model "{model.info.model_id}" found'
            raise NotFound(msg)
        return version

    def _lock(self, model_id: str) -> trio.Lock:
        return self._locks.setdefault(model_id, trio.Lock())

    async def close(self) -> int:
        """Drop the transient versions, and write the exact number ceilings back, for no longer than CLOSING_SECONDS.

        Returns of how many models that couldn't be written: their versions' numbers will have a gap, as after a crash.
        """
        self.stop_watches()
        self._transient.close()
        await self._archive.blobs.collect()
        reserving = [model for model in self._models.values() if model.numbers.reserved]
        left = len(reserving)

        async def write_back(model: Model) -> None:
            nonlocal left
            with suppress(ModelregError):  # it's in the log
                await self._archive.write_model(model.to_record(model.numbers.highest))
                left -= 1

        with trio.move_on_after(CLOSING_SECONDS):
            async with trio.open_nursery() as nursery:
                for model in reserving:
                    nursery.start_soon(write_back, model)
        return left


def _restored(found: FoundModel) -> Model:
    """A model that was there at boot."""
    versions = VersionIndex(map(VersionInfo.from_record, found.versions))
    named = [(record.request_id, record.version_number) for record in found.versions if record.request_id is not None]
    return Model(
        ModelInfo(model_id=found.record.model_id, user_data=found.record.user_data),
        versions,
        VersionNumbers(found.highest_number, found.record.number_ceiling),
        RequestMemory(named[-REMEMBERED:]),
    )


def _known(model: Model, header: UploadHeader) -> VersionInfo | None:
    """The version that came of an upload's request, if it's still there. Raises InvalidArgument where that was another upload."""
    number = None if header.request_id is None else model.requests.find(header.request_id)
    version = None if number is None else model.versions.find(number)
    if version is None:
        return None
    if (version.stored, version.size) != (header.stored, header.size) or header.digest not in (None, version.digest):
        raise InvalidArgument("the request id has been used for another upload: give each one its own")
    return version


async def _once(model: Model, header: UploadHeader, commit: Callable[[], Awaitable[VersionInfo]]) -> VersionInfo:
    """Commit an upload, unless the same request was committed meanwhile."""
    if header.request_id is None:
        return await commit()
    async with model.requests.lock(header.request_id):
        version = _known(model, header)
        if version is None:
            version = await commit()
            model.requests.remember(header.request_id, version.number)
    return version


@asynccontextmanager
async def open_registry(
    archive: Archive,
    *,
    cache_max_items: int,
    cache_max_items_per_model: int = 0,
    cache_max_bytes: int,
    max_version_bytes: int = 0,
    user_data_limits: UserDataLimits = UserDataLimits(),  # noqa: B008
    clock: Callable[[], int] = time.time_ns,
    logger: Logger | None = None,
    quota: LineQuota | None = None,
) -> AsyncIterator[Registry]:
    """The registry of an archive; closed with the context.

    Arguments:
        archive: where stored versions are.
        cache_max_items: how many transient versions there are at most.
        cache_max_items_per_model: how many of them one model has at most; 0 for no such limit.
        cache_max_bytes: how many bytes of memory they take at most.
        max_version_bytes: how large a version may be; 0 for no limit.
        user_data_limits: how much user data a request may bring.
        clock: nanoseconds since the Unix epoch, for versions without a timestamp.
        logger: told what an operator should know; by default nothing is logged.
        quota: bounds the lines that clients can cause as often as they like.
    """
    logger = logger or silent_logger()
    registry = Registry(
        archive,
        cache_max_items=cache_max_items,
        cache_max_items_per_model=cache_max_items_per_model,
        cache_max_bytes=cache_max_bytes,
        max_version_bytes=max_version_bytes,
        user_data_limits=user_data_limits,
        clock=clock,
        logger=logger,
        quota=quota or LineQuota(logger),
    )
    try:
        yield registry
    finally:
        with trio.CancelScope(shield=True):  # close has a limit of its own
            left = await registry.close()
        if left:
            logger.warning("number ceilings could not be written back, numbers will have a gap", models=left)
