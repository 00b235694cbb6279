"""What is read of the files that say who is who, at the start and when they are renewed."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import structlog
import trio
import trustme

from modelreg.credentials import Credentials
from modelreg.errors import CredentialsUnusable
from modelreg.settings import Settings
from modelreg.transport.tls import TlsListener
from tests.support.server import PATIENCE

FAILED = "credentials could not be renewed, those from before stay"

ENCRYPTED_KEY = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGjMF8GCSqGSIb3DQEFDTBSMDEGCSqGSIb3DQEFDDAkBBCKiyA1LelnnYMsU82g
1bsaAgIIADAMBggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQndQNIm432F7I2gLb
Mkw8XgRA2xKsl3FDJci9BaOzuJwDoRb5K1XZX1Qvx1gXIp4iVrt3ZRI7iuKMFFd6
cKNgbgNuBQkN1VO7yeShsPED7qh15Q==
-----END ENCRYPTED PRIVATE KEY-----
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Files of each kind that can be used."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    files = {
        "tls_certificate": issued.cert_chain_pems[0].bytes(),
        "tls_key": issued.private_key_pem.bytes(),
        "tls_client_ca": ca.cert_pem.bytes(),
        "authentication_token_file": b"read-write writer-token-1\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    return Settings(
        tls_certificate=tmp_path / "tls_certificate",
        tls_key=tmp_path / "tls_key",
        tls_client_ca=tmp_path / "tls_client_ca",
        authentication_token_file=tmp_path / "authentication_token_file",
    )


def read(settings: Settings) -> Credentials:
    return Credentials(settings, structlog.get_logger())


async def test_what_is_renewed_is_taken_up_by_every_listener(settings: Settings, tmp_path: Path) -> None:
    credentials = read(settings)
    before = credentials.tokens()
    listeners = [credentials.protected((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]) for _ in range(2)]
    contexts = [listener.context for listener in listeners if isinstance(listener, TlsListener)]
    assert len(contexts) == 2
    other = trustme.CA()
    (tmp_path / "tls_client_ca").write_bytes(other.cert_pem.bytes())
    (tmp_path / "authentication_token_file").write_text("read-only another-token\n")
    with structlog.testing.capture_logs() as log:
        credentials.renew()
    assert [line["event"] for line in log] == ["renewed credentials"]
    assert credentials.tokens() not in (before, None)
    for listener in listeners:
        assert isinstance(listener, TlsListener)
        assert listener.context not in contexts
        assert listener.context.verify_mode is ssl.CERT_REQUIRED
        assert [*map(ssl.DER_cert_to_PEM_cert, listener.context.get_ca_certs(binary_form=True))] == [
            other.cert_pem.bytes().decode()
        ]
        await listener.aclose()


@pytest.mark.parametrize("broken", ["tls_certificate", "tls_key", "tls_client_ca", "authentication_token_file"])
async def test_one_file_that_cannot_be_used_keeps_the_others_from_being_taken_up(
    settings: Settings, tmp_path: Path, broken: str
) -> None:
    credentials = read(settings)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    protected = credentials.protected(listener)
    assert isinstance(protected, TlsListener)
    tokens, context = credentials.tokens(), protected.context
    assert tokens is not None
    (tmp_path / "authentication_token_file").write_text("read-only another-token\n")
    (tmp_path / broken).write_text("nothing of use")
    with structlog.testing.capture_logs() as log:
        credentials.renew()
    assert [(line["event"], line["log_level"]) for line in log] == [(FAILED, "error")]
    assert str(tmp_path / broken) in log[0]["reason"]
    assert credentials.tokens() is tokens
    assert protected.context is context
    await protected.aclose()


def test_without_credentials_there_is_nothing_to_renew() -> None:
    credentials = read(Settings())
    with structlog.testing.capture_logs() as log:
        credentials.renew()
    assert credentials.tokens() is None
    assert log == []


@pytest.mark.parametrize("broken", ["tls_certificate", "tls_key", "tls_client_ca", "authentication_token_file"])
def test_a_file_that_cannot_be_used_is_named(settings: Settings, tmp_path: Path, broken: str) -> None:
    cut_short = (tmp_path / broken).read_bytes()[:60]
    for content in (b"", b"nothing of use", b"\xff\xfe\0", cut_short.replace(b"read-write", b""), None):
        (tmp_path / broken).unlink() if content is None else (tmp_path / broken).write_bytes(content)
        with pytest.raises(CredentialsUnusable) as caught:
            read(settings)
        assert str(tmp_path / broken) in str(caught.value)
        assert sum(str(path) in str(caught.value) for path in tmp_path.iterdir()) <= 1
        assert ("No such file" in str(caught.value)) == (content is None)


@pytest.mark.parametrize("odd", ["tls_certificate", "tls_key", "tls_client_ca", "authentication_token_file"])
def test_only_regular_files_are_read_as_others_may_never_end(settings: Settings, tmp_path: Path, odd: str) -> None:
    credentials = read(settings)
    (tmp_path / odd).unlink()
    (tmp_path / odd).symlink_to("/dev/null")
    with structlog.testing.capture_logs() as log:
        credentials.renew()
    (line,) = log
    assert line["event"] == FAILED
    assert "no regular file" in line["reason"]
    assert str(tmp_path / odd) in line["reason"]


def test_nobody_is_asked_for_the_passphrase_of_a_key(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "tls_key").write_text(ENCRYPTED_KEY)
    with pytest.raises(CredentialsUnusable, match=r"tls_key'.*encrypted.*openssl pkey"):
        read(settings)


@pytest.mark.parametrize("key_type", list(trustme.KeyType))
def test_a_key_of_another_certificate_is_said_to_be_one(
    settings: Settings, tmp_path: Path, key_type: trustme.KeyType
) -> None:
    other = trustme.CA(key_type=key_type).issue_cert("127.0.0.1", key_type=key_type)
    (tmp_path / "tls_key").write_bytes(other.private_key_pem.bytes())
    with pytest.raises(CredentialsUnusable, match="the key is another certificate's"):
        read(settings)


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o660, True), (0o602, True)]
)
def test_secrets_that_others_can_read_or_change_are_warned_about(
    settings: Settings, tmp_path: Path, mode: int, warned: bool
) -> None:
    secrets = ["tls_key", "authentication_token_file"]
    for name in (*secrets, "tls_certificate", "tls_client_ca"):
        (tmp_path / name).chmod(mode)
    with structlog.testing.capture_logs() as log:
        read(settings)
    assert [line["file"] for line in log] == ([str(tmp_path / name) for name in secrets] if warned else [])


class Rounds(trio.abc.Instrument):
    """Counts how often the loop has gone round."""

    number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


def hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def test_of_many_handshakes_one_takes_its_turn_at_a_time(settings: Settings) -> None:
    rounds = Rounds()
    trio.lowlevel.add_instrument(rounds)
    answered: list[int] = []
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = plain.socket.getsockname()[1]
    listener = read(settings).protected(plain)
    assert isinstance(listener, TlsListener)
    listener.context.sni_callback = lambda *_: answered.append(rounds.number)  # within the costly step
    clients = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(10)]
    streams = [await listener.accept() for _ in clients]
    for client in clients:
        await client.send_all(hello())
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.receive_some)
        with trio.fail_after(PATIENCE):
            while len(answered) < 10:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    for each in (*clients, *streams, listener):
        await trio.aclose_forcefully(each)
    trio.lowlevel.remove_instrument(rounds)
    assert len(set(answered)) == 10
