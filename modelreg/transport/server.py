"""The server: accepts connections, keeps the clock for them, and drains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

import attrs
import trio

from ._purerpc import Service, methods
from .calls import Failures, Logger
from .connection import Connection, Shared
from .limits import Limits
from .messages import MessageDecoder
from .requests import Request
from .turns import Share

ACCEPT_PAUSE = 0.1
"""Seconds without accepting after accept() has failed, as it does when descriptors or memory are used up."""

CLOCK_INTERVAL = 1.0
CLOSE_TIMEOUT = 2.0
"""Seconds for the last statuses after the grace of a drain."""


@attrs.frozen(kw_only=True)
class Statistics:
    """A snapshot. Bytes are counted at the socket, over all connections there ever were."""

    connections: int
    connections_total: int
    streams: int
    """Handlers that run."""
    streams_total: int
    bytes_received: int
    bytes_sent: int


class Server:
    """Serves purerpc services over HTTP/2.

    Arguments:
      services: purerpc `Service` objects.
      limits: the bounds of the server.
      streamed: for each path (`/package.Service/Method`) a factory of the `MessageDecoder` that replaces protobuf
        there.
      parsers: for each path what makes a request of a message's bytes, in place of protobuf. It may raise `RpcFailedError`.
      admit: looks at each request before a handler, or anything of the body, is; it passes, unless this raises.
      as_status: makes an `RpcFailedError` of an error that a handler, or `admit`, has raised; None of one that is a bug.
      health_checks: paths of methods that may be called when there are too many connections; they end soon, and need no token.
      open_paths: paths of methods that need no token. A connection with none but these is as good as idle when another one
        needs its place.
      failed: told of each call that ends with a status that it raised, by the number and the message of the status.
      logger: takes errors with their traceback; a structlog or standard logger.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        limits: Limits = Limits(),  # noqa: B008
        streamed: Mapping[str, Callable[[], MessageDecoder]] | None = None,
        parsers: Mapping[str, Callable[[bytes], object]] | None = None,
        admit: Callable[[Request], None] | None = None,
        health_checks: Container[str] = (),
        open_paths: Container[str] = (),
        as_status: Callable[[BaseException], Exception | None] = lambda _error: None,
        failed: Callable[[Request, int, str], object] = lambda _request, _code, _message: None,
        logger: Logger | None = None,
    ) -> None:
        self._logger: Logger = logger if logger is not None else logging.getLogger("modelreg.transport")
        self._limits = limits
        self._shared = Shared(
            methods(services, parsers or {}),
            streamed or {},
            admit,
            health_checks,
            open_paths,
            limits,
            Failures(self._logger, as_status, failed),
        )
        self._connections: set[Connection] = set()
        self._slots = trio.Semaphore(self._shared.places.most)
        self._drain_deadline: float | None = None
        self._drain_scope: trio.CancelScope | None = None
        self._draining = trio.Event()
        self._nobody = trio.Event()
        self._connections_total = 0
        self._past = (0, 0)
        self._nursery: trio.Nursery | None = None

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until drained. The listeners are closed when it ends, and when draining begins.

        Cancelling it closes every connection at once.
        """
        async with self._shared.turns.kept(), trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._shared.turns.run, Share(), self._keep_time)
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept, listener, nursery)
                task_status.started()
                await self._draining.wait()
                accepting.cancel_scope.cancel()
            for connection in list(self._connections):
                connection.drain()
            if self._connections:
                with trio.CancelScope(deadline=self._drain_deadline or trio.current_time()) as scope:
                    self._drain_scope = scope
                    await self._nobody.wait()
                if scope.cancelled_caught:
                    for connection in list(self._connections):
                        connection.stop_calls()
                    with trio.move_on_after(CLOSE_TIMEOUT):
                        await self._nobody.wait()
            nursery.cancel_scope.cancel()

    def drain(self, grace: float) -> None:
        """Stop accepting and say GOAWAY; calls that run may finish for `grace` seconds, then they end UNAVAILABLE.

        May be called again with another grace.
        """
        self._drain_deadline = trio.current_time() + grace
        if self._drain_scope is not None:
            self._drain_scope.deadline = self._drain_deadline
        if not self._connections:
            self._nobody.set()
        self._draining.set()

    def statistics(self) -> Statistics:
        """What goes on right now."""
        connections = list(self._connections)
        return Statistics(
            connections=len(connections),
            connections_total=self._connections_total,
            streams=sum(len(connection.calls) for connection in connections),
            streams_total=self._shared.calls_total,
            bytes_received=self._past[0] + sum(connection.wire.bytes_in for connection in connections),
            bytes_sent=self._past[1] + sum(connection.wire.bytes_out for connection in connections),
        )

    async def _accept(self, listener: trio.abc.Listener[trio.abc.Stream], nursery: trio.Nursery) -> None:
        failing = False
        async with listener:
            while True:
                await self._slots.acquire()
                try:
                    stream = await listener.accept()
                except OSError as error:
                    self._slots.release()
                    if not failing:
                        failing = True
                        self._logger.exception("accept failed, trying again until it works", exc_info=error)
                    await trio.sleep(ACCEPT_PAUSE)
                except BaseException:
                    self._slots.release()
                    raise
                else:
                    failing = False
                    nursery.start_soon(self._serve_connection, stream)

    async def _serve_connection(self, stream: trio.abc.Stream) -> None:
        connection = None
        try:
            connection = Connection(stream, self._shared)
            self._connections.add(connection)
            self._connections_total += 1
            if self._draining.is_set():
                connection.drain()
            await connection.run()
        except OSError:  # gone before it was looked at
            await trio.aclose_forcefully(stream)
        except Exception as error:
            self._logger.exception("a connection failed", exc_info=error)
        finally:
            self._slots.release()
            if connection is not None:
                self._connections.discard(connection)
                self._shared.places.leave(connection)
                self._past = (self._past[0] + connection.wire.bytes_in, self._past[1] + connection.wire.bytes_out)
                connection.core.dissolve()
            if self._draining.is_set() and not self._connections:
                self._nobody.set()

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep(CLOCK_INTERVAL)
            now = trio.current_time()
            for connection in list(self._connections):
                connection.check(now)
                if self._shared.turns.over():
                    await trio.lowlevel.checkpoint()
            if self._shared.replies.waited_for:
                largest = max(self._connections, key=lambda each: each.core.outbound.buffered, default=None)
                if largest is not None:
                    largest.end_slow_replies(now)
