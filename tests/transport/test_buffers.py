from __future__ import annotations

from modelreg.transport.buffers import Account, Allowance, BufferPool
from modelreg.transport.requests import NO_REQUEST
from modelreg.transport.streams import Stream


class Handle:
    outbound_flow_control_window = 65535


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


def test_the_first_bytes_of_an_account_are_not_borrowed() -> None:
    pool = Allowance(100)
    one, other = Account(pool, 10), Account(pool, 10)
    assert [one.take(5), one.take(20), one.take(90), other.take(95), other.take(11)] == [True, True, False, True, False]
    assert pool.left == 0
    one.give(20)
    assert pool.left == 15
    other.give(95)
    one.give(5)
    assert pool.left == 100


def test_payloads_that_wait_are_copied_when_many_buffers_are_lent_out() -> None:
    pool = BufferPool(size=16384, plenty=2 * 16384)
    streams = [Stream(number, Handle(), NO_REQUEST, 65535) for number in range(5)]
    for stream in streams:
        buffer = pool.take()
        stream.deposit(buffer.view[:8192], buffer)
        buffer.release()
    assert [type(stream.inbox[0][0]) for stream in streams] == [memoryview, memoryview, bytearray, bytearray, bytearray]
    assert not pool.crowded
