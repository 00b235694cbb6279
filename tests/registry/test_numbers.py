from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelreg.errors import ResourceExhausted
from modelreg.registry.numbers import BLOCK, VersionNumbers
from modelreg.storage.layout import HIGHEST_NUMBER


class NeverTwice(RuleBasedStateMachine):
    """A model's numbers over commits of both kinds, failures, clean and unclean ends.

    What the disk holds is two attributes: the sidecars' numbers, and the ceiling.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sidecars: set[int] = set()
        self.ceiling_on_disk = 0
        self.heard_of: set[int] = set()
        self.under_way: dict[int, bool] = {}
        self.numbers = VersionNumbers(0, 0)

    @rule()
    def begin_stored(self) -> None:
        self.begin(stored=True)

    @rule()
    def begin_transient(self) -> None:
        if not self.numbers.reserved:
            ceiling = self.numbers.next_ceiling()
            self.ceiling_on_disk = ceiling
            self.numbers.ceiling = ceiling
        assert self.numbers.reserved
        self.begin(stored=False)

    def begin(self, *, stored: bool) -> None:
        number = self.numbers.take()
        assert number not in self.heard_of
        assert number not in self.under_way
        assert all(number > other for other in self.heard_of), "a watcher must not wait in vain"
        self.under_way[number] = stored

    @precondition(lambda self: self.under_way)
    @rule()
    def succeed(self) -> None:
        number = min(self.under_way)  # it's the first one's turn
        if self.under_way.pop(number):
            self.sidecars.add(number)
        self.heard_of.add(number)
        self.numbers.settle(number, given=True)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.under_way)))
        del self.under_way[number]
        self.numbers.settle(number, given=False)

    @rule(durable=st.booleans())
    def crash(self, durable: bool) -> None:
        """Whatever was under way is lost, or had just got its sidecar, which the next boot then finds."""
        self.sidecars |= {number for number, stored in self.under_way.items() if stored and durable}
        self.heard_of |= self.sidecars
        self.boot()

    @precondition(lambda self: not self.under_way)
    @rule()
    def end(self) -> None:
        if self.numbers.reserved:
            self.ceiling_on_disk = self.numbers.highest
        given = self.numbers.highest
        self.boot()
        assert max(self.heard_of, default=0) <= self.numbers.highest <= given, "a clean end makes no gap"

    def boot(self) -> None:
        self.under_way = {}
        self.numbers = VersionNumbers(max(self.sidecars, default=0), self.ceiling_on_disk)

    @invariant()
    def everything_heard_of_is_on_disk_in_one_way_or_the_other(self) -> None:
        assert all(number <= self.ceiling_on_disk or number in self.sidecars for number in self.heard_of)


TestNeverTwice = NeverTwice.TestCase
TestNeverTwice.settings = settings(max_examples=100, stateful_step_count=40)


def test_numbers_rise_by_one() -> None:
    numbers = VersionNumbers(0, 0)
    for expected in range(1, 2 * BLOCK):
        assert numbers.take() == expected
        numbers.settle(expected, given=True)
    assert numbers.highest == 2 * BLOCK - 1


def test_a_number_that_failed_is_taken_again() -> None:
    numbers = VersionNumbers(0, 0)
    assert numbers.take() == 1
    numbers.settle(1, given=False)
    assert numbers.take() == 1


def test_a_number_that_failed_below_others_is_a_gap() -> None:
    numbers = VersionNumbers(0, 0)
    assert [numbers.take(), numbers.take(), numbers.take()] == [1, 2, 3]
    numbers.settle(1, given=False)
    numbers.settle(2, given=True)
    numbers.settle(3, given=False)
    assert numbers.take() == 3


async def test_publication_in_order_of_numbers(nursery: trio.Nursery) -> None:
    numbers = VersionNumbers(0, 0)
    published: list[int] = []
    ready = {number: trio.Event() for number in range(1, 6)}

    async def commit(number: int) -> None:
        given = False
        try:
            await ready[number].wait()
            if number in {2, 4}:  # these fail
                return
            await numbers.turn(number)
            published.append(number)
            given = True
        finally:
            numbers.settle(number, given=given)

    for number in range(1, 6):
        assert numbers.take() == number
        nursery.start_soon(commit, number)
    expected: dict[int, list[int]] = {5: [], 3: [], 1: [1], 4: [1], 2: [1, 3, 5]}
    for number, seen in expected.items():
        ready[number].set()
        await trio.testing.wait_all_tasks_blocked()
        assert published == seen
    assert numbers.take() == 6


def test_the_last_number_there_is() -> None:
    numbers = VersionNumbers(HIGHEST_NUMBER - 1, 0)
    assert numbers.next_ceiling() == HIGHEST_NUMBER
    assert numbers.take() == HIGHEST_NUMBER
    with pytest.raises(ResourceExhausted, match="4294967295"):
        numbers.take()


@pytest.mark.parametrize(("highest", "ceiling"), [(HIGHEST_NUMBER, 0), (0, HIGHEST_NUMBER), (0, 2**40)])
def test_no_block_can_be_reserved_after_the_last_number(highest: int, ceiling: int) -> None:
    numbers = VersionNumbers(highest, ceiling)
    assert not numbers.reserved
    with pytest.raises(ResourceExhausted, match="4294967295"):
        numbers.next_ceiling()
