"""For how long a call is tried again, on a clock of the test's."""

from __future__ import annotations

from typing import Any, cast

import attrs
import pytest
import trio

from modelreg.client.background import Background
from modelreg.client.errors import Unavailable
from modelreg.client.retry import Patience
from modelreg.client.rpc import Rpc
from modelreg.client.transport.calls import Call
from modelreg.client.transport.channel import Channel
from modelreg.client.transport.connection import Timing
from modelreg.client.transport.status import CallFailed
from modelreg.client.updates import IterationUpdates
from modelreg.grpc.status import Code

NOBODY = CallFailed(Code.UNAVAILABLE, "nobody there", connected=False)
LOST = CallFailed(Code.UNAVAILABLE, "lost")


@attrs.define
class Attempts:
    """Attempts that take so many seconds, and fail so; the one after the last succeeds."""

    failures: list[tuple[float, CallFailed]]
    made: int = 0

    async def __call__(self) -> str:
        self.made += 1
        if self.made > len(self.failures):
            return "done"
        seconds, failure = self.failures[self.made - 1]
        await trio.sleep(seconds)
        raise failure


def rpc(*, reached: bool) -> Rpc:
    class Stub:
        def __init__(self) -> None:
            self.reached = reached

    return Rpc(cast(Channel, Stub()), Patience(unknown=3, known=30))


async def test_what_went_well_before_the_loss_does_not_count(autojump_clock: Any) -> None:
    attempts = Attempts([(3600, LOST)])
    assert await rpc(reached=True).patiently(attempts) == "done"
    assert trio.current_time() < 3601


async def test_nobody_is_waited_for_from_the_beginning(autojump_clock: Any) -> None:
    attempts = Attempts([(10, NOBODY)] * 5)
    began = trio.current_time()
    with pytest.raises(CallFailed, match="nobody there"):
        await rpc(reached=False).patiently(attempts)
    assert trio.current_time() - began == 10


@pytest.mark.parametrize(("reached", "seconds"), [(False, 3), (True, 30)])
async def test_a_server_that_was_there_is_waited_for_longer(autojump_clock: Any, reached: bool, seconds: float) -> None:
    attempts = Attempts([(0, NOBODY)] * 1000)
    began = trio.current_time()
    with pytest.raises(CallFailed):
        await rpc(reached=reached).patiently(attempts)
    assert trio.current_time() - began == seconds  # the last attempt is made when patience ends
    assert attempts.made < 30


async def test_updates_use_all_of_their_patience_too(autojump_clock: Any) -> None:
    class Nobody:
        reached = True
        timing = Timing()

        async def call(self, path: str, **options: Any) -> Call:
            raise NOBODY

    updates = IterationUpdates(Rpc(cast(Channel, Nobody()), Patience(known=31.7)), "m", background=Background())
    began = trio.current_time()
    with pytest.raises(Unavailable):
        await anext(updates)
    assert trio.current_time() - began == 31.7


@pytest.mark.parametrize("further", [True, False])
async def test_patience_begins_anew_with_progress(autojump_clock: Any, further: bool) -> None:
    attempts = Attempts([(20, LOST)] * 5)
    made = rpc(reached=True).patiently(attempts, progress=lambda: attempts.made if further else 0)
    if further:
        assert await made == "done"
    else:
        with pytest.raises(CallFailed, match="lost"):
            await made


async def test_a_server_that_is_lost_again_and_again_is_given_up(autojump_clock: Any) -> None:
    with pytest.raises(CallFailed, match="lost"):
        await rpc(reached=True).patiently(Attempts([(20, LOST)] * 5))


async def test_what_is_not_worth_another_attempt_gets_none(autojump_clock: Any) -> None:
    attempts = Attempts([(0, CallFailed(Code.NOT_FOUND, "no"))])
    with pytest.raises(CallFailed, match="no"):
        await rpc(reached=True).patiently(attempts)
    assert attempts.made == 1
