"""TLS and tokens: who gets in, with C-core, the official SDK and plain sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import grpc
import pytest
import trustme

import modelreg.client
from modelreg.api import common_pb2, health_pb2
from modelreg.api import model_registry_pb2 as api
from modelreg.transport import frames
from modelreg.transport.tls import make_context
from tests.clients.calls import CHANNEL_OPTIONS, Calls, Code, open_channel
from tests.support import h2client
from tests.support.server import PATIENCE, ServerProgram, StartServer

WRITER, READER = "writer-token-1", "reader-token-1"


@attrs.frozen
class Authority:
    """A CA, and files of what it has issued."""

    ca: trustme.CA
    directory: Path

    @property
    def ca_file(self) -> Path:
        return self._write("ca.pem", self.ca.cert_pem)

    def server_options(self, name: str = "server") -> tuple[str, str]:
        """A certificate for 127.0.0.1, as options of the server. Issued again, it takes the place of the one before."""
        issued = self.ca.issue_cert("127.0.0.1")
        certificate = self.directory / f"{name}.pem"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key = self._write(f"{name}.key", issued.private_key_pem)
        return f"--tls_certificate={certificate}", f"--tls_key={key}"

    def _write(self, name: str, blob: trustme.Blob) -> Path:
        path = self.directory / name
        path.write_bytes(blob.bytes())
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(trustme.CA(), tmp_path)


@contextmanager
def secure_calls(
    server: ServerProgram, authority: Authority, client: trustme.LeafCert | None = None
) -> Iterator[Calls]:
    identity = (None, None) if client is None else (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_channel_credentials(authority.ca.cert_pem.bytes(), *identity)
    with grpc.secure_channel(server.address, credentials, options=CHANNEL_OPTIONS) as channel:
        yield Calls(channel)


def served_certificate(server: ServerProgram, authority: Authority) -> bytes | None:
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            return secure.getpeercert(binary_form=True)


def round_trip(calls: Calls, data: bytes) -> None:
    calls.create("policy")
    assert calls.data("policy", calls.store("policy", data).version_number) == data


def test_everything_works_over_tls(start_server: StartServer, authority: Authority) -> None:
    server = start_server(*authority.server_options())
    with secure_calls(server, authority) as calls:
        round_trip(calls, b"secret" * 500_000)
    assert server.wait_for_log("serving")["tls"] is True


def test_a_plain_client_fails_cleanly_on_a_tls_port_and_others_go_on(
    start_server: StartServer, authority: Authority
) -> None:
    server = start_server(*authority.server_options())
    with secure_calls(server, authority) as calls:
        with open_channel(server.address) as plain, pytest.raises(grpc.RpcError) as caught:
            Calls(plain).create("policy")
        assert caught.value.code() is Code.UNAVAILABLE
        round_trip(calls, b"data")


def test_a_tls_client_fails_cleanly_on_a_plain_port(start_server: StartServer, authority: Authority) -> None:
    server = start_server()
    with secure_calls(server, authority) as calls, pytest.raises(grpc.RpcError) as caught:
        calls.create("policy")
    assert caught.value.code() is Code.UNAVAILABLE
    with open_channel(server.address) as plain:
        round_trip(Calls(plain), b"data")


@pytest.mark.parametrize("protocols", [[], ["http/1.1"]], ids=["no ALPN", "HTTP/1.1"])
def test_a_client_that_does_not_agree_on_http2_is_closed(
    start_server: StartServer, authority: Authority, protocols: list[str]
) -> None:
    server = start_server(*authority.server_options())
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    if protocols:
        context.set_alpn_protocols(protocols)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                assert secure.recv(1) == b""
        except (ssl.SSLError, ConnectionError):
            pass  # refused in the handshake, or right after it


def test_clients_need_a_certificate_where_a_ca_says_so(start_server: StartServer, authority: Authority) -> None:
    server = start_server(*authority.server_options(), f"--tls_client_ca={authority.ca_file}")
    with secure_calls(server, authority, authority.ca.issue_cert("trainer.example")) as calls:
        round_trip(calls, b"data")
    for client in (None, trustme.CA().issue_cert("stranger.example")):
        with secure_calls(server, authority, client) as calls, pytest.raises(grpc.RpcError) as caught:
            calls.create("policy")
        assert caught.value.code() is Code.UNAVAILABLE


def refusal(server: ServerProgram, authority: Authority, client: trustme.LeafCert | None = None) -> str:
    """The alert with which a handshake ends, in OpenSSL's words."""
    trusting = ssl.create_default_context(cafile=str(authority.ca_file))
    trusting.set_alpn_protocols(["h2"])
    if client is not None:
        client.configure_cert(trusting)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain:
        with pytest.raises(ssl.SSLError) as caught, trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            while secure.recv(1000):  # the server's settings are no answer yet
                pass
    return str(caught.value.reason)


