from __future__ import annotations

import pytest

from modelreg.transport.limits import Limits, Meter


def test_limits_have_sense() -> None:
    for wrong in (
        {"max_connections": 0},
        {"max_frame_bytes": 100},
        {"max_frame_bytes": 2**24},
        {"handshake_timeout": -1.0},
    ):
        with pytest.raises(ValueError):
            Limits(**wrong)


def test_a_burst_and_then_the_rate() -> None:
    meter = Meter(10, 2)
    assert [meter.take(100.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [meter.take(101.0) for _ in range(3)] == [True, True, False]
    assert not meter.take(101.4)
    assert meter.take(101.9)


def test_tokens_never_exceed_the_burst() -> None:
    meter = Meter(10, 2)
    meter.give(100)
    assert sum(meter.take(0.0) for _ in range(20)) == 10
    assert sum(meter.take(1000.0) for _ in range(20)) == 10


def test_work_gives_tokens() -> None:
    meter = Meter(1, 0.001)
    for _ in range(100):
        assert meter.take(0.0)
        meter.give(1)
