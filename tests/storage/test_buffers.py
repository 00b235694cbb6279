from __future__ import annotations

import errno
import mmap

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from modelreg.storage.buffers import BUFFER_BYTES, KEPT_BUFFERS, Budget, Buffer, BufferPool


class Caller:
    """Somebody who asks a budget for bytes."""

    def __init__(self, budget: Budget, amount: int, nursery: trio.Nursery) -> None:
        self.budget = budget
        self.amount = amount
        self._has = False
        self.scope = trio.CancelScope()
        nursery.start_soon(self._acquire)

    async def _acquire(self) -> None:
        with self.scope:
            await self.budget.acquire(self.amount)
            self._has = True

    def has(self) -> bool:
        return self._has

    def release(self) -> None:
        self._has = False
        self.budget.release(self.amount)


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_what_is_there_is_given_at_once() -> None:
    budget = Budget(10)
    await budget.acquire(4)
    await budget.acquire(6)
    assert budget.used == 10
    budget.release(4)
    budget.release(6)
    assert budget.used == 0


async def test_nothing_is_asked_for() -> None:
    budget = Budget(10)
    await budget.acquire(10)
    await budget.acquire(0)
    assert budget.used == 10


async def test_more_than_there_is_takes_all_there_is(nursery: trio.Nursery) -> None:
    budget = Budget(10)
    greedy = Caller(budget, 1000, nursery)
    await settled()
    small = Caller(budget, 1, nursery)
    await settled()
    assert greedy.has()
    assert not small.has()
    greedy.release()
    await settled()
    assert small.has()
    assert budget.used == 1


async def test_first_come_first_served(nursery: trio.Nursery) -> None:
    budget = Budget(10)
    first = Caller(budget, 8, nursery)
    await settled()
    large = Caller(budget, 9, nursery)
    await settled()
    small = Caller(budget, 1, nursery)
    await settled()
    assert (first.has(), large.has(), small.has()) == (True, False, False), "a small one must not starve a large one"
    first.release()
    await settled()
    assert (large.has(), small.has()) == (True, True)


async def test_cancelled_while_waiting_in_front(nursery: trio.Nursery) -> None:
    budget = Budget(10)
    first = Caller(budget, 8, nursery)
    await settled()
    large = Caller(budget, 9, nursery)
    await settled()
    small = Caller(budget, 1, nursery)
    await settled()
    large.scope.cancel()
    await settled()
    assert small.has(), "nobody is in front of it any more"
    first.release()
    small.release()
    assert budget.used == 0


async def test_cancelled_while_waiting_behind(nursery: trio.Nursery) -> None:
    budget = Budget(10)
    first = Caller(budget, 10, nursery)
    await settled()
    second, third = Caller(budget, 10, nursery), Caller(budget, 10, nursery)
    await settled()
    third.scope.cancel()
    await settled()
    first.release()
    await settled()
    assert second.has()
    second.release()
    assert budget.used == 0


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancelled_in_the_moment_of_being_served(cancel_first: bool, nursery: trio.Nursery) -> None:
    budget = Budget(10)
    first = Caller(budget, 10, nursery)
    await settled()
    second = Caller(budget, 10, nursery)
    await settled()
    third = Caller(budget, 10, nursery)
    await settled()
    if cancel_first:
        second.scope.cancel()
        first.release()
    else:
        first.release()
        second.scope.cancel()
    await settled()
    assert second.has() + third.has() == 1
    (second if second.has() else third).release()
    await settled()
    assert budget.used == (10 if third.has() else 0)


async def test_cancelled_before_it_asks(nursery: trio.Nursery) -> None:
    budget = Budget(10)
    first = Caller(budget, 10, nursery)
    await settled()
    second = Caller(budget, 10, nursery)
    second.scope.cancel()
    await settled()
    first.release()
    assert budget.used == 0


amounts = st.integers(0, 12)
actions = st.lists(
    st.tuples(st.just("ask"), amounts)
    | st.tuples(st.sampled_from(["release", "cancel", "release, then cancel"]), st.integers(0, 30)),
    max_size=30,
)


@given(actions)
def test_like_a_plain_queue(actions: list[tuple[str, int]]) -> None:
    """Against a model: a queue in which only the front is looked at."""

    async def main() -> None:
        budget = Budget(10)
        holding: list[Caller] = []
        waiting: list[Caller] = []

        def used() -> int:
            return sum(min(caller.amount, 10) for caller in holding)

        async with trio.open_nursery() as nursery:
            for action, argument in actions:
                if action == "ask":
                    waiting.append(Caller(budget, argument, nursery))
                if action.startswith("release") and holding:
                    holding.pop(argument % len(holding)).release()
                if action.endswith("cancel") and waiting:
                    served = waiting[0].amount <= 10 - used() or (waiting[0].amount > 10 and not used())
                    if not served:  # who is served in the same moment may have it, or not; the tests above show that
                        waiting.pop(argument % len(waiting)).scope.cancel()
                while waiting and min(waiting[0].amount, 10) <= 10 - used():
                    holding.append(waiting.pop(0))
                await settled()
                assert all(caller.has() for caller in holding)
                assert not any(caller.has() for caller in waiting)
                assert budget.used == used()
            nursery.cancel_scope.cancel()
        for caller in holding:
            caller.release()
        assert budget.used == 0

    trio.run(main)


async def test_taking_without_waiting(nursery: trio.Nursery) -> None:
    budget = Budget(10)
    assert budget.take_now(8)
    assert not budget.take_now(3)
    large = Caller(budget, 5, nursery)
    await settled()
    assert budget.waited_for
    assert not budget.take_now(1), "somebody is in front"
    budget.release(8)
    await settled()
    assert large.has()
    assert budget.take_now(5)
    assert budget.used == 10


# Buffers


def not_to_be_called() -> None:
    raise AssertionError("nobody waits")


def test_filling_a_buffer() -> None:
    buffer = Buffer()
    assert buffer.fill(memoryview(b"abc")) == 3
    assert bytes(buffer.content) == b"abc"
    rest = BUFFER_BYTES - 3
    assert buffer.fill(memoryview(bytes(rest - 1))) == rest - 1
    assert not buffer.full
    assert buffer.fill(memoryview(bytes(5))) == 1
    assert buffer.fill(memoryview(b"x")) == 0
    assert bytes(buffer.content) == b"abc" + bytes(rest)


async def test_buffers_are_used_again_and_empty_then(nursery: trio.Nursery) -> None:
    pool = BufferPool(Budget(20 * BUFFER_BYTES), nursery)
    buffer = await pool.take(not_to_be_called)
    buffer.fill(memoryview(b"left over"))
    pool.give_back(buffer)
    again = await pool.take(not_to_be_called)
    assert again is buffer
    assert bytes(again.content) == b""


async def test_a_moderate_number_of_buffers_is_kept(nursery: trio.Nursery) -> None:
    budget = Budget(20 * BUFFER_BYTES)
    pool = BufferPool(budget, nursery)
    buffers = [await pool.take(not_to_be_called) for _ in range(20)]
    assert budget.used == 20 * BUFFER_BYTES
    for buffer in buffers:
        pool.give_back(buffer)
    assert budget.used == 0
    assert len(pool._kept) == KEPT_BUFFERS


async def test_a_buffer_that_can_not_be_made_leaves_the_budget_whole(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    budget = Budget(4 * BUFFER_BYTES)
    pool = BufferPool(budget, nursery)

    def fail(fileno: int, size: int) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(OSError):
        await pool.take(not_to_be_called)
    assert budget.used == 0
