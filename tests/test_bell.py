from __future__ import annotations

import trio
import trio.testing

from modelreg.bell import AT_ONCE, Bell


async def test_a_bell_wakes_all_who_wait_each_time(nursery: trio.Nursery) -> None:
    bell = Bell()
    woken: list[int] = []

    async def wait(times: int) -> None:
        for _ in range(times):
            await bell.wait()
            woken.append(times)

    for times in (1, 2):
        nursery.start_soon(wait, times)
    await trio.testing.wait_all_tasks_blocked()
    bell.ring()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(woken) == [1, 2]
    bell.ring()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(woken) == [1, 2, 2]


async def test_a_bell_that_rang_before_is_not_heard(nursery: trio.Nursery) -> None:
    bell = Bell()
    bell.ring()
    with trio.move_on_after(0):
        await bell.wait()
        raise AssertionError("it has been heard")


async def test_a_bell_wakes_few_at_a_time(nursery: trio.Nursery) -> None:
    bell = Bell()
    woken = 0

    async def wait() -> None:
        nonlocal woken
        while True:
            await bell.wait()
            woken += 1

    for _ in range(10 * AT_ONCE):
        nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    bell.ring()
    most = 0
    while woken < 10 * AT_ONCE:
        before = woken
        await trio.lowlevel.checkpoint()
        most = max(most, woken - before)
    assert most <= 2 * AT_ONCE  # this task runs now at the beginning of a round, now at its end
    await trio.testing.wait_all_tasks_blocked()
    assert woken == 10 * AT_ONCE


async def test_a_bell_that_rings_again_while_it_wakes_tasks_wakes_all_that_wait(nursery: trio.Nursery) -> None:
    bell = Bell()
    state = 0
    seen: list[int] = []

    async def watch() -> None:
        known = 0
        while known < 3:
            if known == state:
                await bell.wait()
            known = state
        seen.append(known)

    for _ in range(5 * AT_ONCE):
        nursery.start_soon(watch)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(3):
        state += 1
        bell.ring()
        await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    assert seen == [3] * 5 * AT_ONCE


async def test_tasks_that_are_cancelled_before_they_are_woken_hold_up_no_others(nursery: trio.Nursery) -> None:
    bell = Bell()
    woken = 0

    async def wait() -> None:
        nonlocal woken
        await bell.wait()
        woken += 1

    async with trio.open_nursery() as leaving:
        for _ in range(3 * AT_ONCE):
            leaving.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3 * AT_ONCE):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        bell.ring()
        leaving.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert 3 * AT_ONCE <= woken <= 4 * AT_ONCE
    bell.ring()
    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    before = woken
    bell.ring()
    await trio.testing.wait_all_tasks_blocked()
    assert woken == before + 1
