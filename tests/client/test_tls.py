"""TLS: whom the client trusts, and who it says it is."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import ssl
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trustme

import modelreg.client as cogment
from modelreg.api import common_pb2
from modelreg.api.model_registry_grpc import ModelRegistrySPServicer
from tests.client.conftest import Run
from tests.client.door import Door
from tests.client.fakes import Directory, serving
from tests.test_credentials import ENCRYPTED_KEY


class Registry(ModelRegistrySPServicer):
    async def Version(self, message: Any) -> Any:
        return common_pb2.VersionInfo(versions=[common_pb2.VersionInfo.Version(name="modelreg", version="x" * 300_000)])


@pytest.fixture(scope="module")
def ca() -> Any:
    return trustme.CA()


@pytest.fixture(scope="module")
def context(ca: trustme.CA) -> Any:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_alpn_protocols(["h2"])
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(made)
    return made


def pem(blob: Any) -> str:
    return str(blob.bytes().decode())


def versions_at(run: Run, endpoint: Any, patience: float = 0.1, **options: Any) -> Any:
    async def main() -> Any:
        async with cogment.Context("test", **options) as made:
            registry = await made.get_model_registry_v2(endpoint, patience=patience)
            return await registry.versions()

    return run(main)


def test_a_certificate_that_is_trusted(run: Run, ca: trustme.CA, context: Any) -> None:
    with serving(Registry(), ssl=context) as running:
        endpoint = cogment.Endpoint(running.url, root_certificates=pem(ca.cert_pem))
        assert len(versions_at(run, endpoint)["modelreg"]) == 300_000


def test_who_the_system_trusts_is_trusted(
    run: Run, ca: trustme.CA, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with serving(Registry(), ssl=context) as running:
        endpoint = cogment.Endpoint(running.url, tls=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # where OpenSSL looks for the system's
        assert versions_at(run, endpoint)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        with pytest.raises(cogment.Denied, match="isn't trusted"):
            versions_at(run, endpoint)


def test_a_certificate_that_is_not(run: Run, context: Any) -> None:
    with serving(Registry(), ssl=context) as running:
        for roots in (None, pem(trustme.CA().cert_pem)):
            endpoint = cogment.Endpoint(running.url, private_key="", root_certificates=roots)
            with pytest.raises(cogment.Denied, match="isn't trusted"):
                versions_at(run, endpoint)


def test_a_certificate_of_another_host(run: Run, ca: trustme.CA) -> None:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("example.org").configure_cert(made)
    with serving(Registry(), ssl=made) as running:
        with pytest.raises(cogment.Denied, match="isn't trusted"):
            versions_at(run, cogment.Endpoint(running.url, root_certificates=pem(ca.cert_pem)))


def test_a_server_that_wants_to_know_who_calls(run: Run, ca: trustme.CA) -> None:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_alpn_protocols(["h2"])
    made.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(made)
    ca.issue_cert("127.0.0.1").configure_cert(made)
    ours = ca.issue_cert("trainer.example")
    with serving(Registry(), ssl=made) as running:
        chain = "".join(pem(blob) for blob in ours.cert_chain_pems)
        assert versions_at(run, cogment.Endpoint(running.url, pem(ours.private_key_pem), pem(ca.cert_pem), chain))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_that_the_server_does_not_take(run: Run, ca: trustme.CA, version: ssl.TLSVersion) -> None:
    """In TLS 1.3 the server says so when the handshake is over for the client."""
    theirs = trustme.CA()
    past = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)
    for leaf in (ca.issue_cert("trainer.example"), theirs.issue_cert("trainer.example", not_after=past)):
        with Door.that_wants(ca, version, of=theirs) as door:
            chain = "".join(pem(blob) for blob in leaf.cert_chain_pems)
            endpoint = cogment.Endpoint(door.url, pem(leaf.private_key_pem), pem(ca.cert_pem), chain)
            with pytest.raises(cogment.Denied, match="certificate_chain isn't accepted"):
                versions_at(run, endpoint, patience=30)
            assert door.knocks == 1


def test_no_certificate_for_a_server_that_wants_one(run: Run, ca: trustme.CA) -> None:
    with Door.that_wants(ca, ssl.TLSVersion.TLSv1_3, of=ca) as door:
        with pytest.raises(cogment.Denied, match="wants a certificate"):
            versions_at(run, cogment.Endpoint(door.url, root_certificates=pem(ca.cert_pem)), patience=30)
        assert door.knocks == 1


def test_plain_bytes_where_tls_is_spoken_and_the_other_way_round(run: Run, ca: trustme.CA, context: Any) -> None:
    with serving(Registry(), ssl=context) as running:
        with pytest.raises(cogment.Unavailable):
            versions_at(run, cogment.Endpoint(running.url))
    with serving(Registry()) as running:
        with pytest.raises(cogment.Unavailable, match="TLS"):
            versions_at(run, cogment.Endpoint(running.url, root_certificates=pem(ca.cert_pem)))


def test_keys_that_can_not_be_used(run: Run) -> None:
    for endpoint in (
        cogment.Endpoint("grpc://localhost:1", root_certificates="no PEM"),
        cogment.Endpoint("grpc://localhost:1", root_certificates=pem(trustme.CA().cert_pem).replace("M", "ä")),
        cogment.Endpoint("grpc://localhost:1", private_key="no", certificate_chain="PEM"),
    ):
        with pytest.raises(ValueError, match="can't be used"):
            versions_at(run, endpoint)


def test_what_stands_around_keys_and_certificates(ca: trustme.CA) -> None:
    """Comments, in any language, and the mark that editors on Windows put first."""
    ours = ca.issue_cert("trainer.example")
    texts = [pem(blob) for blob in (ours.private_key_pem, ca.cert_pem, ours.cert_chain_pems[0])]
    key, roots, chain = (f"\ufeff{text}# Schlüssel\n" for text in texts)
    context = cogment.Endpoint("grpc://localhost:1", key, roots, chain).tls_context()
    assert context is not None
    assert len(context.get_ca_certs()) == 1


def test_no_root_certificates_are_not_those_of_the_system() -> None:
    for nothing in ("", "\n", "# later\n"):
        with pytest.raises(ValueError, match="no PEM in root_certificates"):
            cogment.Endpoint("grpc://localhost:1", root_certificates=nothing).tls_context()


def test_nobody_is_asked_for_the_passphrase_of_a_key(ca: trustme.CA) -> None:
    endpoint = cogment.Endpoint("grpc://localhost:1", ENCRYPTED_KEY, certificate_chain=pem(ca.cert_pem))
    with pytest.raises(ValueError, match=r"can't be used: the private_key is encrypted"):
        endpoint.tls_context()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no files in memory")
def test_the_key_is_not_written_to_a_disk(ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ca.issue_cert("trainer.example")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    endpoint = cogment.Endpoint(
        "grpc://localhost:1", pem(ours.private_key_pem), certificate_chain=pem(ours.cert_chain_pems[0])
    )
    assert endpoint.tls_context() is not None


def test_a_certificate_without_its_key(run: Run, ca: trustme.CA) -> None:
    with pytest.raises(ValueError, match="without its private_key"):
        versions_at(run, cogment.Endpoint("grpc://localhost:1", certificate_chain=pem(ca.cert_pem)))


def test_what_has_keys_is_not_shown(ca: trustme.CA) -> None:
    endpoint = cogment.Endpoint("grpc://h:1", private_key="SECRET", token="SECRET")
    assert "SECRET" not in repr(endpoint)


def test_discovery_of_a_registry_with_tls(run: Run, ca: trustme.CA, context: Any) -> None:
    directory = Directory()
    with serving(Registry(), ssl=context) as secure, serving(Registry()) as plain, serving(directory) as asked:
        directory.add(plain.port)
        directory.add(secure.port, ssl=True)
        endpoint = cogment.Endpoint(root_certificates=pem(ca.cert_pem))
        assert versions_at(run, endpoint, directory_endpoint=cogment.Endpoint(asked.url))


def test_the_registrys_token(run: Run) -> None:
    class Closed(Registry):
        async def Version(self, message: Any, request: Any) -> Any:  # type: ignore[override]
            assert ("authentication-token", "secret") in request.custom_metadata
            return common_pb2.VersionInfo()

    with serving(Closed()) as running:
        assert versions_at(run, cogment.Endpoint(running.url, token="secret")) == {}
        with contextlib.suppress(cogment.Failed):
            versions_at(run, cogment.Endpoint(running.url))
            pytest.fail("there was no token")


def test_no_token_in_a_log(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A program that logs everything that any library says."""
    with serving(Registry()) as running, caplog.at_level(1):
        for _ in range(2):
            assert versions_at(run, cogment.Endpoint(running.url, token="SECRET"))
    assert "SECRET" not in caplog.text
    assert "header block" not in caplog.text  # which has it as Huffman code
