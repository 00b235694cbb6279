"""The beginning of every program that uses the registry."""

from __future__ import annotations

import asyncio
import os
import string
import urllib.parse
import weakref
from types import TracebackType
from typing import Literal

from typing_extensions import Self

from modelreg.client.background import Background, call_soon
from modelreg.client.cache import Cache
from modelreg.client.directory import TOKEN, directory_address, resolve
from modelreg.client.endpoint import DISCOVER, Endpoint, check_endpoint, endpoint_from_environment, parse_url
from modelreg.client.registry import ModelRegistry
from modelreg.client.retry import Patience
from modelreg.client.rpc import Rpc
from modelreg.client.transport.channel import Channel, encode
from modelreg.client.transport.connection import Timing
from modelreg.client.transport.wire import Address

USER_ID = "user-id"

# Characters of it that are sent.
LONGEST_USER_ID = 128

_PLAIN = (string.punctuation + " ").replace("%", "")


class Context:
    """Who calls, and which directory to ask.

    A context in Python's sense, too: leaving it closes all its registries.

    Arguments:
        user_id: identifier of the user. Registries are told it, for their logs.
        cog_settings: the specs module of trials; the registry needs none.
        asyncio_loop: the event loop that this is for; None for the one that runs. Trio needs none.
        prometheus_registry: taken, as programs give one; there are no metrics of the registry's client.
        directory_endpoint: the Directory that discovery asks; by default the one that the environment variable
            COGMENT_DIRECTORY_ENDPOINT names.
        directory_auth_token: for the Directory; by default the environment variable COGMENT_DIRECTORY_AUTHENTICATION_TOKEN.

    Attributes:
        served_port: always None, as nothing is served.

    Raises:
        ValueError: the directory's endpoint isn't like ``grpc://host:port``, or the token can't be sent.
    """

    served_port: None = None

    def __init__(
        self,
        user_id: str,
        cog_settings: object = None,
        asyncio_loop: asyncio.AbstractEventLoop | None = None,
        prometheus_registry: object = None,
        directory_endpoint: Endpoint | None = None,
        directory_auth_token: str | None = None,
    ) -> None:
        self.user_id = user_id
        self._cog_settings = cog_settings
        self._loop = asyncio_loop
        self._directory = directory_endpoint or endpoint_from_environment("COGMENT_DIRECTORY_ENDPOINT")
        self._token = directory_auth_token or os.environ.get("COGMENT_DIRECTORY_AUTHENTICATION_TOKEN") or None
        if self._directory is not None:
            check_endpoint(self._directory)
            directory_address(self._directory)
        if self._token is not None:
            encode([(TOKEN, self._token)])
        self._registries: list[ModelRegistry] = []

    def has_specs(self) -> bool:
        """Whether `cog_settings` was given."""
        return self._cog_settings is not None

    async def get_model_registry_v2(
        self,
        endpoint: Endpoint = Endpoint(DISCOVER),  # noqa: B008  # as documented; never changed here
        *,
        timeout: float | None = None,
        patience: float | Patience = Patience(),  # noqa: B008
        cache: Cache | Literal[True] | None = None,
        timing: Timing = Timing(),  # noqa: B008
    ) -> ModelRegistry:
        """The registry at an endpoint. Nothing is sent to it yet.

        Arguments:
            endpoint: where it is; by default to be discovered.
            timeout: of calls that aren't given one, in seconds; None for none.
            patience: how long calls that find nobody, or lose their connection, are tried again, in seconds; by default 10, and 30
                where somebody has answered before. 0 is never.
            cache: where downloaded data is kept; True for the platform's place. None keeps nothing.
            timing: of connections, and of the signs of life on watches.

        Raises:
            ValueError: the endpoint isn't one, its keys can't be used, or it needs a directory and there is none.
        """
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            raise ValueError("this Context was made for another asyncio_loop than the one that runs")
        check_endpoint(endpoint)
        if not (cache is None or cache is True or isinstance(cache, Cache)):
            raise TypeError(
                "cache has to be a Cache, or True: for a directory of your own, give Cache(pathlib.Path(...))"
            )
        parse_url(endpoint.url)
        tls = endpoint.tls_context()
        background = Background()
        directory, token = self._directory, self._token

        async def where() -> Address:
            return await resolve(endpoint, tls, directory, token, timing=timing, background=background)

        if directory is None:
            await where()  # raises, or says where it is without asking anybody
        metadata = _told_of(self.user_id) + ([(TOKEN, endpoint.token)] if endpoint.token else [])
        channel = Channel(where, metadata=metadata, timing=timing, background=background)
        if not isinstance(patience, Patience):
            patience = Patience(patience, patience)
        rpc = Rpc(channel, patience, timeout)
        weakref.finalize(rpc, call_soon(channel.close)).atexit = False  # where nothing that uses it is left
        registry = ModelRegistry(rpc, background, Cache() if cache is True else cache)
        self._registries = [other for other in self._registries if not other.closed]
        self._registries.append(registry)
        return registry

    async def close(self) -> None:
        """Close all registries that came from here. A context that is forgotten is closed, too, once none of its registries is in use."""
        for registry in self._registries:
            await registry.close()
        self._registries = [registry for registry in self._registries if not registry.closed]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _told_of(user_id: str) -> list[tuple[str, str]]:
    """Return the metadata that tells a registry who calls. What can't be sent is percent-encoded (RFC 3986)."""
    text = urllib.parse.quote(str(user_id).strip(), safe=_PLAIN, errors="replace")[:LONGEST_USER_ID].strip()
    return [(USER_ID, text)] if text else []
