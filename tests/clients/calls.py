"""The registry's calls for grpcio (C-core), which modelreg.api has no stubs for, and what tests of them say again and again."""

from __future__ import annotations

import base64
import collections
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, final

import grpc
import pytest

from modelreg.api import common_pb2, health_pb2
from modelreg.api import model_registry_pb2 as api
from tests.support.server import PATIENCE

SERVICE = "cogmentAPI.ModelRegistrySP"

Chunk = api.CreateVersionRequestChunk
Code = grpc.StatusCode

# A connection of its own for every channel, whatever the tests' environment says about proxies.
CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


def open_channel(address: str, *options: tuple[str, object], **more: Any) -> Any:
    """A channel of C-core's, as its defaults are."""
    channel: Any = grpc.insecure_channel(address, options=(*CHANNEL_OPTIONS, *options), **more)
    return channel


class Calls:
    """The calls of a service on a channel, by name; each has a deadline, so that nothing waits for ever.

    A keyword *raw* makes a call send bytes in place of messages, whether they're a message or not.
    """

    def __init__(self, channel: Any, service: Any = None) -> None:
        self._channel = channel
        descriptor = service or api.DESCRIPTOR.services_by_name["ModelRegistrySP"]
        self._methods: dict[str, Any] = {method.name: method for method in descriptor.methods}

    def __getattr__(self, name: str) -> Any:
        return self.method(name)

    def method(self, name: str, *, raw: bool = False) -> Any:
        method = self._methods[name]
        service = method.containing_service.full_name
        kinds = {
            (False, False): "unary_unary",
            (False, True): "unary_stream",
            (True, False): "stream_unary",
            (True, True): "stream_stream",
        }
        kind = kinds[method.client_streaming, method.server_streaming]
        call = getattr(self._channel, kind)(
            f"/{service}/{name}",
            request_serializer=None if raw else method.input_type._concrete_class.SerializeToString,
            response_deserializer=method.output_type._concrete_class.FromString,
        )
        return _Patient(call)

    # What most tests begin with.

    def create(self, model_id: str, **user_data: str) -> None:
        """Create a model."""
        self.CreateOrUpdateModel(model_info(model_id, **user_data))

    def store(self, model_id: str, *data: bytes, **info: Any) -> api.ModelVersionInfo:
        """Store a version of this data, a message each."""
        return self._upload(model_id, *data, archived=True, **info)

    def publish(self, model_id: str, *data: bytes, **info: Any) -> api.ModelVersionInfo:
        """The same, for a transient version."""
        return self._upload(model_id, *data, archived=False, **info)

    def _upload(self, model_id: str, *data: bytes, archived: bool, **info: Any) -> api.ModelVersionInfo:
        reply = self.CreateVersion(iter(upload(model_id, *data, archived=archived, **info)))
        version: api.ModelVersionInfo = reply.version_info
        return version

    def info(self, model_id: str, *numbers: int) -> list[api.ModelVersionInfo]:
        """Versions by number, or all."""
        reply = self.RetrieveVersionInfos(api.RetrieveVersionInfosRequest(model_id=model_id, version_numbers=numbers))
        return list(reply.version_infos)

    def numbers(self, model_id: str) -> list[int]:
        """The numbers of a model's versions."""
        return [version.version_number for version in self.info(model_id)]

    def chunks(self, model_id: str, number: int = -1) -> list[bytes]:
        """A version's data, as it's sent."""
        return [chunk.data_chunk for chunk in self.download(model_id, number)]

    def data(self, model_id: str, number: int = -1) -> bytes:
        """A version's data."""
        return b"".join(self.chunks(model_id, number))

    def download(self, model_id: str, number: int = -1) -> Any:
        return self.RetrieveVersionData(api.RetrieveVersionDataRequest(model_id=model_id, version_number=number))

    def watch(self, model_id: str) -> Watch:
        return Watch(self.VersionUpdate(api.VersionUpdateRequest(model_id=model_id)))

    def model_ids(self) -> list[str]:
        """The ids of all models."""
        return [model.model_id for model in self.RetrieveModels(api.RetrieveModelsRequest()).model_infos]

    def status(self, *names: str) -> dict[str, str]:
        return dict(self.Status(common_pb2.StatusRequest(names=names)).statuses)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the server does in its own time, asking after each of its answers to another call."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it doesn't happen"
            self.status()

    def wait_for_status(self, **expected: int) -> None:
        """Wait until Status says this."""
        wanted = {name: str(value) for name, value in expected.items()}
        self.wait_until(lambda: self.status(*wanted) == wanted)


