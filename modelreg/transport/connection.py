"""A connection's tasks: one reader, one writer, and a task for each call, in one nursery.

    reader ── receive_into ─► Core ─► calls
    calls ──► Core ─► writer ── send ─► socket

The reader hands everything to the core and starts and cancels calls as the core says. The writer is the only one to use
the socket's sending side. Neither ever waits for a call. When the nursery ends, everything of the connection has ended:
its calls, their generators, its buffers, its socket.

Nothing comes out of `run` but cancellation: a connection that fails is a line in the log and no harm to others.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import trio
import trio.lowlevel

from modelreg.grpc.status import Code

from ._purerpc import Method
from .buffers import Allowance, Buffer, BufferPool
from .calls import Call, Failures
from .core import Core
from .faults import ConnectionFault, ErrorCode
from .limits import PROGRESS, CallQuota, Limits
from .messages import MessageDecoder
from .outbound import Plan
from .places import Places, host_of
from .reply_memory import Gate, ReplyMemory
from .requests import Request
from .signals import Signal
from .streams import Stream
from .turns import Share, Turns
from .wire import LOST, prefetch, wire_for

CONGESTED = 1 << 20
"""Bytes of urgent frames that a peer may leave unread before nothing more is read from it."""

BEHIND = 4096
"""What is received of what comes behind a payload that has gone where it goes: the beginning of the next, as a rule."""

UNREAD_REPLY = 10.0
"""Seconds that a reply may keep its memory with nothing of it being read, while others wait for memory."""

SLOW_REPLY = 30.0
"""Seconds that a single reply may keep its memory while it's read and others wait: 64 MiB in that time are 2 MB/s."""

LINGER_BYTES = 256 * 1024
"""What is still read, and dropped, from a peer that was told GOAWAY."""

DRAIN_PATIENCE = 1.0
"""Seconds a draining client has to answer the PING between the two GOAWAY frames."""

HEALTH_CHECKS_BEYOND = 256
"""Health checks that may run when there are as many other calls as may."""

LEAVING_PATIENCE = 4.0
"""Seconds that a connection has to close when another one needs its place."""

FLUSH_TIMEOUT = 2.0
"""Seconds for the last frames of a connection, GOAWAY among them, and for the peer to close its side after them."""


SHOWN_PATH = 100
"""Characters of an unknown method's name that its caller is told."""


