"""One call: from its request to its status.

A call runs in a task of its own under a cancel scope. Four things cancel it: the client resets the stream, the connection
is lost, the deadline passes, the server stops. The handler really ends then, its async generators are closed, and only
after that the status (if anybody is left to read it) is sent.

What a handler raises becomes the call's status here and nowhere else: `RpcFailedError` as it is, an error that
`Failures.as_status` knows as what that says, either also as the only exception in a group; anything else is a bug, is logged with its traceback, and the client sees INTERNAL "internal error".
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, cast

import attrs
import trio
import trio.lowlevel

from modelreg.grpc.status import Code

from ._purerpc import Method, RpcFailedError, status_of
from .buffers import Allowance
from .core import Core, Message
from .faults import ConnectionFault
from .files import FileMessage
from .intake import Requests
from .messages import MessageDecoder, StreamedMessages, WholeMessages
from .pieces import LoadedMessage, PiecewiseMessage
from .reply_memory import Gate
from .requests import Request
from .signals import Signal
from .streams import Stream

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

STREAM_BACKLOG = 64 * 1024
"""A reply generator is asked for more while less than this is queued for its stream ..."""

CONNECTION_BACKLOG = 256 * 1024
"""... and less than this for the whole connection. Beyond it a stream has at most one message queued."""


class Logger(Protocol):
    """What is asked of a logger: structlog's, or the standard library's."""

    def exception(self, event: str, /, *args: object, exc_info: BaseException) -> object:
        """Log an error with the traceback of `exc_info`."""


class Serializable(Protocol):
    """A reply: a protobuf message."""

    def SerializeToString(self) -> bytes: ...


@attrs.frozen
class Failures:
    """What becomes of calls that raise.

    Attributes:
        logger: takes the bugs, with their tracebacks.
        as_status: makes an `RpcFailedError` of other errors that tell a status; None of a bug.
        told: hears of each status that a call has raised, by its number and message.
    """

    logger: Logger
    as_status: Callable[[BaseException], Exception | None]
    told: Callable[[Request, int, str], object]

    def end(self, error: BaseException, core: Core, stream: Stream) -> None:
        """End a call with what was raised for it, behind what it has sent."""
        single = error
        while isinstance(single, BaseExceptionGroup) and len(single.exceptions) == 1:
            single = single.exceptions[0]
        failed = single if isinstance(single, RpcFailedError) else self.as_status(single)
        if failed is not None:
            code, message = status_of(failed)
            self.told(stream.request, code, message)
            core.finish(stream, code, message)
            return
        self.logger.exception(  # noqa: LOG004 - called where it was caught
            "a handler raised an exception: %s", stream.request.path, exc_info=error
        )
        core.finish(stream, Code.INTERNAL.value, "internal error")


class Call:
    """A call that runs. `cancel` ends it with a status, or without where nobody can be told."""

    def __init__(
        self,
        core: Core,
        gate: Gate,
        stream: Stream,
        method: Method,
        decoder: Callable[[], MessageDecoder] | None,
        max_message_bytes: int,
        allowance: Allowance,
        turn_over: Callable[[], bool],
        failures: Failures,
    ) -> None:
        self.stream = stream
        self._core = core
        self._gate = gate
        self._method = method
        self.replied_at = float("inf")  # when its only reply was queued
        self._decoder = decoder
        self._max_message_bytes = max_message_bytes
        self._allowance = allowance
        self._turn_over = turn_over
        self._failures = failures
        self._incomplete = False
        self._room = Signal()
        stream.wake_sender = self._room.set
        timeout = stream.request.timeout
        self._scope = trio.CancelScope(deadline=float("inf") if timeout is None else trio.current_time() + timeout)
        self._verdict: tuple[Code, str] = (Code.DEADLINE_EXCEEDED, "the call's deadline is over")

    def cancel(self, code: Code, message: str) -> None:
        """Stop the handler; the status is for a client that is still there."""
        self._verdict = (code, message)
        self._scope.cancel()

    async def run(self) -> None:
        """Run the handler and send what it gives. Nothing but cancellation from outside ever comes out of this."""
        stream = self.stream
        core = self._core
        try:
            with self._scope:
                try:
                    await self._handle()
                except (trio.Cancelled, ConnectionFault):
                    raise
                except BaseExceptionGroup as group:
                    cancelled, rest = group.split(trio.Cancelled)
                    if rest is not None:
                        if not isinstance(rest, Exception):  # KeyboardInterrupt and its like are not ours
                            raise
                        self._failures.end(rest, core, stream)
                    if cancelled is not None:
                        raise cancelled from None
                except Exception as error:  # noqa: BLE001 - a bug in a handler costs its call, nothing else
                    self._failures.end(error, core, stream)
                await self._sent()
            if self._scope.cancelled_caught and not stream.closed:
                core.withdraw(stream)
                core.finish(stream, self._verdict[0].value, self._verdict[1])
        finally:
            if not (stream.closed or stream.sent or stream.trailers):
                core.withdraw(stream)
            self._gate.open()

    async def _handle(self) -> None:
        method = self._method
        request = self.stream.request
        requests = Requests(self._core, self.stream, self._messages(), self._turn_over)
        try:
            argument: object = requests if method.request_stream else await requests.only(method.parse)
            if method.reply_stream:
                async with aclosing(method.function(argument, request=request)) as replies:
                    await self._gate.wait()  # a reply that's there takes memory, too
                    async for reply in replies:
                        self._raise_incomplete()
                        await self._send(reply)
                        if not self._gate.is_open:
                            await self._gate.wait()
                self._raise_incomplete()
                self._core.finish(self.stream, 0, "")
            else:
                handling = cast(Awaitable[object], method.function(argument, request=request))
                argument = None
                reply = await handling
                requests.close()  # the request is of no use any more, and the reply may have to wait
                self._core.reply(self.stream, await self._made(reply))
                self.replied_at = trio.current_time()
        finally:
            requests.close()

    def _messages(self) -> WholeMessages | StreamedMessages:
        encoding = self.stream.request.message_encoding
        if self._decoder is None:
            # A single message is parsed when the request has ended: parsed, it may be ten times as large.
            parse = self._method.parse if self._method.request_stream else bytes
            return WholeMessages(parse, encoding, self._max_message_bytes, self._allowance)
        self.stream.wants_window = True
        return StreamedMessages(self._decoder(), encoding, self._allowance)

    async def _send(self, reply: object) -> None:
        """Queue one message of a reply; returns when there is room for the next one."""
        stream = self.stream
        core = self._core
        message = await self._made(reply)
        core.send_message(stream, message)
        if isinstance(message, FileMessage):
            try:
                await self._sent()
            except BaseException:
                core.withdraw(stream)  # now, as the handler will close its file next
                raise
            if stream.file is not None and stream.file.truncated:
                message.complete = False
                self._incomplete = True
            return
        while stream.out_bytes and (stream.out_bytes > STREAM_BACKLOG or core.outbound.buffered > CONNECTION_BACKLOG):
            await self._room.wait()
        if self._turn_over():
            await trio.lowlevel.checkpoint()

    def _raise_incomplete(self) -> None:
        """Raise for a handler that has gone on after an incomplete message."""
        if self._incomplete:
            raise EOFError("a file was shorter than its message, or could not be read")

    async def _made(self, reply: object) -> Message:
        """Make the bytes of a reply when there is memory for them; the caller queues them at once."""
        if isinstance(reply, PiecewiseMessage):
            chunks = await self._gate.make(reply)
            return chunks if len(chunks) > 1 else chunks[0]
        if isinstance(reply, FileMessage):
            return reply
        if isinstance(reply, LoadedMessage):
            return await self._gate.load(reply)
        if not self._gate.is_open:
            await self._gate.wait()
        return cast(Serializable, reply).SerializeToString()

    async def _sent(self) -> None:
        """Wait until everything queued has been handed to the kernel, or never will be."""
        while not self.stream.sent:
            await self._room.wait()
