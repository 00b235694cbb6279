from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelreg.registry.index import WALK, VersionIndex
from modelreg.registry.records import VersionInfo


def version(number: int) -> VersionInfo:
    return VersionInfo(
        model_id="m", number=number, timestamp=number, stored=True, digest=bytes(32), size=0, user_data={}
    )


class IndexBesideList(RuleBasedStateMachine):
    """Against a list of the versions in order."""

    def __init__(self) -> None:
        super().__init__()
        self.index = VersionIndex()
        self.model: list[VersionInfo] = []
        self.given = 0

    @rule(gap=st.integers(1, 4))
    def add(self, gap: int) -> None:
        self.given += gap
        self.index.add(version(self.given))
        self.model.append(version(self.given))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.model))
        self.index.remove(gone.number)
        self.model.remove(gone)

    @rule()
    def restart(self) -> None:
        self.index = VersionIndex(reversed(self.model))

    @rule(number=st.integers(-20, 60))
    def find(self, number: int) -> None:
        if number < 0:
            expected = self.model[number] if -number <= len(self.model) else None
        else:
            expected = next((one for one in self.model if one.number == number), None)
        assert self.index.find(number) == expected

    @rule(number=st.integers(0, 60))
    def after(self, number: int) -> None:
        assert self.index.after(number) == next((one for one in self.model if one.number > number), None)

    @rule(first=st.integers(0, 60))
    def walk(self, first: int) -> None:
        assert list(self.index.walk(first)) == [one for one in self.model if one.number >= first]

    @invariant()
    def agree(self) -> None:
        assert len(self.index) == len(self.model)
        assert list(self.index) == self.model
        assert self.index.newest == (self.model[-1] if self.model else None)

    @invariant()
    def somebody_who_follows_sees_everything(self) -> None:
        seen = []
        following = self.index.after(0)
        while following is not None:
            seen.append(following)
            following = self.index.after(following.number)
        assert seen == self.model


TestIndexBesideList = IndexBesideList.TestCase
TestIndexBesideList.settings = settings(max_examples=60, stateful_step_count=30)


def test_versions_come_in_order() -> None:
    index = VersionIndex([version(5)])
    for number in (4, 5):
        with pytest.raises(AssertionError):
            index.add(version(number))


def test_nought_is_no_version() -> None:
    assert VersionIndex([version(1)]).find(0) is None


def test_a_walk_leaves_out_none_that_stays() -> None:
    index = VersionIndex(map(version, range(1, 2 * WALK + 1)))
    walk = index.walk(2)
    seen = [next(walk).number]
    for number in (1, 3, WALK + 1, WALK + 2, 2 * WALK):
        index.remove(number)
    index.add(version(2 * WALK + 1))
    seen += [one.number for one in walk]
    assert {one.number for one in index} <= {1, *seen}
    assert seen == sorted(set(seen))
    assert 2 * WALK not in seen


def test_the_last_of_those_that_are_left() -> None:
    index = VersionIndex(map(version, [1, 2, 3]))
    index.remove(3)
    found = index.find(-1)
    assert found is not None
    assert found.number == 2
    assert index.find(-3) is None


def test_a_version_by_its_number() -> None:
    index = VersionIndex(map(version, [1, 7]))
    assert index[7].number == 7
    with pytest.raises(KeyError):
        index[2]
