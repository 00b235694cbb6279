"""One call on a connection: what is sent, what has come, how it ended.

A call is a context: leaving it before the call is over cancels it on the wire (RST_STREAM), so a server stops working for
nobody. Deadlines are told to the server (`grpc-timeout`) and kept here as well, as a dead server keeps none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import TracebackType

from typing_extensions import Self

from modelreg.client.transport.connection import Connection
from modelreg.client.transport.messages import Whole, framed
from modelreg.client.transport.signals import Signal
from modelreg.client.transport.status import CallFailed
from modelreg.grpc.status import Code

BACKLOG_BYTES = 2 * 1024 * 1024
"""`Call.send` waits while more than this is queued."""

Metadata = Sequence[tuple[str, str]]

_MAX_TIMEOUT = 99_999_999


def grpc_timeout(seconds: float) -> bytes:
    """The `grpc-timeout` header: at most eight digits and a unit, rounded up (PROTOCOL-HTTP2.md)."""
    for unit, scale in ((b"u", 1e6), (b"m", 1e3), (b"S", 1.0), (b"M", 1 / 60)):
        amount = max(1, math.ceil(seconds * scale))
        if amount <= _MAX_TIMEOUT:
            return str(amount).encode() + unit
    return str(_MAX_TIMEOUT).encode() + b"M"


class Call:
    """A call that runs.

    Arguments:
        connection: that it's made on.
        fields: its headers.
        sink: takes the response's payload instead of `receive`; gets views that are valid during the call only. What it took
            is to be given back with `consumed`.
    """

    def __init__(
        self,
        connection: Connection,
        fields: Sequence[tuple[bytes, bytes]],
        sink: Callable[[memoryview], None] | None = None,
    ) -> None:
        self._connection = connection
        self._signal = Signal()
        self._whole = Whole()
        self._given_back = 0  # of the message that is due next
        self._stream = connection.open(fields)
        self._stream.deposit = sink or self._whole.feed
        self._stream.wake = self._signal.set

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.cancel(self._stream)

    @property
    def over(self) -> bool:
        """Whether the call has ended, well or not."""
        return self._stream.outcome is not None

    @property
    def delivered(self) -> bool:
        """Whether the server may have all of the request."""
        return self._stream.delivered

    def check(self) -> None:
        """Raise `CallFailed` when the call has ended with another status than OK."""
        outcome = self._stream.outcome
        if outcome is not None and outcome.code != Code.OK:
            raise CallFailed(outcome.code, outcome.message, delivered=self._stream.delivered, cut=outcome.cut)

    async def wait(self) -> None:
        """Until something has changed."""
        await self._signal.wait()

    async def send(self, *pieces: bytes | memoryview, end: bool = False) -> bool:
        """Send pieces of the request, and wait until most of what is queued is on its way. False when the call is over."""
        self._connection.send(self._stream, pieces, end=end)
        while self._stream.queued > BACKLOG_BYTES and not self.over:
            await self._signal.wait()
        return not self.over

    def send_last(self, message: bytes) -> None:
        """Send the only, or last, message."""
        self._connection.send(self._stream, [framed(message)], end=True)

    async def receive(self) -> bytes | None:
        """The next message of the response; None after the last. Raises `CallFailed`."""
        messages = self._whole.messages
        while not messages:
            if self.over:
                self.check()
                if not self._whole.complete:
                    raise CallFailed(Code.INTERNAL, "the answer ends within a message")
                return None
            if self._whole.begun > self._given_back:  # else one larger than the window would never be complete
                self.consumed(self._whole.begun - self._given_back)
                self._given_back = self._whole.begun
            await self._signal.wait()
        message = messages.popleft()
        self.consumed(len(message) + 5 - self._given_back)
        self._given_back = 0
        return message

    async def only(self) -> bytes:
        """The message of a response that has exactly one. Raises `CallFailed`."""
        message = await self.receive()
        if message is None or await self.receive() is not None:
            raise CallFailed(Code.INTERNAL, "the answer should be one message")
        return message

    def consumed(self, size: int) -> None:
        """Payload that a sink took has been dealt with."""
        self._connection.consumed(self._stream, size)
