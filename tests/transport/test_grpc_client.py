"""The C-core client, which is what most clients are made of, against the transport."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

import grpc
import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue

from tests.transport.service import Serving, path, serving

T = TypeVar("T")


class Client:
    """grpc's blocking client, its calls in threads."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def unary(self, method: str, content: bytes = b"", **options: object) -> BytesValue:
        call = self._channel.unary_unary(path(method), BytesValue.SerializeToString, BytesValue.FromString)
        return cast(BytesValue, call(BytesValue(value=content), **options))

    def watch(self, method: str, content: bytes = b"", **options: object) -> Iterator[BytesValue]:
        call = self._channel.unary_stream(path(method), BytesValue.SerializeToString, BytesValue.FromString)
        return cast("Iterator[BytesValue]", call(BytesValue(value=content), **options))

    def upload(self, method: str, contents: Iterator[bytes], **options: object) -> BytesValue:
        call = self._channel.stream_unary(path(method), BytesValue.SerializeToString, BytesValue.FromString)
        return cast(BytesValue, call((BytesValue(value=content) for content in contents), **options))

    def chat(self, contents: Iterator[bytes]) -> Iterator[BytesValue]:
        call = self._channel.stream_stream(path("Chat"), BytesValue.SerializeToString, BytesValue.FromString)
        return cast("Iterator[BytesValue]", call(BytesValue(value=content) for content in contents))


@asynccontextmanager
async def connected(*options: tuple[str, object]) -> AsyncIterator[tuple[Serving, Client]]:
    async with serving() as serve:
        with grpc.insecure_channel(
            f"127.0.0.1:{serve.port}", [("grpc.max_receive_message_length", -1), *options]
        ) as channel:
            yield serve, Client(channel)


async def run(function: Callable[[], T]) -> T:
    with trio.fail_after(20):
        return await trio.to_thread.run_sync(function)


async def test_unary_and_metadata() -> None:
    async with connected() as (serve, client):
        reply = await run(lambda: client.unary("Echo", b"x", metadata=[("a", "1"), ("b-bin", b"\0\xff")], timeout=10))
        assert reply.value == b"x"
        request = serve.state.requests[0]
        assert ("a", "1") in request.custom_metadata
        assert ("b-bin", b"\0\xff") in request.custom_metadata
        assert request.user_agent is not None
        assert request.user_agent.startswith("grpc-python")
        assert request.timeout is not None
        assert 9 < request.timeout <= 10


@pytest.mark.parametrize("compression", list(grpc.Compression))
async def test_compression(compression: grpc.Compression) -> None:
    async with connected() as (_, client):
        assert len((await run(lambda: client.unary("Echo", bytes(100_000), compression=compression))).value) == 100_000


@pytest.mark.parametrize(
    ("method", "content", "code", "details"),
    [
        ("Fail", "no “x” 100%\n".encode(), grpc.StatusCode.NOT_FOUND, "no “x” 100%\n"),
        ("Bug", b"", grpc.StatusCode.INTERNAL, "internal error"),
        ("Nothing", b"", grpc.StatusCode.UNIMPLEMENTED, "there is no method test.Service/Nothing"),
        (
            "Echo",
            bytes(5_000_000),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "a message is larger than max_message_bytes allows, which is 4194304: send less at once, or raise that option",
        ),
    ],
)
async def test_statuses(method: str, content: bytes, code: grpc.StatusCode, details: str) -> None:
    async with connected() as (_, client):
        with pytest.raises(grpc.RpcError) as caught:
            await run(lambda: client.unary(method, content))
        assert caught.value.code() is code
        assert caught.value.details() == details
        assert (await run(lambda: client.unary("Echo", b"x"))).value == b"x"


async def test_deadline() -> None:
    async with connected() as (serve, client):
        with pytest.raises(grpc.RpcError) as caught:
            await run(lambda: client.unary("Wait", timeout=0.2))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with trio.fail_after(1):
            await serve.state.ended.wait()
        assert serve.state.running == 0


async def test_streams() -> None:
    async with connected() as (_, client):
        assert len(await run(lambda: list(client.watch("Count", b"5000 10")))) == 5000
        assert (await run(lambda: client.upload("Sum", iter([bytes(100_000)] * 50)))).value == b"5000000"
        assert [m.value for m in await run(lambda: list(client.chat(iter([b"a", b"", b"c"]))))] == [b"a", b"", b"c"]


async def test_large_upload_through_a_decoder() -> None:
    async with connected() as (serve, client):
        reply = await run(lambda: client.upload("Upload", iter([bytes(1_000_000)] * 64)))
        total, messages = (int(word) for word in reply.value.split())
        assert messages == 64
        assert total == 64 * 1_000_004  # with tag and length, as the decoder sees them
        assert serve.server.statistics().bytes_received > total


async def test_an_upload_that_is_refused() -> None:
    async with connected() as (_, client):
        with pytest.raises(grpc.RpcError) as caught:
            await run(lambda: client.upload("Refuse", iter([bytes(1_000_000)] * 64)))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await run(lambda: client.unary("Echo", b"x"))).value == b"x"


@pytest.mark.parametrize("frame_size", [16384, 1 << 20])
async def test_downloads(tmp_path: Path, frame_size: int) -> None:
    payload = bytes(range(256)) * 40_000
    (tmp_path / "file").write_bytes(payload)
    async with connected(("grpc.http2.max_frame_size", frame_size)) as (serve, client):
        with (tmp_path / "file").open("rb") as file:
            serve.state.descriptor = file.fileno()
            serve.state.file_size = len(payload)
            messages = await run(lambda: list(client.watch("File", b"3000000")))
        assert b"".join(message.value for message in messages) == payload


async def test_cancel_stops_the_handler() -> None:
    async with connected() as (serve, client):

        def watch() -> None:
            call = client.watch("Watch", b"x")
            assert next(call).value == b"x"
            cast(grpc.Call, call).cancel()

        await run(watch)
        with trio.fail_after(1):
            await serve.state.ended.wait()
        assert serve.state.running == 0
        assert serve.state.generators_closed == 1


async def test_many_at_once() -> None:
    async with connected() as (_, client):

        def calls() -> None:
            for number in range(50):
                assert client.unary("Echo", b"%d" % number).value == b"%d" % number

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(run, calls)


async def test_drain_is_no_error_for_calls_that_run() -> None:
    async with connected() as (serve, client):
        started = threading.Event()

        async def call() -> None:
            reply = await run(lambda: client.unary("Wait", b"x"))
            assert reply.value == b"x"
            started.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            while not serve.state.running:
                await trio.testing.wait_all_tasks_blocked(0.01)
            serve.server.drain(10)
            await trio.testing.wait_all_tasks_blocked(0.01)
            serve.state.go_on.set()
        with trio.fail_after(5):
            await serve.stopped.wait()
        with pytest.raises(grpc.RpcError) as caught:
            await run(lambda: client.unary("Echo", b"x"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
