from __future__ import annotations

from modelreg.transport.buffers import Allowance, BufferPool


def test_a_buffer_comes_back_with_its_last_reference() -> None:
    pool = BufferPool(size=1024)
    buffer = pool.take()
    buffer.refs += 1
    buffer.release()
    assert pool.take() is not buffer
    buffer.release()
    assert pool.take() is buffer
    assert buffer.refs == 1


def test_only_some_are_kept() -> None:
    pool = BufferPool(size=16, keep=2)
    buffers = [pool.take() for _ in range(5)]
    for buffer in buffers:
        buffer.release()
    again = [pool.take() for _ in range(5)]
    assert sum(buffer in buffers for buffer in again) == 2


def test_bytes_are_lent_as_long_as_there_are_any() -> None:
    pool = Allowance(100)
    assert [pool.take(60), pool.take(60), pool.take(60)] == [60, 40, 0]
    pool.give(50)
    assert pool.take(60) == 50
