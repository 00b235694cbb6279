"""Puts the registry together, and takes it down again in order.

Up: log, archive (lock, sweep, read), registry, services, and last the port, so that whoever can connect is served. Down, on SIGTERM or
SIGINT: the directory is told, health says NOT_SERVING, watches end, nothing new is accepted, running calls may finish for
a while, number ceilings are written back, the lock goes. A second signal ends it at once. SIGHUP reads certificates and tokens again.
"""

from __future__ import annotations

import errno
import gc
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import attrs
import trio

from modelreg.credentials import Credentials
from modelreg.directory import stay_registered
from modelreg.errors import AddressUnavailable, ArchiveUncertain
from modelreg.log import Logger, open_log
from modelreg.registry.registry import open_registry
from modelreg.registry.scrub import scrub
from modelreg.services import STREAMED, Readiness, admission, build_services
from modelreg.settings import Settings
from modelreg.storage.archive import open_archive
from modelreg.transport import Limits, Server

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# How long calls that run when the server is told to stop may go on, in seconds.
DRAIN_SECONDS = 10.0

# The same, where the archive has failed and nothing can be stored any more.
FAILED_DRAIN_SECONDS = 1.0


async def run(settings: Settings, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until a signal says to stop. Raises what :func:`serve` raises; for the main thread only."""
    settings.check_together()
    stop = trio.Event()
    with open_log(settings) as logger, trio.open_signal_receiver(*SIGNALS) as signals:
        credentials = Credentials(settings, logger)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, stop, credentials, nursery.cancel_scope, logger)
            await serve(settings, logger, stop=stop, credentials=credentials, task_status=task_status)
            nursery.cancel_scope.cancel()


async def _obey(
    signals: AsyncIterator[int],
    stop: trio.Event,
    credentials: Credentials,
    scope: trio.CancelScope,
    logger: Logger,
) -> None:
    async for number in signals:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            credentials.renew()
        elif stop.is_set():
            logger.warning("stopping at once", signal=name)
            scope.cancel()
            return
        else:
            logger.info("stopping", signal=name, seconds=DRAIN_SECONDS)
            stop.set()


async def serve(
    settings: Settings,
    logger: Logger,
    *,
    stop: trio.Event,
    credentials: Credentials | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until *stop* is set. Several may run in one process, each on its own directory.

    *task_status* is told the port when calls can come; *credentials* are those of *settings*, where somebody else renews them.

    Raises:
        StartupError: the archive directory or the address can't be used, or the archive failed meanwhile; see its kinds.
    """
    credentials = credentials or Credentials(settings, logger)
    files = _allow_many_files()
    for caution in settings.cautions:
        logger.warning(caution)
    readiness = Readiness()
    async with (
        open_archive(settings.archive_dir, logger, upload_buffer_bytes=settings.upload_buffer_bytes) as archive,
        open_registry(
            archive, cache_max_items=settings.cache_max_items, cache_max_bytes=settings.cache_max_bytes
        ) as registry,
    ):
        gc.freeze()  # the index: a collection that walks a million versions would hold up every call
        services = build_services(
            registry,
            readiness=readiness,
            reflection=settings.grpc_reflection,
            max_data_chunk_bytes=settings.max_data_chunk_bytes,
            logger=logger,
        )
        limits = Limits()
        limits = attrs.evolve(limits, max_connections=max(1, min(limits.max_connections, files // 2)))
        admit = admission(readiness, credentials.tokens)
        transport = Server(services, limits=limits, streamed=STREAMED, admit=admit, logger=logger)
        listeners = await _listen(settings.host, settings.port)
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.serve, [credentials.protected(listener) for listener in listeners])
            readiness.start()
            statistics = registry.statistics()
            logger.info(
                "serving",
                host=settings.host,
                port=port,
                tls=settings.tls_certificate is not None,
                archive_dir=str(settings.archive_dir),
                models=statistics.models,
                versions=statistics.versions,
            )
            task_status.started(port)
            stopping = trio.Event()
            nursery.start_soon(stay_registered, settings, port, stopping, logger)
            async with trio.open_nursery() as scrubbing:
                if settings.scrub_bytes_per_second:
                    scrubbing.start_soon(scrub, registry, archive, settings.scrub_bytes_per_second, logger)
                await _wait_for_either(stop, archive.threads.failed)
                scrubbing.cancel_scope.cancel()
            stopping.set()
            readiness.stop()
            registry.stop_watches()
            transport.drain(FAILED_DRAIN_SECONDS if archive.threads.failed.is_set() else DRAIN_SECONDS)
    if archive.threads.failed.is_set():
        raise ArchiveUncertain(
            f"stopped, as what is on disk in {str(settings.archive_dir)!r} isn't known any more: look at the disk, then start again"
        )
    logger.info("stopped")


async def _wait_for_either(first: trio.Event, second: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, first)
        nursery.start_soon(wait, second)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on every address of a host; port 0 chooses one, the same for all of them.

    Raises:
        AddressUnavailable: none of this machine's, or the port is taken.
    """
    listeners: list[trio.SocketListener] = []
    try:
        for family, _, _, _, address in await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if family in (socket.AF_INET, socket.AF_INET6):
                listeners += await trio.open_tcp_listeners(port, host=str(address[0]))
                port = listeners[0].socket.getsockname()[1]
    except OSError as error:
        for listener in listeners:
            with suppress(OSError):
                await listener.aclose()
        raise AddressUnavailable(_why_not(host, port, error)) from error
    return listeners


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: stop what listens there, or choose another --port"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} is reserved for the system: choose a --port from 1024 on"
    return f"can't listen on {host}: {error.strerror or error}: choose another --host"


def _allow_many_files() -> int:
    """Raise the soft limit of open files to the hard one, and return what it is now.

    Connections and large transient versions take one each. Half of them may go to connections, so that those are never
    what keeps a call from opening a file.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