class Shared:
    """What all connections of a server have in common."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        streamed: Mapping[str, Callable[[], MessageDecoder]],
        admit: Callable[[Request], None] | None,
        health_checks: Container[str],
        open_paths: Container[str],
        limits: Limits,
        failures: Failures,
    ) -> None:
        self.methods = methods
        self.streamed = streamed
        self.admit = admit
        self.health_checks = health_checks
        self.open_paths = open_paths
        self.limits = limits
        self.failures = failures
        self.logger = failures.logger
        self.buffers = BufferPool(plenty=limits.receive_pool)
        self.windows = Allowance(limits.window_pool)
        self.headers = Allowance(limits.header_pool)
        self.messages = Allowance(max(limits.message_pool, limits.max_message_bytes))
        self.replies = ReplyMemory(limits)
        self.prefetches = trio.CapacityLimiter(4)
        self.turns = Turns()
        self.places: Places[Connection] = Places(limits.max_connections)
        self.quota = CallQuota(limits.max_calls)
        self.calls_total = 0


class Connection:
    """One client."""

    def __init__(self, stream: trio.abc.Stream, shared: Shared) -> None:
        self._shared = shared
        self.wire = wire_for(stream)
        self.core = Core(shared.limits, shared.windows, shared.headers, shared.replies, self.wire.peer)
        self.calls: dict[int, Call] = {}
        self._weighty_calls = 0  # those that keep the connection its place
        self.host = host_of(self.wire.peer)
        self.has_place = False
        self._writable = Signal()
        self._drained = Signal()  # the writer has sent what congested the connection
        self.core.outbound.wake = self._writable.set
        self.core.refused = shared.failures.told
        self._nursery: trio.Nursery | None = None
        self._turns = shared.turns
        self._share = Share()
        self._gate = Gate(self.core.outbound, shared.replies)
        self._plan: Plan | None = None  # what is being written
        self._flushed = trio.Event()  # the last byte was written
        self._failed = False
        self._over = False  # nothing is read any more, and no task may be started
        self._began = self._heard = self._busy = trio.current_time()
        self._partial_since: float | None = None  # since when the rest of a frame is due,
        self._partial_of = 0  # and which frame that is
        self._drain_began: float | None = None
        self._leaves_by = float("inf")
        self._pinged = 0.0

    async def run(self) -> None:
        """Serve until either side ends it."""
        await self._turns.run(self._share, self._serve)

    async def _serve(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._shared.places.enter(self)
                nursery.start_soon(self._turns.run, self._share, self._write)
                try:
                    await self._read()
                except ConnectionFault as fault:
                    await self._end(fault)
                finally:
                    self._over = True
                await self._stop_calls(Code.CANCELLED, "the connection is closed")
                nursery.cancel_scope.cancel()
        except Exception as error:
            self._shared.logger.exception("a connection failed", exc_info=error)
        finally:
            if self._plan is not None:
                self.core.outbound.done(self._plan)
            self.core.close()
            with trio.CancelScope(shield=True):
                await self.wire.aclose()

    # ---- in -------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        core = self.core
        wire = self.wire
        pool = self._shared.buffers
        buffer = pool.take()
        used = 0
        rested = True  # have other tasks had their turn since something was taken in?
        try:
            while True:
                if core.outbound.urgent_bytes > CONGESTED:
                    await self._drained.wait()
                    continue
                if buffer.refs == 1:
                    used = 0
                elif pool.size - used < pool.size // 4:
                    buffer.release()
                    buffer = pool.take()
                    used = 0
                room = core.room()
                if room is None:
                    count = wire.receive_into(buffer.view[used:])
                else:
                    count = wire.receive_into(room, buffer.view[used : used + BEHIND])
                if count is None:
                    rested = True
                    if buffer.refs > 1:
                        await wire.wait_readable()
                    else:  # a connection that waits needs no buffer
                        buffer.release()
                        try:
                            await wire.wait_readable()
                        finally:
                            buffer = pool.take()
                    continue
                if count == 0:
                    return
                if room is not None:
                    size = min(count, len(room))
                    self._heard = trio.current_time()
                    core.landed(size, self._heard)
                    self._start_calls()
                    count -= size
                if not rested or self._turns.over():
                    await trio.lowlevel.checkpoint()
                    rested = True
                if count:
                    data = buffer.view[used : used + count]
                    used += count
                    await self._received(data, buffer)
                    rested = buffer.refs > 1
                    if rested:  # let the handlers have what was received, then its memory can be used again
                        await trio.lowlevel.checkpoint()
        except LOST:
            pass
        finally:
            buffer.release()

    async def _received(self, data: memoryview, buffer: Buffer) -> None:
        core = self.core
        self._heard = now = trio.current_time()
        while True:
            taken = core.receive(data, buffer, now)
            self._start_calls()
            if taken == len(data) and not core.unfinished:
                break
            data = data[taken:]
            if self._turns.over():
                await trio.lowlevel.checkpoint()
        if not core.splitter.inside_control:
            self._partial_since = None
        elif self._partial_since is None or core.splitter.completed != self._partial_of:
            self._partial_since = now
            self._partial_of = core.splitter.completed

    def _start_calls(self) -> None:
        core = self.core
        shared = self._shared
        nursery = self._nursery
        assert nursery is not None
        for stream in core.take_gone():
            call = self.calls.get(stream.id)
            if call is not None:
                call.cancel(Code.CANCELLED, "the stream was reset")
        for stream in core.take_opened():
            if len(self.calls) >= shared.limits.max_concurrent_streams:
                core.refuse(stream)
                continue
            if not self._admits(stream):
                continue
            path = stream.request.path
            if path not in shared.health_checks and not shared.places.claim(self):
                most = shared.limits.max_connections
                reason = (
                    f"the server has as many connections as it may have ({most}, --max_connections): try again later"
                )
                core.finish(stream, Code.UNAVAILABLE.value, reason)
                self.drain()
                continue
            method = shared.methods.get(path)
            if method is None:
                core.finish(stream, Code.UNIMPLEMENTED.value, f"there is no method {_shown(path[1:])}")
                continue
            if not shared.quota.take(self.host, HEALTH_CHECKS_BEYOND if path in shared.health_checks else 0):
                reason = (
                    f"as many calls run as may ({shared.limits.max_calls}, half of them from one address, --max_calls): "
                    "try again later"
                )
                core.finish(stream, Code.RESOURCE_EXHAUSTED.value, reason)
                continue
            decoder = shared.streamed.get(path)
            limit = shared.limits.max_message_bytes
            call = Call(
                core,
                self._gate,
                stream,
                method,
                decoder,
                limit,
                shared.messages,
                self._turns.over,
                shared.failures,
            )
            if path not in shared.open_paths:
                self._weighty_calls += 1
                shared.places.busy(self)
            elif not self._weighty_calls:
                shared.places.idle(self)
            self.calls[stream.id] = call
            shared.calls_total += 1
            nursery.start_soon(self._turns.run, self._share, self._run, call, name=path)

    def _admits(self, stream: Stream) -> bool:
        """Ask who calls, before anything is done for the call. A client that may not call gets its answer here."""
        shared = self._shared
        if shared.admit is not None:
            try:
                shared.admit(stream.request)
            except Exception as error:  # noqa: BLE001 - a bug costs the call, nothing else
                shared.failures.end(error, self.core, stream)
                return False
        return True

    async def _run(self, call: Call) -> None:
        try:
            await call.run()
        except ConnectionFault as fault:
            self._shared.logger.exception("a connection failed", exc_info=fault)
            self._cancel()
        finally:
            del self.calls[call.stream.id]
            self._shared.quota.give(self.host)
            if call.stream.request.path not in self._shared.open_paths:
                self._weighty_calls -= 1
            if not self._weighty_calls:
                self._shared.places.idle(self)
            if not self.calls:
                self._busy = trio.current_time()
                self._writable.set()

    # ---- out ------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        outbound = self.core.outbound
        wire = self.wire
        try:
            while True:
                congested = outbound.urgent_bytes > CONGESTED
                self._plan = plan = outbound.next_plan()
                if outbound.cold:
                    self._warm()
                if plan is None:
                    if self._finished():
                        break
                    await self._writable.wait()
                    continue
                await wire.send(plan)
                self._plan = None
                outbound.done(plan)
                self._gate.open()
                if congested:
                    self._drained.set()
                if plan.has_files:
                    self._drop_truncated(plan)
                if outbound.ready or outbound.urgent:
                    await trio.lowlevel.checkpoint()
            # Everything is said. The peer closes its side when it has read that, which ends the reader.
            await wire.finish()
            self._flushed.set()
            await trio.sleep(FLUSH_TIMEOUT)
        except LOST:
            await self._stop_calls(Code.CANCELLED, "the connection is lost")
        except ConnectionFault as fault:
            self._shared.logger.exception("a connection failed", exc_info=fault)
        self._cancel()

    def _finished(self) -> bool:
        """Whether nothing more will ever be sent."""
        core = self.core
        if self._failed:
            return True
        return not self.calls and not core.streams and (core.drained or core.peer_leaves)

    def _drop_truncated(self, plan: Plan) -> None:
        """Reset streams whose file was shorter than its message, where their status has been chosen already."""
        for stream in plan.streams:
            if stream.trailers is not None and stream.file is not None and stream.file.truncated:
                self.core.abort(stream, ErrorCode.INTERNAL_ERROR)
        self._start_calls()

    def _warm(self) -> None:
        assert self._nursery is not None
        for stream in self.core.outbound.cold:
            self._nursery.start_soon(self._turns.run, self._share, self._prefetch, stream)
        self.core.outbound.cold.clear()

    async def _prefetch(self, stream: Stream) -> None:
        if stream.file is not None and stream.out_bytes:
            await prefetch(stream.file, self._shared.prefetches)
        stream.parked = False
        self.core.outbound.resume(stream)

    # ---- the end --------------------------------------------------------------------------------------------------

    async def _end(self, fault: ConnectionFault) -> None:
        """The peer broke the rules: tell it, stop its calls, and give it a moment to read why.

        A socket that is closed with unread bytes makes the peer forget what it has not read, so some are taken in.
        """
        self._failed = True
        self.core.fail(fault.code, str(fault))
        await self._stop_calls(Code.UNAVAILABLE, "the connection is closed")
        with trio.move_on_after(FLUSH_TIMEOUT):
            await self._flushed.wait()
            memory = memoryview(bytearray(LINGER_BYTES))
            try:
                while memory:
                    count = self.wire.receive_into(memory)
                    if count is None:
                        await self.wire.wait_readable()
                    elif count == 0:
                        return
                    else:
                        memory = memory[count:]
            except LOST:
                pass

    async def _stop_calls(self, code: Code, message: str) -> None:
        """Cancel the calls, a few at a time: there may be thousands."""
        for call in list(self.calls.values()):
            call.cancel(code, message)
            if self._turns.over():
                await trio.lowlevel.checkpoint()

    def _cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def drain(self) -> None:
        """No more calls; close when those that run are done."""
        if self._drain_began is None:
            self._drain_began = trio.current_time()
            if self.core.splitter.established:
                self.core.begin_drain()
            else:
                self._cancel()

    def stop_calls(self, reason: str = "the server is stopping") -> None:
        """The grace is over: UNAVAILABLE for those that still run."""
        self.core.end_drain()
        for call in self.calls.values():
            call.cancel(Code.UNAVAILABLE, reason)

    def make_way(self) -> None:
        """Close soon: another connection needs the place."""
        self._leaves_by = trio.current_time() + LEAVING_PATIENCE
        self.drain()
        if self.calls:
            self.stop_calls("the server has too many connections (--max_connections): another one needs the place")

    def close_now(self) -> None:
        """Close at once."""
        self._cancel()

    # ---- the clock ------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Called about once a second: everything that ends a connection because of time. It raises nothing, as it's the clock of all."""
        if self._over:
            return
        try:
            if self._is_dead(now):
                self._cancel()
                return
            self._check_peer(now)
            self._check_calls(now)
        except Exception as error:
            self._shared.logger.exception("a connection failed", exc_info=error)
            self._cancel()

    def _check_peer(self, now: float) -> None:
        limits = self._shared.limits
        core = self.core
        if core.ping_pending:
            if self._heard >= self._pinged:
                core.ping_pending = False
        elif now - self._heard > limits.keepalive_interval:
            self._pinged = now
            core.ping()
        if self._drain_began is not None and now - self._drain_began >= DRAIN_PATIENCE:
            core.end_drain()
        elif not self.calls and now - self._busy > limits.idle_timeout:
            self.drain()

    def _check_calls(self, now: float) -> None:
        timeout = self._shared.limits.stall_timeout
        for call in self.calls.values():
            if call.stream.is_stalled(now, timeout):
                call.cancel(
                    Code.DEADLINE_EXCEEDED,
                    f"the client {'took' if call.stream.out_bytes else 'sent'} less than {PROGRESS} bytes "
                    f"in {timeout:g} seconds: the server waits no longer (--stall_timeout)",
                )

    def end_slow_replies(self, now: float) -> None:
        """Give the memory of replies that aren't read to those that wait for it."""
        for call in list(self.calls.values()):
            stream = call.stream
            if not stream.out_bytes or stream.file is not None:
                continue
            if stream.is_stalled(now, UNREAD_REPLY) or now - call.replied_at > SLOW_REPLY:
                call.cancel(
                    Code.RESOURCE_EXHAUSTED,
                    "the reply was read too slowly while others waited for its memory: ask for less at once",
                )

    def _is_dead(self, now: float) -> bool:
        limits = self._shared.limits
        if now > self._leaves_by:
            return True
        if not self.core.splitter.established:
            return now - self._began > limits.handshake_timeout
        if self._partial_since is not None and now - self._partial_since > limits.handshake_timeout:
            return True
        blocked = self.wire.blocked_since
        if blocked is not None and now - blocked > limits.socket_stall_timeout:
            return True
        return self.core.ping_pending and self._heard < self._pinged and now - self._pinged > limits.keepalive_timeout


def _shown(path: str) -> str:
    """A path as it is shown in a message: a client chooses its length."""
    return path if len(path) <= SHOWN_PATH else path[:SHOWN_PATH] + "..."