def test_tls_is_1_2_or_newer(authority: Authority) -> None:
    certificate, key = (Path(option.partition("=")[2]) for option in authority.server_options())
    assert make_context(certificate, key).minimum_version is ssl.TLSVersion.TLSv1_2


def test_no_suite_is_offered_that_http2_prohibits(authority: Authority) -> None:
    """RFC 9113, appendix A."""
    certificate, key = (Path(option.partition("=")[2]) for option in authority.server_options())
    for context in (make_context(certificate, key), modelreg.client.Endpoint("grpc://a:1", tls=True).tls_context()):
        assert context is not None
        suites = context.get_ciphers()
        assert {suite["protocol"] for suite in suites} == {"TLSv1.2", "TLSv1.3"}
        assert all(suite["aead"] and suite["kea"] in ("kx-ecdhe", "kx-any") for suite in suites)


@pytest.mark.parametrize("suite", ["ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-SHA256"])
def test_suites_that_http2_prohibits_are_not_served(
    start_server: StartServer, authority: Authority, suite: str
) -> None:
    server = start_server(*authority.server_options())
    for suites, refused in ((suite, True), (f"{suite}:ECDHE+AESGCM", False)):
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(suites)
        context.set_alpn_protocols(["h2"])
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain:
            with pytest.raises(ssl.SSLError) if refused else nullcontext():
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                    assert secure.cipher()[0].startswith("ECDHE-")  # type: ignore[index]
                    assert secure.recv(9)[3] == frames.SETTINGS


def test_whoever_fails_the_handshake_is_told_why_and_so_is_the_log(
    start_server: StartServer, authority: Authority
) -> None:
    options = (*authority.server_options(), f"--tls_client_ca={authority.ca_file}", "--log_level=debug")
    server = start_server(*options)
    stranger = trustme.CA().issue_cert("stranger.example")
    yesterday = datetime.now(timezone.utc) - timedelta(days=1)
    expired = authority.ca.issue_cert("trainer.example", not_after=yesterday)
    assert refusal(server, authority) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    server.wait_for_log("a TLS handshake failed", client="127.0.0.1", reason="PEER_DID_NOT_RETURN_A_CERTIFICATE")
    assert refusal(server, authority, stranger) == "TLSV1_ALERT_UNKNOWN_CA"
    assert refusal(server, authority, expired) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
    server.wait_for_log("a TLS handshake failed", reason="CERTIFICATE_VERIFY_FAILED")
    with secure_calls(server, authority, authority.ca.issue_cert("trainer.example")) as calls:
        round_trip(calls, b"data")


def test_who_fails_the_handshake_and_stays_is_not_waited_for(start_server: StartServer, authority: Authority) -> None:
    server = start_server(*authority.server_options(), "--max_connections=1", "--handshake_timeout=3600")
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain:
        plain.sendall(b"nothing that TLS begins with")
        with secure_calls(server, authority) as calls:
            round_trip(calls, b"data")


def test_a_renewed_certificate_is_taken_up_without_a_restart(start_server: StartServer, authority: Authority) -> None:
    server = start_server(*authority.server_options())
    with secure_calls(server, authority) as calls:
        calls.create("policy")
        first = served_certificate(server, authority)
        authority.server_options()
        server.hang_up("renewed credentials")
        assert served_certificate(server, authority) != first
        calls.store("policy", b"on the connection from before")


def test_a_renewal_that_cannot_be_used_leaves_things_as_they_were(
    start_server: StartServer, authority: Authority
) -> None:
    server = start_server(*authority.server_options())
    first = served_certificate(server, authority)
    (authority.directory / "server.key").write_text("no key")
    server.hang_up("credentials could not be renewed, those from before stay")
    assert served_certificate(server, authority) == first


