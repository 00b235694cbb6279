"""Storing and publishing: one upload, made exactly once.

An attempt that fails is made again where that can't store twice. Either the server can't have had all of the request; or it
remembers requests, by the id that each upload carries in its metadata, and answers the second attempt with what came of the
first (`modelreg-request-id`; modelreg does, the original Model Registry doesn't). Otherwise the outcome is unknown, and
said to be.

A model that isn't there is created by modelreg together with the version (`modelreg-create-model`), so an upload that fails leaves none.
"""

from __future__ import annotations

import hashlib
import uuid
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import aclosing

import attrs

from modelreg.api import common_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.client.errors import Damaged, DeadlineExceeded, Exhausted, OutcomeUnknown, RegistryError, Unavailable
from modelreg.client.infos import ModelIterationInfo
from modelreg.client.retry import transient
from modelreg.client.rpc import SERVICE, Rpc
from modelreg.client.sources import INLINE_BYTES, Source
from modelreg.client.transport.calls import Call
from modelreg.client.transport.messages import chunk_prefix, framed
from modelreg.client.transport.status import CallFailed
from modelreg.client.workers import in_thread

REQUEST_ID = "modelreg-request-id"
CREATE_MODEL = "modelreg-create-model"

LARGE_BYTES = 64 * 1024 * 1024
"""From here on, hashing takes much longer (30 ms) than asking the server first whether it takes a version of this size."""

Progress = Callable[[int, int], object]
"""Told how many bytes of how many are done. Called often, on the event loop: to be quick."""


@attrs.define
class Upload:
    """A version on its way to the registry."""

    rpc: Rpc
    name: str
    source: Source
    stored: bool
    properties: Mapping[str, str]
    progress: Progress | None = None
    hashing: Progress | None = None
    timeout: float | None = None
    sha256: bytes | None = attrs.field(default=None, repr=False)
    _request_id: str = attrs.field(factory=lambda: str(uuid.uuid4()), init=False)
    _begun: bool = attrs.field(default=False, init=False)
    _uncertain: str | None = attrs.field(default=None, init=False)

    async def prepare(self) -> None:
        """Hash the data where that doesn't use it up, unless its hash was given.

        Raises:
            Exhausted: it's larger than the server takes. It isn't hashed then.
            OSError: it can't be read.
        """
        if self.sha256 is not None or not self.source.repeatable:
            return
        if self.source.size >= LARGE_BYTES:
            await self._check_size()
        self._hashed(0)
        self.sha256 = await self.source.digest(self._hashed)

    async def run(self) -> ModelIterationInfo:
        """Send it, once it's prepared. May be called again after a `CallFailed`.

        Raises:
            CallFailed: it wasn't stored.
            OutcomeUnknown: it may have been.
            ValueError: the source has other than the size it was to have.
            OSError: the source can't be read, or has changed since it was hashed.
        """
        if self.progress is not None:
            self.progress(0, self.source.size)
        try:
            return await self.rpc.patiently(self._attempt, again=self._again)
        except CallFailed as failure:
            if self._uncertain is not None and transient(failure):
                raise self._unknown() from None
            raise

    def _hashed(self, done: int) -> None:
        if self.hashing is not None:
            self.hashing(done, self.source.size)

    async def _check_size(self) -> None:
        """Ask the server for its limits. Servers that don't tell refuse what is too large later, by its header."""
        options = ["max_version_bytes"] if self.stored else ["max_version_bytes", "cache_max_bytes"]
        request = common_pb2.StatusRequest(names=options)
        try:
            limits = (await self.rpc.unary("Status", request, common_pb2.StatusReply, self.timeout)).statuses
        except (Unavailable, DeadlineExceeded):
            raise
        except RegistryError:
            return
        for option in options:
            text = limits.get(option, "")
            limit = int(text) if text.isdecimal() else 0
            if limit and self.source.size > limit:
                raise Exhausted(
                    f"a version of {self.source.size} bytes is larger than --{option} allows, which is {limit}: "
                    "make it smaller, or raise that option"
                )

    def _again(self, failure: CallFailed) -> bool:
        return transient(failure) and (self.source.repeatable or not self._begun)

    def _unknown(self) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"the connection was lost while model {self.name!r} was being stored, and may have been when it was done: "
            f"see list_iterations before storing it again ({self._uncertain})"
        )

    async def _attempt(self) -> ModelIterationInfo:
        digest = self.sha256
        if self._uncertain is not None and not await self.rpc.is_modelreg():
            raise self._unknown()
        version = api.ModelVersionInfo(
            model_id=self.name,
            archived=self.stored,
            data_size=self.source.size,
            data_hash="" if digest is None else b64encode(digest).decode(),
            user_data=self.properties,
        )
        header = api.CreateVersionRequestChunk(header=api.CreateVersionRequestChunk.Header(version_info=version))
        metadata = [(REQUEST_ID, self._request_id), (CREATE_MODEL, "1")]
        with await self.rpc.channel.call(SERVICE + "CreateVersion", timeout=self.timeout, metadata=metadata) as call:
            try:
                actual = await self._send(call, framed(header.SerializeToString()), hash_along=digest is None)
                reply = api.CreateVersionReply.FromString(await call.only())
            except CallFailed as failure:
                if failure.delivered and transient(failure):
                    self._uncertain = str(failure)
                raise
        info = ModelIterationInfo.of(reply.version_info)
        if actual is not None and info.hash != b64encode(actual).decode():
            raise Damaged(
                f"iteration {info.iteration} of model {self.name!r} isn't what was sent, by its hash: store it again"
            )
        return info

    async def _send(self, call: Call, header: bytes, *, hash_along: bool) -> bytes | None:
        """Send header and data; the hash of what was sent, where that isn't known yet."""
        source, progress = self.source, self.progress
        sha = hashlib.sha256()
        sent = 0
        going = await call.send(header)
        async with aclosing(source.pieces()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                self._begun = True
                if sent + len(piece) > source.size:
                    raise ValueError(f"the model's data goes on after the {source.size} bytes it should have")
                going = going and await call.send(chunk_prefix(len(piece)), piece)
                if not going:
                    return None  # the server has said all it wants to, see `Call.only`
                if hash_along:
                    if len(piece) < INLINE_BYTES:
                        sha.update(piece)
                    else:
                        await in_thread(sha.update, piece)
                sent += len(piece)
                if progress is not None:
                    progress(sent, source.size)
        if sent < source.size:
            raise ValueError(f"the model's data ended after {sent} bytes, and should have {source.size}")
        await call.send(end=True)
        return sha.digest() if hash_along else None
