"""Retrieving a version's data into a target, verified.

An attempt after the first names what there is already (metadata `modelreg-offset`). A registry that heeds it sends a chunk
without data first, and then the rest. Others send everything again, and the client passes over what it has.
"""

from __future__ import annotations

from base64 import b64decode

import attrs

from modelreg.api import model_registry_pb2 as api
from modelreg.client.errors import Damaged
from modelreg.client.infos import ModelIterationInfo
from modelreg.client.rpc import SERVICE, Rpc
from modelreg.client.targets import Target
from modelreg.client.transport.calls import Call
from modelreg.client.transport.messages import DataChunks
from modelreg.client.upload import Progress

OFFSET = "modelreg-offset"


@attrs.define
class Download:
    """A version on its way here."""

    rpc: Rpc
    info: ModelIterationInfo
    target: Target
    progress: Progress | None = None
    timeout: float | None = None

    async def run(self) -> None:
        """Fill the target. An attempt that is cut off is made again, and goes on where the last one was.

        Raises:
            CallFailed: it can't be had.
            Damaged: the bytes that came aren't those of the version.
        """
        if self.progress is not None:
            self.progress(0, self.info.size)
        self.target.restart()
        await self.rpc.patiently(self._attempt, progress=lambda: self.target.received)

    async def _attempt(self) -> None:
        info, target = self.info, self.target
        offset = known = target.received  # from attempts before this one
        call: Call | None = None

        def write(data: memoryview) -> None:
            nonlocal known
            if known and not chunks.seen_empty:
                skipped = min(known, len(data))
                known -= skipped
                data = data[skipped:]
            target.write(data)

        chunks = DataChunks(write)

        def take(data: memoryview) -> None:
            before = target.received
            chunks.feed(data)
            assert call is not None
            kept = 0 if target.has_room else target.received - before
            call.consumed(len(data) - kept)

        request = api.RetrieveVersionDataRequest(model_id=info.model_name, version_number=info.iteration)
        metadata = [(OFFSET, str(offset))] if offset else []
        call = await self.rpc.channel.call(
            SERVICE + "RetrieveVersionData", timeout=self.timeout, metadata=metadata, sink=take
        )
        with call:
            call.send_last(request.SerializeToString())
            while True:
                over = call.over
                done = await target.drain(final=over)
                if done:
                    if not target.has_room:
                        call.consumed(done)
                    if self.progress is not None:
                        self.progress(target.received, info.size)
                elif over:
                    break
                else:
                    await call.wait()
            if target.received <= info.size:
                call.check()
        if target.received != info.size:
            came = f"{target.received}" if target.received < info.size else "more"
            raise Damaged(f"{_named(info)} has {info.size} bytes, and {came} came: store it again")
        if not chunks.complete or target.digest() != b64decode(info.hash):
            raise Damaged(f"{_named(info)} isn't what was stored, by its hash: store it again")


def _named(info: ModelIterationInfo) -> str:
    return f"iteration {info.iteration} of model {info.model_name!r}"
