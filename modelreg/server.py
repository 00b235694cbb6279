"""Puts the registry together, and takes it down again in order.

Up: log, archive (lock, sweep, read), registry, services, and last the port, so that whoever can connect is served.
Down, on SIGTERM or SIGINT: the directory is told, health says NOT_SERVING, watches end, nothing new is accepted,
running calls may finish for a while, number ceilings are written back, the lock goes. A second signal ends it at once.
SIGHUP reads certificates and tokens again.
"""

from __future__ import annotations

import errno
import gc
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter

import trio

from modelreg.credentials import Credentials
from modelreg.directory import stay_registered
from modelreg.errors import AddressUnavailable, ArchiveUncertain
from modelreg.log import LineQuota, Logger, open_log
from modelreg.machine import Shares, memory_bytes
from modelreg.registry.damage import tell_damage
from modelreg.registry.registry import open_registry
from modelreg.registry.scrub import scrub
from modelreg.registry.user_data import UserDataLimits
from modelreg.services import (
    HEALTH_CHECK_PATHS,
    OPEN_PATHS,
    Audit,
    OpenFiles,
    Readiness,
    admission,
    as_status,
    build_services,
    parsers,
    streamed,
)
from modelreg.settings import Settings
from modelreg.storage.archive import open_archive
from modelreg.transport.limits import Limits
from modelreg.transport.server import Server

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# When garbage is collected (gc.set_threshold). A full collection walks the objects of every call, and finds next to nothing, as
# calls leave few cycles. It held up all calls for 0.4 s where 16,000 were open, and for 0.8 s where there were 32,000. So Python
# makes none by itself. The server makes one in each minute in which no more than CALM calls run, and one in each hour in any case.
COLLECTIONS = (700, 10, 1_000_000)
CALM = 500
COLLECT_AFTER = 3600.0

# A collection that takes longer, in seconds, walks an index that has grown since the last gc.freeze.
SLOW_COLLECTION = 0.02

# How long calls that run when the server is told to stop may go on, in seconds.
DRAIN_SECONDS = 10.0

# The same, where the archive has failed and nothing can be stored any more.
FAILED_DRAIN_SECONDS = 1.0

# How long the end may take after a second signal, in whole seconds.
AT_ONCE_SECONDS = 2

# How many ports are tried where any will do, but has to be free on each of a host's addresses.
PORT_CHOICES = 10


