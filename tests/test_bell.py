from __future__ import annotations

import trio
import trio.testing

from modelreg.bell import Bell


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