class _Patient:
    """A call of C-core's, with a deadline where the test gives none."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, request: Any, timeout: float = PATIENCE, **more: Any) -> Any:
        return self._call(request, timeout=timeout, **more)

    def future(self, request: Any, timeout: float = PATIENCE, **more: Any) -> Any:
        return self._call.future(request, timeout=timeout, **more)


@contextlib.contextmanager
def connected(address: str, *options: tuple[str, object], **more: Any) -> Iterator[Calls]:
    """The calls on a channel of their own."""
    with open_channel(address, *options, **more) as channel:
        yield Calls(channel)


def health(channel: Any) -> Calls:
    """The calls of the health service."""
    return Calls(channel, health_pb2.DESCRIPTOR.services_by_name["Health"])


@contextlib.contextmanager
def fails(code: Any, details: str | None = None) -> Iterator[pytest.ExceptionInfo[Any]]:
    """What's in the block ends with this status, and, where they're given, exactly these details."""
    with pytest.raises(grpc.RpcError) as caught:
        yield caught
    error: Any = caught.value
    assert error.code() is code, error.details()
    assert_for_people(error.details())
    if details is not None:
        assert error.details() == details


def assert_for_people(details: str) -> None:
    """Details of an error name no file, no internals, and aren't empty."""
    assert details
    for unwanted in ("Traceback", "/tmp", "modelreg.", "Error(", ".py", "object at"):
        assert unwanted not in details, details


def model_info(model_id: str, **user_data: str) -> api.CreateOrUpdateModelRequest:
    return api.CreateOrUpdateModelRequest(model_info=api.ModelInfo(model_id=model_id, user_data=user_data))


def header(model_id: str, *, data_size: int = 0, archived: bool = True, **info: Any) -> Chunk:
    version = api.ModelVersionInfo(model_id=model_id, data_size=data_size, archived=archived, **info)
    return Chunk(header=Chunk.Header(version_info=version))


def body(data: bytes) -> Chunk:
    return Chunk(body=Chunk.Body(data_chunk=data))


def upload(model_id: str, *data: bytes, **info: Any) -> list[Chunk]:
    """The messages of an upload."""
    info.setdefault("data_size", sum(map(len, data)))
    return [header(model_id, **info), *map(body, data)]


def data_hash(data: bytes) -> str:
    """SHA-256 as the wire has it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


@final
class Watch:
    """A running VersionUpdate; ended with the context."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.call.cancel()

    def next(self) -> api.ModelVersionInfo:
        """The next version, as soon as there is one."""
        version: api.ModelVersionInfo = next(self.call).version_info
        return version

    def next_numbers(self, count: int) -> list[int]:
        return [self.next().version_number for _ in range(count)]


@final
class OpenRequest(Iterator[Any]):
    """Messages of a call that the test sends one by one; until it's closed, the client hasn't finished sending."""

    def __init__(self, *messages: Any) -> None:
        self._messages: collections.deque[Any] = collections.deque(messages)
        self._changed = threading.Condition()
        self._idle = False
        self._closed = False

    def __enter__(self) -> OpenRequest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Any:
        with self._changed:
            # C-core asks for a message when it has written the one before.
            self._idle = not self._messages
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._messages or self._closed)
            if not self._messages:
                raise StopIteration
            return self._messages.popleft()

    def send(self, *messages: Any) -> None:
        with self._changed:
            self._idle = False
            self._messages.extend(messages)
            self._changed.notify_all()

    def wait_sent(self) -> None:
        """Wait until the client has written all messages; what it writes to its connection after that comes after them."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._idle, PATIENCE)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
