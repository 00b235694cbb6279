"""Row 30 with tasks around it: any frames, cut anywhere, from a client that leaves at any time."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modelreg.transport import frames
from tests.support.h2client import block, data, headers, message, request_fields, settings
from tests.transport.service import path
from tests.transport.test_clock import serving

HELLO = frames.PREFACE + settings({})
METHODS = ["Echo", "Watch", "Count", "Sum", "Chat", "Upload", "Hold", "Refuse", "Wait", "FailLate"]
IDS = st.sampled_from([1, 3, 5])
BODY = st.sampled_from([message(b""), message(b"\x0a\x041 10"), message(b"!"), message(b"\x0a\x08100 3000"), b"\0\0"])
STEP = st.one_of(
    st.builds(
        lambda stream_id, method: headers(stream_id, block(request_fields(path(method)))), IDS, st.sampled_from(METHODS)
    ),
    st.builds(data, IDS, BODY, end_stream=st.booleans()),
    st.builds(frames.rst_stream, IDS, st.just(8)),
    st.builds(frames.window_update, IDS | st.just(0), st.integers(0, 100_000)),
    st.builds(settings, st.dictionaries(st.sampled_from([1, 4, 5]), st.sampled_from([0, 16384, 70_000]), max_size=2)),
    st.builds(frames.ping, st.just(bytes(8))),
    st.builds(frames.goaway, st.just(0), st.just(0)),
    st.binary(max_size=30),
)


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=15), st.integers(1, 200), st.booleans())
async def test_nothing_stays_and_nobody_else_notices(
    caplog: pytest.LogCaptureFixture, steps: list[bytes], piece: int, reads: bool
) -> None:
    async with serving() as serve:
        other = await serve.connect()
        stream = await serve.listener.connect()
        sent = HELLO + b"".join(steps)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    async for _ in stream:
                        pass

                if reads:
                    nursery.start_soon(read)
                try:
                    for start in range(0, len(sent), piece):
                        await stream.send_all(sent[start : start + piece])
                        if start % 3 == 0:
                            await trio.testing.wait_all_tasks_blocked()
                except trio.BrokenResourceError:
                    pass
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert (await other.call(path("Echo"), b"")).status == 0
            await trio.aclose_forcefully(stream)
            await trio.testing.wait_all_tasks_blocked()
            while serve.server.statistics().connections > 1:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert serve.state.running == 0
        assert serve.server.statistics().streams == 0
        await other.aclose()
    assert not caplog.records
