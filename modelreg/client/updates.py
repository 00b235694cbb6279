"""The iterations of a model, as they become available; through restarts of the registry, and with none left out.

A stream of updates begins with the newest iteration only. So after an interruption, and wherever numbers are skipped (the original Model
Registry tells of the newest only), those in between are listed. What isn't available any more isn't told of.

A proxy ends a stream on which nothing has come for a while: 60 s in nginx, 5 minutes in Envoy. Its clients' PINGs don't
count, and the server's count in some proxies only. So a watch asks the registry, by the metadata `modelreg-watch-keepalive`,
for an empty message every `Timing.watch_keepalive` seconds. Once one has come, its silence is noticed, too: a proxy goes on
answering PINGs when the registry behind it has died. Registries that don't know the metadata ignore it. A watch that is cut
off is begun again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque

import anyio
from google.protobuf.message import DecodeError
from typing_extensions import Self

from modelreg.api import model_registry_pb2 as api
from modelreg.client.background import Background
from modelreg.client.errors import DeadlineExceeded, error_of
from modelreg.client.infos import ModelIterationInfo
from modelreg.client.lists import Pages
from modelreg.client.logs import logger
from modelreg.client.retry import Backoff, transient
from modelreg.client.rpc import SERVICE, Rpc
from modelreg.client.transport.calls import Call
from modelreg.client.transport.channel import deadline
from modelreg.client.transport.status import CallFailed
from modelreg.grpc.status import Code

REMEMBERED = 256

KEEPALIVE = "modelreg-watch-keepalive"
"""Metadata: how many seconds of silence end with an empty message."""

SILENT_TURNS = 3
"""A registry that has sent such messages is taken for dead when so many in a row are missing."""

HELD_SECONDS = 20.0
"""A call that is cut off after that had reached a registry: where a proxy finds none, it says so at once."""


class IterationUpdates:
    """An async iterator over `ModelIterationInfo`. Ends only by raising; `aclose`, or forgetting it, ends its call.

    Arguments:
        after: tell of those newer than this number, instead of the newest one and those after it.
        timeout: when to end it, in seconds from now; None for never.
    """

    def __init__(
        self, rpc: Rpc, name: str, after: int | None = None, timeout: float | None = None, *, background: Background
    ) -> None:
        self._rpc = rpc
        self._background = background
        self._name = name
        self._last = after
        self._timeout = timeout
        self._until = None if timeout is None else time.monotonic() + timeout
        self._known: OrderedDict[int, ModelIterationInfo] = OrderedDict()  # the last ones told of
        self._ready: deque[ModelIterationInfo] = deque()
        self._call: Call | None = None
        self._began = 0.0  # the call
        self._kept_alive = False  # an empty message has come on it
        self._thread = threading.get_ident()
        self._first_of_call = True
        self._patient_until = 0.0  # set when the first one is waited for
        self._backoff = Backoff()
        self._told = False  # of an update, since the last interruption

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ModelIterationInfo:
        """The next iteration, as soon as there is one.

        Raises:
            NotFound: there is no such model, or it has been deleted.
            Unavailable: no registry answers, and none has before.
            DeadlineExceeded: the timeout is over.
        """
        if self._until is None:
            return await self._next()
        with anyio.move_on_after(self._until - time.monotonic()):
            return await self._next()
        raise DeadlineExceeded(f"not done within {self._timeout:g} s")

    async def _next(self) -> ModelIterationInfo:
        self._background.check()
        if not self._patient_until:
            self._be_patient()
        while not self._ready:
            try:
                await self._more()
            except CallFailed as failure:
                if self._call is not None and anyio.current_time() - self._began > HELD_SECONDS:
                    self._be_patient()
                self._hang_up()
                left = self._patient_until - anyio.current_time()
                if not _passes(failure) or left <= 0:
                    raise error_of(failure) from None
                if self._told:
                    logger.info("%s: waiting for it to be back", failure)
                    self._told = False
                await anyio.sleep(min(left, self._backoff.pause()))
            except BaseException:
                self._hang_up()
                raise
        info = self._ready.popleft()
        self._last = info.iteration
        self._known[info.iteration] = info
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return info

    async def aclose(self) -> None:
        """End it."""
        self._background.check()
        self._hang_up()

    def __del__(self) -> None:
        # The call belongs to an event loop, which is that thread's.
        if threading.get_ident() == self._thread and not self._background.forked:
            self._hang_up()

    def _be_patient(self) -> None:
        """Let patience begin now, if it isn't endless already."""
        self._backoff.reset()
        self._patient_until = max(self._patient_until, anyio.current_time() + self._rpc.seconds_of_patience)

    def _hang_up(self) -> None:
        if self._call is not None:
            self._call.__exit__(None, None, None)
            self._call = None

    async def _more(self) -> None:
        """Wait for an update, and put what it means into `_ready`."""
        if self._call is None:
            self._call = await self._dial()
            self._began = anyio.current_time()
            self._kept_alive = False
            self._first_of_call = True
        message = await self._receive(self._call)
        if message is None:
            raise CallFailed(Code.UNAVAILABLE, "the registry has ended the updates")
        try:
            update = api.VersionUpdateReply.FromString(message)
        except DecodeError:
            raise CallFailed(Code.INTERNAL, "an update is no valid message") from None
        self._patient_until = math.inf  # it's there; should it go, it will be back
        self._backoff.reset()
        if not update.HasField("version_info"):
            self._kept_alive = True
            return
        self._told = True
        info = ModelIterationInfo.of(update.version_info)
        self._ready.extend(await self._since(info))
        self._first_of_call = False

    async def _dial(self) -> Call:
        silence = self._rpc.channel.timing.watch_keepalive
        metadata = [(KEEPALIVE, f"{silence:.3f}")] if silence else []
        call = await self._rpc.channel.call(SERVICE + "VersionUpdate", metadata=metadata)
        call.send_last(api.VersionUpdateRequest(model_id=self._name).SerializeToString())
        return call

    async def _receive(self, call: Call) -> bytes | None:
        """The next message of the call; None after the last."""
        silence = SILENT_TURNS * self._rpc.channel.timing.watch_keepalive if self._kept_alive else math.inf
        with anyio.move_on_after(silence):
            return await call.receive()
        raise CallFailed(Code.UNAVAILABLE, f"the registry doesn't answer: nothing came for {silence:g} s")

    async def _since(self, info: ModelIterationInfo) -> list[ModelIterationInfo]:
        """What hasn't been told of yet, up to an iteration that is available now."""
        number, last = info.iteration, self._last
        if last is None or number == last + 1:
            return [info]
        if number > last:
            return [*await self._list(last + 1, number), info]
        if self._starts_again(info):
            return [*await self._list(1, number), info]
        return []

    def _starts_again(self, info: ModelIterationInfo) -> bool:
        """Whether a number that isn't newer is new nevertheless, as the model was deleted and created again.

        Numbers only rise within a call. The first of a call is the newest there is: after a restart that may be an old one, as
        transient ones are gone.
        """
        if not self._first_of_call:
            return True
        known, newest = self._known.get(info.iteration), self._known.get(self._last or 0)
        return info != known and newest is not None and info.timestamp > newest.timestamp

    async def _list(self, first: int, end: int) -> list[ModelIterationInfo]:
        """The available iterations from *first* up to, and without, *end*."""
        found: list[ModelIterationInfo] = []
        pages = Pages()

        async def ask(count: int) -> api.RetrieveVersionInfosReply:
            request = api.RetrieveVersionInfosRequest(
                model_id=self._name, versions_count=min(count, end - first), version_handle=str(first)
            )
            return await self._rpc.once("RetrieveVersionInfos", request, api.RetrieveVersionInfosReply)

        while first < end:
            with deadline(self._rpc.timeout):
                reply = await pages.get(ask)
            page = [ModelIterationInfo.of(message) for message in reply.version_infos]
            found += [info for info in page if info.iteration < end]
            if not page:
                break
            first = page[-1].iteration + 1
        return found


def _passes(failure: CallFailed) -> bool:
    """Whether a watch goes on after a failure. The deadline is that of listing; a watch has none."""
    return transient(failure) or failure.code == Code.DEADLINE_EXCEEDED
