"""Row 25: an upload that goes on after its call was refused: RST, its window is returned, and the connection lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelreg.transport.faults import ErrorCode
from tests.clients.calls import header
from tests.faults.abuse import begin, encoded, upload_begins, with_sibling
from tests.faults.crash import Launcher
from tests.support.h2client import data
from tests.support.measures import memory_bytes, peak_memory_bytes

MIB = 1 << 20
FRAME = bytes(16384)

REFUSED = {
    "unknown model": (upload_begins(1 << 40, model_id="nothing"), 5),
    "unknown method": (b"", 12),
    "no room": (upload_begins(1 << 60), 8),
    "a hash that is none": (encoded(header("m", data_size=1 << 40, data_hash="none")), 3),
    "more than was announced": (upload_begins(10) + b"\0\0\0\x40\x0f\x12\x8b\x80\x01\x0a\x87\x80\x01", 3),
}


@pytest.mark.parametrize("why", REFUSED)
async def test_it_goes_on_all_the_same(launcher: Launcher, memory_path: Path, why: str) -> None:
    server = launcher.start(memory_path / "archive")
    sent, status = REFUSED[why]
    async with with_sibling(server) as (client, sibling):
        memory = memory_bytes(server.pid)
        with launcher.canary(server):
            stream_id = await begin(
                client, "Nothing" if why == "unknown method" else "CreateVersion", sent, whole=False
            )
            for _ in range(3):  # what is under way when the refusal comes
                await client.try_send(data(stream_id, FRAME))
            reply = await client.finished(stream_id)
            assert reply.status == status
            await client.until(lambda: reply.reset is ErrorCode.NO_ERROR)
            # Far more than a stream may, and once so much that the connection's window would be used up by half.
            window = client.windows[0]
            amount = 2**30 + 64 * MIB if why == "unknown model" else 64 * MIB
            for _ in range(0, amount, MIB):
                await client.send(*[data(stream_id, FRAME)] * (MIB // len(FRAME)))
            await sibling.hears()
            assert (client.windows[0] > window) == (why == "unknown model")
        assert peak_memory_bytes(server.pid) - memory < 8 * MIB
        assert reply.reset is ErrorCode.NO_ERROR
