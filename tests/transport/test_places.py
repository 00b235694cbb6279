"""Which connections make way for others."""

from __future__ import annotations

import attrs
import pytest

from modelreg.transport.places import Places, host_of


@attrs.define(eq=False)
class Guest:
    host: str = "here"
    has_place: bool = False
    told: str = ""

    def make_way(self) -> None:
        self.told = "make way"

    def close_now(self) -> None:
        self.told = "closed"


def entered(places: Places[Guest], *hosts: str, busy: bool = True) -> list[Guest]:
    guests = [Guest(host) for host in hosts]
    for guest in guests:
        places.enter(guest)
        if busy:
            places.busy(guest)
    return guests


def test_one_that_never_made_a_call_goes_first_and_the_oldest_of_them() -> None:
    places: Places[Guest] = Places(4)
    (called,) = entered(places, "a")
    places.idle(called)
    silent = entered(places, "b", "b", "b", busy=False)
    (new,) = entered(places, "c")
    assert new.has_place
    assert [guest.told for guest in silent] == ["closed", "", ""]
    assert not called.told


def test_the_longest_idle_goes_next_and_none_with_a_call() -> None:
    places: Places[Guest] = Places(3)
    first, second, third = entered(places, "a", "a", "a")
    places.idle(second)
    places.idle(first)
    entered(places, "b")
    assert (first.told, second.told, third.told) == ("", "make way", "")
    entered(places, "b")
    assert (bool(first.told), third.told) == (True, "")


def test_a_crowd_makes_way_for_others_and_the_newest_of_it() -> None:
    places: Places[Guest] = Places(4)
    guests = entered(places, "crowd", "other", "crowd", "crowd")
    (new,) = entered(places, "third")
    assert new.has_place
    assert [guest.told for guest in guests] == ["", "", "", "make way"]
    (newer,) = entered(places, "third")  # half of the places is no crowd
    assert not newer.has_place


def test_a_crowd_does_not_make_way_for_itself() -> None:
    places: Places[Guest] = Places(2)
    guests = entered(places, "crowd", "crowd", "crowd")
    assert [guest.has_place for guest in guests] == [True, True, False]
    assert not any(guest.told for guest in guests)


def test_those_without_a_place_get_one_when_it_is_free_or_go_for_newer_ones() -> None:
    places: Places[Guest] = Places(16)
    crowd = entered(places, *["crowd"] * 16)
    waiting = entered(places, "crowd", "crowd", "crowd")  # two may be there without a place
    assert [guest.told for guest in waiting] == ["make way", "", ""]
    assert not places.claim(waiting[1])
    assert not places.claim(waiting[0])
    places.leave(crowd[0])
    assert waiting[1].has_place
    places.busy(waiting[1])
    places.idle(crowd[1])
    assert places.claim(waiting[2])
    assert crowd[1].told == "make way"


def test_those_that_are_slow_to_close_are_closed() -> None:
    places: Places[Guest] = Places(8)
    guests = entered(places, *["here"] * 8)
    for guest in guests:
        places.idle(guest)
    entered(places, "here", "here")
    assert [guest.told for guest in guests[:3]] == ["closed", "make way", ""]


def test_leaving_gives_everything_back() -> None:
    places: Places[Guest] = Places(8)
    for _ in range(3):
        guests = entered(places, *["here"] * 12)
        for guest in guests:
            places.leave(guest)
    assert all(guest.has_place for guest in entered(places, *["here"] * 8))


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("10.0.0.1:4000", "10.0.0.1"),
        ("[2001:db8:1:2:3::4]:4000", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]:1", "fe80::/64"),
        ("unix", ""),
        ("", ""),
    ],
)
def test_the_host_of_a_peer(peer: str, host: str) -> None:
    assert host_of(peer) == host
