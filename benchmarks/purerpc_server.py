"""modelreg's services on purerpc's own transport: what modelreg would be without a transport of its own."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import purerpc
import trio
from purerpc.rpc import Cardinality
from purerpc.server import BoundRPCMethod, Service

from modelreg.log import LineQuota, open_log
from modelreg.registry.registry import open_registry
from modelreg.services import Audit, OpenFiles, Readiness, as_status, build_services
from modelreg.settings import Settings
from modelreg.storage.archive import open_archive
from modelreg.transport.pieces import LoadedMessage
from modelreg.transport.requests import NO_REQUEST, Request


class Silent(Audit):
    """Logs no changes: purerpc's requests don't say where they come from."""

    def changed(self, request: Request, event: str, **fields: object) -> None:
        pass


class Uncounted(OpenFiles):
    """Bounds nothing, for the same reason."""

    @asynccontextmanager
    async def one(self, request: Request) -> AsyncIterator[None]:
        yield


@attrs.frozen
class Loaded:
    """A message that has been read, as purerpc has it encoded."""

    encoded: bytes

    def SerializeToString(self) -> bytes:
        return self.encoded


def adapted(service: Service) -> Service:
    """Return the same service, whose methods are told of their calls, and raise, as modelreg's own transport has it."""
    result = Service(service.name)
    for name, bound in service.methods.items():
        streams = bound.signature.cardinality in (Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM)
        wrap = _adapted_stream if streams else _adapted_call
        result.methods[name] = BoundRPCMethod(wrap(bound.method_fn), bound.signature)
    return result


def _request(request: Any) -> Request:
    fields = tuple((name.encode(), value.encode()) for name, value in request.custom_metadata)
    return attrs.evolve(NO_REQUEST, fields=fields)


@contextmanager
def _errors_as_statuses() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise as_status(error) or error from error


def _adapted_call(method: Callable[..., Any]) -> Callable[..., Any]:
    async def call(argument: object, request: Any) -> object:
        with _errors_as_statuses():
            return await method(argument, request=_request(request))

    return call


def _adapted_stream(method: Callable[..., Any]) -> Callable[..., Any]:
    async def stream(argument: object, request: Any) -> AsyncGenerator[object, None]:
        with _errors_as_statuses():
            async with aclosing(method(argument, request=_request(request))) as replies:
                async for reply in replies:
                    yield Loaded(await reply.load()) if isinstance(reply, LoadedMessage) else reply

    return stream


async def main(directory: Path, chunk: int) -> None:
    flags = {"archive_dir": str(directory), "log_level": "warning"}
    settings = Settings.read(flags | ({"sent_version_chunk_size": str(chunk)} if chunk else {}), {})
    with open_log(settings) as logger:
        async with (
            open_archive(settings.archive_dir, logger, upload_buffer_bytes=settings.upload_buffer_bytes) as archive,
            open_registry(
                archive,
                cache_max_items=settings.cache_max_items,
                cache_max_bytes=settings.cache_max_bytes,
                logger=logger,
            ) as registry,
        ):
            readiness = Readiness()
            readiness.start()
            server = purerpc.Server(port=0)
            services = build_services(
                registry,
                readiness=readiness,
                reflection=False,
                max_data_chunk_bytes=settings.max_data_chunk_bytes,
                audit=Silent(logger, LineQuota(logger)),
                open_files=Uncounted(0),
            )
            for service in services:
                server.add_service(adapted(service))
            gc.freeze()  # as modelreg does after its boot
            await server.serve_async()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
