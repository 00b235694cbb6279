from __future__ import annotations

import trio
import trio.testing

from modelreg.transport.signals import Signal


async def test_set_before_wait_is_remembered_once() -> None:
    signal = Signal()
    signal.set()
    signal.set()
    with trio.testing.assert_checkpoints():
        await signal.wait()
    with trio.move_on_after(0.01) as scope:
        await signal.wait()
    assert scope.cancelled_caught


async def test_set_wakes_the_one_who_waits_again_and_again() -> None:
    signal = Signal()
    woken = 0

    async def wait() -> None:
        nonlocal woken
        while True:
            await signal.wait()
            woken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for number in range(3):
            await trio.testing.wait_all_tasks_blocked()
            assert woken == number
            signal.set()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == 3
        nursery.cancel_scope.cancel()
    signal.set()  # nobody is woken who is not there any more