def test_the_official_sdk_over_tls(start_server: StartServer, authority: Authority) -> None:
    cogment: Any = pytest.importorskip("cogment", reason="the official SDK isn't installed")
    client = authority.ca.issue_cert("trainer.example")
    server = start_server(*authority.server_options(), f"--tls_client_ca={authority.ca_file}")

    async def main() -> bytes:
        endpoint = cogment.Endpoint(f"grpc://{server.address}", use_ssl=True)
        endpoint.private_key = client.private_key_pem.bytes().decode()
        endpoint.certificate_chain = client.cert_chain_pems[0].bytes().decode()
        endpoint.root_certificates = authority.ca.cert_pem.bytes().decode()
        context = cogment.Context("tests", ModuleType("cog_settings"), prometheus_registry=None)
        registry = await context.get_model_registry_v2(endpoint)
        await registry.store_model("policy", b"weights")
        data: bytes = await registry.retrieve_model("policy")
        return data

    assert asyncio.run(main()) == b"weights"


# Tokens


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"read-write {WRITER}\nread-only {READER}\n")
    return path


@pytest.fixture
def guarded(start_server: StartServer, token_file: Path) -> ServerProgram:
    return start_server(f"--authentication_token_file={token_file}", "--grpc_reflection", "--log_level=trace")


