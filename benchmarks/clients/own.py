"""modelreg's own Python client, as its users get it: hashes what it sends and what it receives, in pieces of its own choice.

Versions are bytes in memory. `threads` is the twin for programs without an event loop; otherwise it runs on asyncio. `hashed` says that
whoever uploads knows the hash already.
"""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.clients import Payload, Task, Work, WrongReply
from modelreg import client
from modelreg.client import blocking


class OwnClient:
    def __init__(self, address: str, timeout: float, *, threads: bool, hashed: bool) -> None:
        self._hashed = hashed
        self._loop = None if threads else asyncio.new_event_loop()
        make: Callable[[str], Any] = blocking.Context if threads else client.Context
        self._context = make("benchmarks")
        self._registry = self._call(
            self._context.get_model_registry_v2, client.Endpoint(f"grpc://{address}"), timeout=timeout
        )

    def _call(self, function: Callable[..., Any], *args: object, **options: object) -> Any:
        result = function(*args, **options)
        return self._loop.run_until_complete(result) if self._loop else result

    def close(self) -> None:
        self._call(self._context.close)
        if self._loop:
            self._loop.close()

    def create_model(self, model: str) -> None:
        self._call(self._registry.update_model_info, model, {})

    def delete_model(self, model: str) -> None:
        self._call(self._registry.remove_model, model)

    def prepare_upload(self, task: Task, payload: Payload) -> Callable[[], int]:
        data = b"".join(part for piece in payload.pieces() for part in piece)
        digest = payload.digest()
        send = self._registry.store_model if task.stored else self._registry.publish_model

        def upload() -> int:
            info = self._call(send, task.model, data, sha256=b64decode(digest) if self._hashed else None)
            if (info.size, info.hash) != (task.size, digest):
                raise WrongReply(f"sent {task.size} bytes {digest}, the reply says {info.size} bytes {info.hash}")
            return int(info.iteration)

        return upload

    def prepare_download(self, task: Task, version: int, digest: str) -> Work:
        def download() -> None:
            data = self._call(self._registry.retrieve_model, task.model, version) or b""
            if len(data) != task.size or (digest and b64encode(hashlib.sha256(data).digest()).decode() != digest):
                raise WrongReply(f"{len(data)} bytes came of {task.size}, or not those that were sent")

        return download

    def lookups(self, task: Task, version: int) -> list[float]:
        raise NotImplementedError("no scenario looks versions up with this client")

    def idle(self, pipe: Connection[Any, Any]) -> None:
        if self._loop:
            ready = asyncio.Event()
            self._loop.add_reader(pipe.fileno(), ready.set)
            self._loop.run_until_complete(ready.wait())
            self._loop.remove_reader(pipe.fileno())
