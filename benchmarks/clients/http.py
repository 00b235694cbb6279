"""A client of the Docker registry's HTTP API (distribution-spec 1.0), for blobs: what `docker push` and `docker pull` do with a
layer. An upload is POST, PATCH with the bytes, PUT with the digest; a download one GET. Models are repositories.
"""

from __future__ import annotations

import hashlib
import socket
from base64 import b64decode, b64encode
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

from benchmarks.clients import Payload, Task, Work, WrongReply
from benchmarks.http2 import READ_BYTES


class HttpClient:
    def __init__(self, address: str, timeout: float) -> None:
        self._connection = HTTPConnection(address, timeout=timeout)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._digest = ""

    def close(self) -> None:
        self._connection.close()

    def create_model(self, model: str) -> None:
        pass  # a repository exists once something is in it

    def delete_model(self, model: str) -> None:
        pass  # there is no call that frees space; the harness removes the files, see `targets`

    def prepare_upload(self, task: Task, payload: Payload) -> Callable[[], int]:
        pieces = [b"".join(piece) for piece in payload.pieces()]
        self._digest = payload.digest()
        digest = "sha256:" + b64decode(self._digest).hex()

        def upload() -> int:
            reply = self._ask("POST", f"/v2/{task.model}/blobs/uploads/", 202)
            path = _path(reply)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(payload.size)}
            self._connection.request("PATCH", path, iter(pieces), headers)
            path = _path(self._reply(202))
            self._ask("PUT", f"{path}{'&' if '?' in path else '?'}digest={digest}", 201)
            return 1

        return upload

    def prepare_download(self, task: Task, version: int, digest: str) -> Work:
        """*version* says nothing here: it is the blob that was uploaded last, by this client."""
        path = f"/v2/{task.model}/blobs/sha256:{b64decode(self._digest).hex()}"
        buffer = memoryview(bytearray(READ_BYTES))

        def download() -> None:
            self._connection.request("GET", path)
            reply = self._connection.getresponse()
            if reply.status != 200:
                raise WrongReply(f"GET answered {reply.status}: {reply.read(200)!r}")
            size, sha = 0, hashlib.sha256()
            while count := reply.readinto(buffer):
                size += count
                if digest:
                    sha.update(buffer[:count])
            if size != task.size or (digest and b64encode(sha.digest()).decode() != digest):
                raise WrongReply(f"{size} bytes came of {task.size}, or not those that were sent")

        return download

    def lookups(self, task: Task, version: int) -> list[float]:
        raise NotImplementedError("a blob store has nothing to look up")

    def idle(self, pipe: Connection[Any, Any]) -> None:
        pass  # HTTP/1.1 asks nothing

    def _ask(self, method: str, path: str, status: int) -> HTTPResponse:
        self._connection.request(method, path, headers={"Content-Length": "0"})
        return self._reply(status)

    def _reply(self, status: int) -> HTTPResponse:
        reply = self._connection.getresponse()
        text = reply.read()
        if reply.status != status:
            raise WrongReply(f"answered {reply.status}, not {status}: {text[:200]!r}")
        return reply


def _path(reply: HTTPResponse) -> str:
    parts = urlsplit(reply.getheader("Location") or "")
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