async def run(settings: Settings, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until a signal says to stop. Raises what :func:`serve` raises; for the main thread only."""
    settings.check_together()
    _allow_many_files()
    gc.set_threshold(*COLLECTIONS)
    stop = trio.Event()
    with open_log(settings) as logger, trio.open_signal_receiver(*SIGNALS) as signals, _delivered():
        credentials = Credentials(settings, logger)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, stop, credentials, nursery.cancel_scope, logger)
            await serve(settings, logger, stop=stop, credentials=credentials, task_status=task_status)
            nursery.cancel_scope.cancel()


@contextmanager
def _delivered() -> Iterator[None]:
    """Let signals come, those that were held back before among them; afterwards they are held back again."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
            signal.alarm(
                AT_ONCE_SECONDS
            )  # ends the process if a thread is stuck, in a disk that doesn't answer for example
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

    *task_status* is told the port when calls can come; *credentials* are those of *settings*, where somebody else
    renews them.

    Raises:
        StartupError: the archive directory or the address can't be used, or the archive failed; see its kinds.
    """
    credentials = credentials or Credentials(settings, logger)
    for caution in settings.cautions:
        logger.warning(caution)
    readiness = Readiness()
    quota = LineQuota(logger)
    async with (
        open_archive(
            settings.archive_dir,
            logger,
            upload_buffer_bytes=settings.upload_buffer_bytes,
            damage_changed=readiness.changed.ring,
        ) as archive,
        open_registry(
            archive,
            cache_max_items=settings.cache_max_items,
            cache_max_items_per_model=settings.cache_max_items_per_model,
            cache_max_bytes=settings.cache_max_bytes,
            max_version_bytes=settings.max_version_bytes,
            user_data_limits=UserDataLimits(
                entries=settings.max_user_data_entries,
                size=settings.max_user_data_bytes,
                arriving=Shares.of(memory_bytes()).user_data,
            ),
            logger=logger,
            quota=quota,
        ) as registry,
    ):
        if stop.is_set():
            return
        audit = Audit(logger, quota, credentials.tokens)
        services = build_services(
            registry,
            readiness=readiness,
            reflection=settings.grpc_reflection,
            max_data_chunk_bytes=settings.max_data_chunk_bytes,
            tokens=credentials.tokens,
            audit=audit,
            open_files=OpenFiles(_process_files()),
        )
        admit = admission(readiness, credentials.tokens)
        transport = Server(
            services,
            limits=_limits(settings, logger),
            streamed=streamed(settings.max_message_bytes, settings.max_user_data_entries),
            parsers=parsers(settings.max_user_data_entries),
            admit=admit,
            health_checks=HEALTH_CHECK_PATHS,
            open_paths=OPEN_PATHS,
            as_status=as_status,
            failed=audit.refused,
            logger=logger,
        )
        listeners = await _listen(settings.host, settings.port)
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.serve, [credentials.protected(listener) for listener in listeners])
            readiness.start()
            statistics = registry.statistics()
            gc.freeze()  # the index: a collection that walks a million versions would hold up every call
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
            async with trio.open_nursery() as beside:
                beside.start_soon(_tidy, quota, lambda: transport.statistics().streams)
                beside.start_soon(tell_damage, registry, readiness.changed, logger)
                if settings.scrub_bytes_per_second:
                    beside.start_soon(scrub, registry, archive, settings.scrub_bytes_per_second, logger)
                await _wait_for_either(stop, archive.threads.failed)
                stopping.set()
                readiness.stop()
                registry.stop_watches()
                transport.drain(FAILED_DRAIN_SECONDS if archive.threads.failed.is_set() else DRAIN_SECONDS)
                beside.cancel_scope.cancel()
        gc.unfreeze()
        quota.renew()
    if archive.threads.failed.is_set():
        raise ArchiveUncertain(
            f"stopped, as what is on disk in {str(settings.archive_dir)!r} isn't known any more: "
            "look at the disk, then start again"
        )
    logger.info("stopped")


async def _tidy(quota: LineQuota, running: Callable[[], int]) -> None:
    """Do once a minute what need not be done sooner. *running* says how many calls run."""
    collected = trio.current_time()
    while True:
        await trio.sleep(60)
        quota.renew()
        calm = running() <= CALM
        if calm or trio.current_time() - collected >= COLLECT_AFTER:
            began = perf_counter()
            gc.collect()
            collected = trio.current_time()
            if calm and perf_counter() - began > SLOW_COLLECTION:
                gc.freeze()  # seldom: a cycle that is frozen while it's in use is never freed


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
    try:
        addresses = await _addresses(host)
        for tried in range(1, PORT_CHOICES + 1):
            try:
                return await _listen_on(addresses, port)
            except OSError as error:
                if port != 0 or error.errno != errno.EADDRINUSE or tried == PORT_CHOICES:
                    raise
    except OSError as error:
        raise AddressUnavailable(_why_not(host, port, error)) from error
    raise AssertionError("the last try returns or raises")


async def _addresses(host: str) -> list[str]:
    """The addresses of a host, each once. That of everybody in IPv6 is that of everybody in IPv4, too."""
    found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for _, _, _, _, address in found]
    if "::" in addresses:
        addresses.append("0.0.0.0")
    return list(dict.fromkeys(addresses))


async def _listen_on(addresses: Sequence[str], port: int) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    try:
        for address in addresses:
            listeners += await trio.open_tcp_listeners(port, host=address)
            port = listeners[0].socket.getsockname()[1]
    except OSError:
        for listener in listeners:
            await listener.aclose()
        raise
    return listeners


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: stop what listens there, or choose another --port"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} is reserved for the system: choose a --port from 1024 on"
    return f"can't listen on {host}: {error.strerror or error}: choose another --host"


def _allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: connections and large transient versions take one each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _process_files() -> int:
    """How many files this process may have open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def _limits(settings: Settings, logger: Logger) -> Limits:
    """The transport's limits, as *settings* have them.

    Half of the files that may be open can be connections, so that those never keep a call from opening one.
    """
    connections = settings.max_connections
    files = _process_files()
    if files // 2 < connections:
        connections = max(1, files // 2)
        if "max_connections" in settings.given:
            logger.warning(
                "fewer connections than --max_connections, as too few files may be open (ulimit -n)",
                connections=connections,
                files=files,
            )
    shares = Shares.of(memory_bytes())
    return Limits(
        max_connections=connections,
        max_concurrent_streams=settings.max_concurrent_streams,
        max_calls=settings.max_calls,
        max_message_bytes=settings.max_message_bytes,
        max_reply_bytes=settings.max_reply_bytes,
        reply_pool=shares.replies,
        header_pool=shares.headers,
        message_pool=shares.messages,
        receive_pool=shares.received,
        window_pool=shares.windows,
        stream_window=shares.stream_window,
        max_header_bytes=settings.max_header_bytes,
        handshake_timeout=settings.handshake_timeout,
        idle_timeout=settings.idle_timeout,
        stall_timeout=settings.stall_timeout,
    )
