"""Each limit that's an option, set low by its flag: what a client sees of it."""

from __future__ import annotations

import socket
from pathlib import Path

import hpack
import pytest
import trio
import trustme

from modelreg.transport import frames
from modelreg.transport.faults import ErrorCode
from tests.clients.calls import Code, OpenRequest, body, connected, fails, header, model_info
from tests.faults.abuse import WATCH, begin
from tests.support import h2client
from tests.support.server import PATIENCE, StartServer

MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6  # settings (RFC 9113, section 6.5.2)
STATUS = "/cogmentAPI.ModelRegistrySP/Status"
VERSION = "/cogmentAPI.ModelRegistrySP/Version"
WATCH_HEALTH = "/grpc.health.v1.Health/Watch"

# A record of 512 bytes, in which a ClientHello of 508 begins (RFC 8446, sections 4 and 5.1).
CLIENT_HELLO_BEGINS = bytes.fromhex("1603010200 010001fc 0303")


def reason(goaway: h2client.Frame) -> str:
    """What a GOAWAY says to people."""
    return goaway.payload[8:].decode()


def temporary_files(archive_dir: Path) -> list[Path]:
    return list((archive_dir / "tmp").iterdir())


def certificate_options(directory: Path) -> list[str]:
    issued = trustme.CA().issue_cert("127.0.0.1")
    certificate, key = directory / "server.pem", directory / "server.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return [f"--tls_certificate={certificate}", f"--tls_key={key}"]


@pytest.mark.parametrize("archived", [True, False], ids=["stored", "transient"])
def test_a_version_over_its_limit_is_refused_before_its_data(start_server: StartServer, archived: bool) -> None:
    server = start_server("--max_version_bytes=1000000")
    with connected(server.address) as calls:
        calls.create("policy")
        with OpenRequest(header("policy", data_size=1_000_001, archived=archived)) as request:
            call = calls.CreateVersion.future(request)
            with fails(
                Code.RESOURCE_EXHAUSTED,
                "a version of 1000001 bytes is larger than --max_version_bytes allows, which is 1000000: make it smaller, or raise that option",
            ):
                call.result()  # not a byte of it has been sent
        # More than was announced is no way round it.
        chunks = [header("policy", data_size=1_000_000, archived=archived), *[body(bytes(600_000))] * 2]
        with fails(Code.INVALID_ARGUMENT):
            calls.CreateVersion(iter(chunks))
        assert not temporary_files(server.archive_dir)
        assert calls.numbers("policy") == []
        (calls.store if archived else calls.publish)("policy", bytes(1_000_000))
        assert calls.data("policy") == bytes(1_000_000)


def test_a_message_over_its_limit_is_refused_and_the_connection_lives(start_server: StartServer) -> None:
    server = start_server("--max_message_bytes=2000")
    with connected(server.address) as calls:
        calls.create("policy", note="x" * 1500)
        with fails(
            Code.RESOURCE_EXHAUSTED,
            "a message is larger than max_message_bytes allows, which is 2000: send less at once, or raise that option",
        ):
            calls.CreateOrUpdateModel(model_info("policy", note="x" * 2000))
        with fails(Code.RESOURCE_EXHAUSTED) as caught:
            calls.store("policy", b"data", user_data={"note": "x" * 2000})
        assert "max_message_bytes" in str(caught.value)
        calls.store("policy", bytes(100_000))  # data has no such limit
        assert calls.data("policy") == bytes(100_000)


