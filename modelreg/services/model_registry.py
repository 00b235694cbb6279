"""cogmentAPI.ModelRegistrySP: what existing clients call."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, nullcontext

from modelreg import __version__
from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.api.model_registry_grpc import ModelRegistrySPServicer
from modelreg.errors import InvalidArgument
from modelreg.registry.registry import Registry
from modelreg.services import lists
from modelreg.services.audit import Audit
from modelreg.services.authentication import Tokens
from modelreg.services.messages import (
    Update,
    Updates,
    download_offset,
    field_one,
    loaded_chunk,
    one_version,
    upload_header,
    watch_silence,
)
from modelreg.services.open_files import OpenFiles
from modelreg.services.status import OVERALL_LOAD, overall_load, statuses
from modelreg.services.upload_body import Item
from modelreg.storage.writers import SMALL_BYTES
from modelreg.transport.files import FileMessage
from modelreg.transport.intake import LandsData
from modelreg.transport.pieces import LoadedMessage, PiecewiseMessage
from modelreg.transport.requests import Request

# The release of the interface that this is.
COGMENT_API_VERSION = "2.22.0"

# What Version answers. Package metadata is a file on the disk, so it is read once, when the server starts.
VERSIONS = common_pb2.VersionInfo(
    versions=[
        common_pb2.VersionInfo.Version(name=name, version=version)
        for name, version in (
            ("cogment-api", COGMENT_API_VERSION),
            ("grpc", f"purerpc {importlib.metadata.version('purerpc')}"),
            ("modelreg", __version__),
        )
    ]
)

ReplyChunk = api.RetrieveVersionDataReplyChunk


class ModelRegistryServicer(ModelRegistrySPServicer):
    """The calls, each made of one of the registry's.

    Arguments:
        registry: what they are about.
        max_data_chunk_bytes: how much of a version's data goes into one message at most.
        tokens: the accepted tokens. Status that asks for no more than a health check needs none of them.
        audit: told of every change.
        open_files: what uploads and large downloads have of the process's descriptors.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        max_data_chunk_bytes: int,
        tokens: Callable[[], Tokens | None],
        audit: Audit,
        open_files: OpenFiles,
    ) -> None:
        self._registry = registry
        self._tokens = tokens
        self._audit = audit
        self._updates = Updates()
        self._open_files = open_files
        self._max_data_chunk_bytes = max_data_chunk_bytes

    async def CreateOrUpdateModel(  # type: ignore[override]  # purerpc passes the request on to whoever names it
        self, message: api.CreateOrUpdateModelRequest, request: Request
    ) -> api.CreateOrUpdateModelReply:
        model_id = message.model_info.model_id
        created = await self._registry.create_or_update_model(model_id, message.model_info.user_data)
        self._audit.changed(request, "created a model" if created else "updated a model", model=model_id)
        return api.CreateOrUpdateModelReply()

    async def DeleteModel(  # type: ignore[override]  # purerpc passes the request on to whoever names it
        self, message: api.DeleteModelRequest, request: Request
    ) -> api.DeleteModelReply:
        versions = await self._registry.delete_model(message.model_id)
        self._audit.changed(request, "deleted a model", model=message.model_id, versions=versions)
        return api.DeleteModelReply()

    async def RetrieveModels(self, message: api.RetrieveModelsRequest) -> PiecewiseMessage:
        return lists.models(self._registry, message)

    async def CreateVersion(  # type: ignore[override]  # purerpc passes the request on to whoever names it
        self, messages: AsyncIterator[Item], request: Request
    ) -> PiecewiseMessage:
        header = await anext(messages, None)
        if not isinstance(header, api.CreateVersionRequestChunk) or header.WhichOneof("msg") != "header":
            raise InvalidArgument("an upload begins with a message that holds a header")
        announced = upload_header(header.header.version_info, request)
        known = self._registry.committed(announced)
        if known is not None:
            return one_version(known)
        uploading = self._registry.upload(announced)
        del header, announced  # their message takes memory, too, for as long as the upload lasts
        async with self._open_files.one(request), uploading as upload:
            with messages.landing_in(upload) if isinstance(messages, LandsData) else nullcontext():
                async for item in messages:
                    if isinstance(item, memoryview):
                        await upload.write(item)
                    elif item.WhichOneof("msg") == "body":
                        await upload.write(memoryview(item.body.data_chunk))
                    else:
                        raise InvalidArgument("after the header, every message of an upload holds a body")
            version = await upload.commit()
            # In the context: leaving it may be cancelled, and the version stays.
            if upload.created_model:
                self._audit.changed(request, "created a model", model=version.model_id)
            self._audit.added(request, version)
        return one_version(version)

    async def RetrieveVersionInfos(self, message: api.RetrieveVersionInfosRequest) -> PiecewiseMessage:
        return lists.versions(self._registry, message)

    async def RetrieveVersionData(  # type: ignore[override]  # purerpc's stubs have no streams
        self, message: api.RetrieveVersionDataRequest, request: Request
    ) -> AsyncGenerator[ReplyChunk | FileMessage | LoadedMessage, None]:
        version = self._registry.version(message.model_id, message.version_number)
        file = self._open_files.one(request) if version.size > SMALL_BYTES else nullcontext()
        async with file, self._registry.read(message.model_id, message.version_number) as reader:
            size = reader.version.size
            offset = download_offset(request, size)
            # An empty version is one empty chunk, and so is the answer to an offset: it's heeded.
            if offset or not size:
                yield ReplyChunk()
            for start in range(offset, size, self._max_data_chunk_bytes):
                end = min(start + self._max_data_chunk_bytes, size)
                if reader.data is not None:
                    yield ReplyChunk(data_chunk=bytes(memoryview(reader.data)[start:end]))
                elif reader.fd is None:
                    yield loaded_chunk(reader, start, end)
                else:
                    await reader.check(end)
                    part = FileMessage(field_one(end - start), reader.fd, start, end - start)
                    yield part
                    if not part.complete:
                        await reader.recheck()
            await reader.confirm()

    async def VersionUpdate(  # type: ignore[override]  # purerpc's stubs have no streams
        self, message: api.VersionUpdateRequest, request: Request
    ) -> AsyncGenerator[Update, None]:
        silence = watch_silence(request)
        async with aclosing(self._registry.watch(message.model_id, silence=silence)) as versions:
            async for version in versions:
                yield Update(self._updates, version)

    async def Version(self, message: common_pb2.VersionRequest) -> common_pb2.VersionInfo:
        return VERSIONS

    async def Status(  # type: ignore[override]  # purerpc passes the request on to whoever names it
        self, message: common_pb2.StatusRequest, request: Request
    ) -> common_pb2.StatusReply:
        if not message.names:
            return common_pb2.StatusReply()
        if len(message.names) == 1 and message.names[0] == OVERALL_LOAD:  # what a Directory's health check asks for
            return common_pb2.StatusReply(statuses={OVERALL_LOAD: str(overall_load())})
        if (tokens := self._tokens()) is not None:
            tokens.check(request, writes=False)
        return common_pb2.StatusReply(statuses=await statuses(self._registry, message.names))
