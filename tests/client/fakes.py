"""Servers of the tests' own, made of purerpc servicers: a thread with Trio in it, whatever event loop the client has."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import trio
import trio.testing

from modelreg.api import directory_pb2 as api
from modelreg.api.directory_grpc import DirectorySPServicer
from modelreg.transport.limits import Limits
from modelreg.transport.server import Server

TOKEN = "authentication-token"


class Running:
    """A server that runs: its port, and a way to do something on its event loop."""

    def __init__(self) -> None:
        self.port = 0
        self.server: Server | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def do(self, function: Any, *args: Any) -> Any:
        """Call a function on the server's event loop, from another thread, and wait for it."""
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def settle(self) -> None:
        """Wait, in another thread, until the server has nothing left to do but wait."""
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked, trio_token=self._token)

    async def _main(self, services: Sequence[Any], limits: Limits, ssl: Any) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        self.server = Server(services, limits=limits)
        listeners: Any = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        if ssl is not None:
            listeners = [trio.SSLListener(listener, ssl, https_compatible=True) for listener in listeners]
        async with trio.open_nursery() as nursery:
            await nursery.start(self.server.serve, listeners)
            self._ready.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def serving(*servicers: Any, limits: Limits | None = None, ssl: Any = None) -> Iterator[Running]:
    """Serve servicers on a port of this machine, with TLS if there's an ssl.SSLContext."""
    running = Running()
    services = [servicer.service for servicer in servicers]
    failure: list[BaseException] = []

    def run() -> None:
        try:
            trio.run(running._main, services, limits or Limits(), ssl)
        except BaseException as error:
            failure.append(error)
            raise
        finally:
            running._ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    running._ready.wait()
    assert not failure
    try:
        yield running
    finally:
        assert running._stop is not None
        running.do(running._stop.set)
        thread.join()


class Directory(DirectorySPServicer):
    """A Directory as far as clients inquire of it; services are registered by the test."""

    def __init__(self) -> None:
        self.services: dict[int, tuple[api.FullServiceData, str]] = {}
        self.inquiries: list[api.InquireRequest] = []

    def add(
        self,
        port: int,
        *,
        token: str = "",
        ssl: bool = False,
        kind: api.ServiceType = api.MODEL_REGISTRY_SERVICE,
        host: str = "127.0.0.1",
        **properties: str,
    ) -> int:
        number = len(self.services) + 1
        protocol = api.ServiceEndpoint.GRPC_SSL if ssl else api.ServiceEndpoint.GRPC
        data = api.FullServiceData(
            endpoint=api.ServiceEndpoint(protocol=protocol, host=host, port=port),
            service_id=number,
            details=api.ServiceDetails(type=kind, properties=properties),
        )
        self.services[number] = data, token
        return number

    async def Inquire(self, message: api.InquireRequest, request: Any) -> Any:  # type: ignore[override]
        self.inquiries.append(message)
        tokens = [value for name, value in request.custom_metadata if name == TOKEN]
        for number, (data, token) in list(self.services.items()):
            if token and token not in tokens:
                continue
            if message.WhichOneof("inquiry") == "service_id":
                if number != message.service_id:
                    continue
            else:
                wanted = message.details
                if data.details.type != wanted.type:
                    continue
                if any(data.details.properties.get(name) != value for name, value in wanted.properties.items()):
                    continue
            yield api.InquireReply(data=data)