def code_of(call: Any, message: Any, *metadata: tuple[str, str]) -> Any:
    """How a call ends."""
    try:
        call(message, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return Code.OK


@pytest.mark.parametrize("style", ["authentication-token", "authorization"])
def test_tokens_say_who_may_read_and_who_may_write(guarded: ServerProgram, style: str) -> None:
    def token(text: str) -> tuple[str, str]:
        return style, f"Bearer {text}" if style == "authorization" else text

    create = api.CreateOrUpdateModelRequest(model_info=api.ModelInfo(model_id="policy"))
    with open_channel(guarded.address) as channel:
        calls = Calls(channel)
        for metadata in ((), (token("wrong-token"),)):
            assert code_of(calls.CreateOrUpdateModel, create, *metadata) is Code.UNAUTHENTICATED
            assert code_of(calls.RetrieveModels, api.RetrieveModelsRequest(), *metadata) is Code.UNAUTHENTICATED
        assert code_of(calls.CreateOrUpdateModel, create, token(READER)) is Code.PERMISSION_DENIED
        delete = api.DeleteModelRequest(model_id="policy")
        assert code_of(calls.DeleteModel, delete, token(READER)) is Code.PERMISSION_DENIED
        assert code_of(calls.CreateOrUpdateModel, create, token(WRITER)) is Code.OK
        assert code_of(calls.RetrieveModels, api.RetrieveModelsRequest(), token(READER)) is Code.OK
        assert code_of(calls.DeleteModel, delete, token(WRITER)) is Code.OK


def test_an_upload_without_a_token_is_refused_before_its_data(guarded: ServerProgram) -> None:
    sent = 0

    def chunks() -> Iterator[api.CreateVersionRequestChunk]:
        nonlocal sent
        header = api.ModelVersionInfo(model_id="policy", data_size=1 << 30)
        yield api.CreateVersionRequestChunk(header=api.CreateVersionRequestChunk.Header(version_info=header))
        for _ in range(1 << 10):
            sent += 1
            yield api.CreateVersionRequestChunk(body=api.CreateVersionRequestChunk.Body(data_chunk=bytes(1 << 20)))

    with open_channel(guarded.address) as channel:
        assert code_of(Calls(channel).CreateVersion, chunks()) is Code.UNAUTHENTICATED
    assert sent < 64


async def test_a_call_without_a_token_is_refused_before_its_message(guarded: ServerProgram) -> None:
    async with h2client.connected(guarded.port) as client:
        for method in ("RetrieveModels", "CreateOrUpdateModel", "CreateVersion", "VersionUpdate"):
            stream = await client.open(f"/cogmentAPI.ModelRegistrySP/{method}")
            assert (await client.finished(stream)).status == Code.UNAUTHENTICATED.value[0]


async def test_who_calls_is_asked_before_what(guarded: ServerProgram) -> None:
    async with h2client.connected(guarded.port) as client:
        for path in ("/cogmentAPI.ModelRegistrySP/Nothing", "/no.Service/Method", "/a/" + "b" * 4000):
            assert (await client.call(path, b"")).status == Code.UNAUTHENTICATED.value[0]
            reply = await client.call(path, b"", [(b"authentication-token", READER.encode())])
            assert reply.status == Code.UNIMPLEMENTED.value[0]
            assert len(reply.text or "") < 200


def test_health_is_open_to_all_and_reflection_is_not(guarded: ServerProgram) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with open_channel(guarded.address) as channel:
        health = Calls(channel, health_pb2.DESCRIPTOR.services_by_name["Health"])
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as caught:
            list(reflect(iter([request]), timeout=PATIENCE))
        assert caught.value.code() is Code.UNAUTHENTICATED
        answers = list(reflect(iter([request]), metadata=[("authentication-token", READER)], timeout=PATIENCE))
        assert answers[0].list_services_response.service


def test_a_directorys_health_check_needs_no_token_and_learns_nothing(guarded: ServerProgram) -> None:
    with open_channel(guarded.address) as channel:
        calls = Calls(channel)
        assert {version.name for version in calls.Version(common_pb2.VersionRequest()).versions} >= {
            "cogment-api",
            "grpc",
        }
        assert not calls.Status(common_pb2.StatusRequest()).statuses
        for names in (["*"], ["models"], ["nonsense"]):
            status = common_pb2.StatusRequest(names=names)
            assert code_of(calls.Status, status) is Code.UNAUTHENTICATED
            assert code_of(calls.Status, status, ("authentication-token", "wrong-token")) is Code.UNAUTHENTICATED
            assert code_of(calls.Status, status, ("authentication-token", READER)) is Code.OK


def test_tokens_are_renewed_without_a_restart(guarded: ServerProgram, token_file: Path) -> None:
    with open_channel(guarded.address) as channel:
        models = Calls(channel).RetrieveModels
        token_file.write_text("read-only another-token\n")
        guarded.hang_up("renewed credentials")
        assert code_of(models, api.RetrieveModelsRequest(), ("authentication-token", READER)) is Code.UNAUTHENTICATED
        assert code_of(models, api.RetrieveModelsRequest(), ("authentication-token", "another-token")) is Code.OK


def test_the_official_sdk_with_a_token(guarded: ServerProgram) -> None:
    cogment: Any = pytest.importorskip("cogment", reason="the official SDK isn't installed")
    metadata = pytest.importorskip("cogment.grpc_metadata").GrpcMetadata()
    metadata.add("authentication-token", WRITER)

    async def main() -> bytes:
        context = cogment.Context("tests", ModuleType("cog_settings"), prometheus_registry=None, metadata=metadata)
        registry = await context.get_model_registry_v2(cogment.Endpoint(f"grpc://{guarded.address}"))
        await registry.store_model("policy", b"weights")
        data: bytes = await registry.retrieve_model("policy")
        return data

    assert asyncio.run(main()) == b"weights"


def test_secrets_reach_no_log_error_or_status(guarded: ServerProgram) -> None:
    with open_channel(guarded.address) as channel:
        calls = Calls(channel)
        metadata = [("authentication-token", READER)]
        status = calls.Status(common_pb2.StatusRequest(names=["*"]), metadata=metadata)
        with pytest.raises(grpc.RpcError) as caught:
            calls.DeleteModel(api.DeleteModelRequest(model_id="policy"), metadata=metadata)
    guarded.stop()
    for text in (str(guarded.log), str(status), str(caught.value)):
        assert READER not in text
        assert WRITER not in text


@pytest.mark.parametrize(
    "options",
    [
        ["--authentication_token_file=missing"],
        ["--tls_certificate=missing", "--tls_key=missing"],
    ],
    ids=["tokens", "certificate"],
)
def test_files_that_cannot_be_used_end_the_start_with_a_line(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "modelreg", "serve", "--port=0", *options]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 8
    assert len(ended.stderr.splitlines()) == 1
    assert "missing" in ended.stderr