async def test_headers_over_their_limit_are_refused_and_the_connection_lives(start_server: StartServer) -> None:
    """As a proxy sends them, whose clients share a connection and the table of its headers."""
    server = start_server("--max_header_bytes=1024")
    encoder = hpack.Encoder()
    async with h2client.connected(server.port) as client:
        assert client.server_settings[MAX_HEADER_LIST_SIZE] == 1024

        async def call(*extra: tuple[bytes, bytes]) -> h2client.Reply:
            stream_id = client.new_id()
            fields = encoder.encode(h2client.request_fields(STATUS, extra))
            parts = [fields[at : at + 16_384] for at in range(0, len(fields), 16_384)]
            await client.send(
                h2client.headers(stream_id, parts[0], end_headers=len(parts) == 1),
                *(
                    frames.frame_header(len(part), frames.CONTINUATION, 4 if part is parts[-1] else 0, stream_id) + part
                    for part in parts[1:]
                ),
                h2client.data(stream_id, h2client.message(b""), end_stream=True),
            )
            return await client.finished(stream_id)

        for number in range(3):
            named = (b"note-%d" % number, b"x" * 100)
            assert (await call(named)).status == 0
            for size in (1024, 20_000, 200_000):
                refused = await call((b"before", b"1"), (b"large-%d" % number, b"x" * size), (b"after", b"1"), named)
                assert refused.status == Code.RESOURCE_EXHAUSTED.value[0]
                assert refused.text == "the call's headers are larger than max_header_bytes allows, which is 1024"
                assert (await call((b"after", b"1"), named)).status == 0
        await client.try_send(h2client.headers(client.new_id(), bytes(256 * 1024 + 1)))
        await client.until_closed()
        (goaway,) = client.goaways
        assert goaway.code is ErrorCode.ENHANCE_YOUR_CALM
        assert "262144" in reason(goaway)


async def test_streams_over_their_limit_are_refused(start_server: StartServer) -> None:
    server = start_server("--max_concurrent_streams=2")
    async with h2client.connected(server.port) as client:
        assert client.server_settings[MAX_CONCURRENT_STREAMS] == 2
        watches = []
        for _ in range(3):
            watches.append(client.new_id())
            fields = h2client.request_fields(WATCH_HEALTH)
            await client.send(
                h2client.headers(watches[-1], h2client.block(fields)),
                h2client.data(watches[-1], h2client.message(b""), end_stream=True),
            )
        assert (await client.finished(watches[2])).reset is ErrorCode.REFUSED_STREAM
        await client.send(frames.rst_stream(watches[0], ErrorCode.CANCEL))
        with trio.fail_after(PATIENCE):  # until the handler has ended, too
            while (await client.call(STATUS, b"")).status != 0:
                pass
        assert not client.reply(watches[1]).ended


async def test_connections_over_their_limit_may_check_the_health(start_server: StartServer) -> None:
    server = start_server("--max_connections=1")
    async with h2client.connected(server.port) as first:
        watching = await begin(first, "VersionUpdate", WATCH, whole=False)  # it lasts until its request is complete
        async with h2client.connected(server.port) as second:
            for path in (STATUS, VERSION, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List"):
                assert (await second.call(path, b"")).status == 0
            assert (await second.call("/grpc.health.v1.Health/Watch", b"")).status == 14
            await second.until_closed()
        assert not first.reply(watching).ended
        await first.send(frames.rst_stream(watching, ErrorCode.CANCEL))
    async with h2client.connected(server.port) as third:
        assert (await third.call("/cogmentAPI.ModelRegistrySP/RetrieveModels", b"")).status == 0


@pytest.mark.parametrize(
    ("tls", "said"), [(False, b""), (True, b""), (True, CLIENT_HELLO_BEGINS)], ids=["plain", "TLS", "amidst TLS"]
)
def test_whoever_goes_silent_is_closed_after_the_handshake_timeout(
    start_server: StartServer, tmp_path: Path, tls: bool, said: bytes
) -> None:
    server = start_server("--handshake_timeout=1", *(certificate_options(tmp_path) if tls else ()))
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        silent.sendall(said)
        silent.settimeout(8)  # the default is 10
        while silent.recv(1 << 16):
            pass


async def test_a_connection_without_calls_is_asked_to_go_after_the_idle_timeout(start_server: StartServer) -> None:
    server = start_server("--idle_timeout=1")
    async with h2client.connected(server.port) as client:
        assert (await client.call(STATUS, b"")).status == 0
        await client.until_closed()
        assert {goaway.code for goaway in client.goaways} == {ErrorCode.NO_ERROR}
