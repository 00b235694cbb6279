"""The request messages of a call, on their way from its stream to its handler.

A handler takes items one by one. Where all it does with data is to put it somewhere, it says where (`Requests.landing_in`), and
data then goes there without a turn of its task for each piece, or a copy on the way::

    socket ──► memory of the destination                    where a large frame of data is due   (`room`, `landed`)
    socket ──► receive buffer ──► memory of the destination any other                            (`take`)
    socket ──► receive buffer ──► inbox ──► handler         what is no data, or finds no room

All keep the order: nothing is landed while the handler has anything before it left to take.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import trio
import trio.lowlevel

from .buffers import Buffer
from .core import Core
from .messages import PAUSE, StreamedMessages, WholeMessages, invalid, parsed
from .signals import Signal
from .streams import SMALL_PAYLOAD, Stream

LAND_FROM = 64 * 1024
"""Data that is due, from which on it pays to receive it by itself where it goes: below, a copy costs less than a system call."""


class Destination(Protocol):
    """Where data goes. Neither method waits, nor raises."""

    def room(self, limit: int) -> memoryview | None:
        """Memory for up to `limit` bytes that come next; None where they have to go to the handler."""

    def filled(self, count: int) -> None:
        """So many bytes of that memory have been written, from its beginning."""


class LandsData(ABC):
    """Request messages whose data needn't pass through the handler: those of this transport.

    No Protocol: looking whether something is one takes 4 µs with Python 3.11.
    """

    @abstractmethod
    def landing_in(self, destination: Destination) -> AbstractContextManager[None]:
        """While it lasts, data goes to `destination` where it can; what it has no room for is an item, as before."""


class Requests(LandsData):
    """The request messages of a call, as an async iterator: protobuf messages, or the items of a `MessageDecoder`."""

    def __init__(
        self,
        core: Core,
        stream: Stream,
        messages: WholeMessages | StreamedMessages,
        turn_over: Callable[[], bool],
    ) -> None:
        self._core = core
        self._stream = stream
        self._messages = messages
        self._turn_over = turn_over
        self._signal = Signal()
        stream.wake_reader = self._signal.set
        self._items: Iterator[object] | None = None
        self._release: Callable[[], None] | None = None
        self._size = 0
        self._destination: Destination | None = None

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> object:
        stream = self._stream
        while True:
            items = self._items
            if items is not None:
                for item in items:
                    if self._turn_over():
                        await trio.lowlevel.checkpoint()
                    if item is not PAUSE:
                        return item
                self._let_go()
                self._core.consumed(stream, self._size)
            if stream.inbox:
                chunk, buffer = stream.inbox.popleft()
                self._size = size = len(chunk)
                stream.buffered -= size
                items = self._messages.decode(memoryview(chunk))
                if self._destination is None:
                    self._items = items
                    self._release = None if buffer is None else buffer.release
                    continue
                self._pass(items, size, buffer)
                if buffer is not None:
                    buffer.release()
                if self._turn_over():
                    await trio.lowlevel.checkpoint()
            elif stream.remote_ended:
                self._messages.finish()
                raise StopAsyncIteration
            else:
                stream.awaits_request = True
                await self._signal.wait()
                stream.awaits_request = False

    async def only(self, parse: Callable[[bytes], object]) -> object:
        """Parse the message of a call that takes exactly one, when the request has ended."""
        stream = self._stream
        if stream.remote_ended and len(stream.inbox) == 1 and self._items is None:
            assert isinstance(self._messages, WholeMessages)
            whole = self._messages.only(memoryview(stream.inbox[0][0]))
            if whole is not None:
                stream.drop_inbox()
                return parsed(parse, whole)
        try:
            body = await self.__anext__()
        except StopAsyncIteration:
            raise invalid("there is no request message") from None
        try:
            await self.__anext__()
        except StopAsyncIteration:
            assert isinstance(body, bytes)
            return parsed(parse, body)
        raise invalid("there is more than one request message")

    def close(self) -> None:
        """The handler takes no more."""
        self._let_go()
        self._messages.release()

    def _let_go(self) -> None:
        """Let go of the receive buffer."""
        self._items = None
        if self._release is not None:
            self._release()
            self._release = None

    # ---- past the handler -----------------------------------------------------------------------------------------

    @contextmanager
    def landing_in(self, destination: Destination) -> Iterator[None]:
        """While it lasts, data goes to `destination` where it can; what it has no room for is an item, as before.

        Only a `MessageDecoder` tells what is data: without one, all messages are items.
        """
        if isinstance(self._messages, StreamedMessages):
            self._destination = destination
            self._stream.landing = self
        try:
            yield
        finally:
            self._destination = self._stream.landing = None

    @property
    def _all_taken(self) -> bool:
        """Whether the handler has nothing left to take."""
        return self._items is None and not self._stream.inbox

    def room(self, limit: int) -> memoryview | None:
        """Memory for up to `limit` bytes of payload that are due; to be filled at once, and told to `landed`."""
        messages = self._messages
        if self._destination is None or isinstance(messages, WholeMessages) or not self._all_taken:
            return None
        limit = min(limit, messages.data_left)
        return self._destination.room(limit) if limit >= LAND_FROM else None

    def landed(self, count: int) -> None:
        """So many bytes of payload are where `room` has said."""
        assert self._destination is not None
        assert isinstance(self._messages, StreamedMessages)
        self._destination.filled(count)
        self._pass(self._messages.skip(count), count, None)

    def take(self, payload: memoryview, buffer: Buffer | None) -> bool:
        """Let data among the payload land, and have the handler see the rest. False where it has to wait in the inbox."""
        if self._destination is None or not self._all_taken:
            return False
        copied = len(payload) < SMALL_PAYLOAD or (buffer is not None and buffer.pool.crowded)
        self._pass(
            self._messages.decode(memoryview(bytes(payload)) if copied else payload),
            len(payload),
            None if copied else buffer,
        )
        return True

    def _pass(self, items: Iterator[object], size: int, buffer: Buffer | None) -> None:
        try:
            for item in items:
                rest = self._land(item) if isinstance(item, memoryview) else item
                if rest is not None:
                    self._hand_over(itertools.chain((rest,), items), size, buffer)
                    return
        except Exception as error:  # noqa: BLE001  # bytes that can't be decoded: the handler's to hear of
            self._hand_over(map(_raise, (error,)), size, buffer)
            return
        self._core.consumed(self._stream, size)

    def _land(self, data: memoryview) -> memoryview | None:
        """Copy data to the destination; what finds no room."""
        destination = self._destination
        assert destination is not None
        while data:
            room = destination.room(len(data))
            if room is None:
                return data
            size = len(room)
            room[:] = data[:size]
            destination.filled(size)
            data = data[size:]
        return None

    def _hand_over(self, items: Iterator[object], size: int, buffer: Buffer | None) -> None:
        self._items = items
        self._size = size
        if buffer is not None:
            buffer.refs += 1
            self._release = buffer.release
        self._signal.set()


def _raise(error: Exception) -> object:
    raise error
