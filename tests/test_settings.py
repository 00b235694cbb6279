from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from modelreg import settings as settings_module
from modelreg.settings import ACCEPTABLE_CHUNK_BYTES, DOCUMENTED_CHUNK_BYTES, OPTIONS, InvalidOption, Option, Settings
from modelreg.transport.limits import Limits

# For each option two texts and their values, neither the default, and texts that aren't allowed.
EXAMPLES: dict[str, tuple[tuple[str, object], tuple[str, object], list[str]]] = {
    "port": (("12000", 12000), ("0", 0), ["65536", "-1", "http", "1_000", " 1", "", "9" * 5000]),
    "host": (("0.0.0.0", "0.0.0.0"), ("[::1]", "::1"), ["", "a b", "host:9002", "-x", "a" * 254]),
    "grpc_reflection": (("1", True), ("TRUE", True), ["2", "maybe", ""]),
    "archive_dir": (("./path/to/models/", Path("path/to/models")), ("/a b", Path("/a b")), ["", "a\0b"]),
    "cache_max_items": (("500", 500), ("1", 1), ["0", "-5", "many"]),
    "cache_max_items_per_model": (("20", 20), ("1", 1), ["-1", "all"]),
    "cache_max_bytes": (("1", 1), ("68719476736", 64 << 30), ["0", "1GiB"]),
    "scrub_bytes_per_second": (("1", 1), ("10000000", 10_000_000), ["-1", "10MB"]),
    "sent_version_chunk_size": (("10000000", 10_000_000), ("1", 1), ["0", str(1 << 31), "5MB"]),
    "upload_buffer_bytes": (("16777216", 16 << 20), ("1073741824", 1 << 30), ["1", "256MiB"]),
    "max_version_bytes": (("1", 1), ("107374182400", 100 << 30), ["-1", "100GiB"]),
    "max_user_data_entries": (("100", 100), ("1", 1), ["0", "many"]),
    "max_user_data_bytes": (("4096", 4096), ("1", 1), ["0", "1MiB"]),
    "max_message_bytes": (("1024", 1024), ("8388608", 8 << 20), ["0", "1023", str(2 << 30), "4MiB"]),
    "max_reply_bytes": (("1024", 1024), ("8388608", 8 << 20), ["0", "1023", str(1 << 31), "4MiB"]),
    "max_header_bytes": (("1024", 1024), ("65536", 1 << 16), ["0", "1023", str((256 << 10) + 1), "16K"]),
    "max_connections": (("1", 1), ("10000", 10_000), ["0", "many"]),
    "max_concurrent_streams": (("1", 1), ("100", 100), ["0", str(1 << 31), "many"]),
    "max_calls": (("2", 2), ("100000", 100_000), ["1", "many"]),
    "handshake_timeout": (("1", 1), ("60", 60), ["0", "1.5", "10s"]),
    "idle_timeout": (("1", 1), ("86400", 86400), ["0", "1.5", "1h"]),
    "stall_timeout": (("1", 1), ("86400", 86400), ["0", "1.5", "1h"]),
    "authentication_token_file": (("./tokens", Path("tokens")), ("/a b", Path("/a b")), ["a\0b", ".", ""]),
    "tls_certificate": (("./server.pem", Path("server.pem")), ("/a b", Path("/a b")), ["a\0b", ".", ""]),
    "tls_key": (("./server.key", Path("server.key")), ("/a b", Path("/a b")), ["a\0b", ".", ""]),
    "tls_client_ca": (("./ca.pem", Path("ca.pem")), ("/a b", Path("/a b")), ["a\0b", ".", ""]),
    "log_level": (("debug", "debug"), ("5", "trace"), ["6", "-1", "loud", ""]),
    "log_file": (("./path/cogment.log", Path("path/cogment.log")), ("x", Path("x")), ["a\0b", ".", "/"]),
    "log_keep_days": (("7", 7), ("30", 30), ["-1", "a month", "1.5"]),
    "log_format": (("json", "json"), ("JSON", "json"), ["xml", ""]),
    "directory_endpoint": (
        ("grpc://foo:9005", "grpc://foo:9005"),
        ("grpc://[::1]:1/", "grpc://[::1]:1"),
        [
            "foo:9005",
            "http://foo:9005",
            "grpc://foo",
            "grpc://:9",
            "grpc://foo:99999",
            "grpc://foo:1/x",
        ],
    ),
    "directory_authentication_token": (("GH670ploT", "GH670ploT"), ("a b", "a b"), ["é", "a\nb"]),
    "directory_registration_host": (("foo.bar", "foo.bar"), ("10.0.0.1", "10.0.0.1"), ["foo bar", "foo:1"]),
    "directory_registration_properties": (
        ("Sim=20,hpp,mem=HIGH", (("Sim", "20"), ("hpp", ""), ("mem", "HIGH"))),
        ("a", (("a", ""),)),
        [",", "=1", "a,a=2"],
    ),
}

# The documentation's variables, and those of the options it doesn't have.
VARIABLES = {
    "port": "COGMENT_MODEL_REGISTRY_PORT",
    "host": "COGMENT_MODEL_REGISTRY_HOST",
    "grpc_reflection": "COGMENT_MODEL_REGISTRY_GRPC_REFLECTION",
    "archive_dir": "COGMENT_MODEL_REGISTRY_ARCHIVE_DIR",
    "cache_max_items": "COGMENT_MODEL_REGISTRY_VERSION_CACHE_MAX_ITEMS",
    "cache_max_items_per_model": "COGMENT_MODEL_REGISTRY_VERSION_CACHE_MAX_ITEMS_PER_MODEL",
    "cache_max_bytes": "COGMENT_MODEL_REGISTRY_VERSION_CACHE_MAX_BYTES",
    "scrub_bytes_per_second": "COGMENT_MODEL_REGISTRY_SCRUB_BYTES_PER_SECOND",
    "sent_version_chunk_size": "COGMENT_MODEL_REGISTRY_SENT_MODEL_VERSION_DATA_CHUNK_SIZE",
    "upload_buffer_bytes": "COGMENT_MODEL_REGISTRY_UPLOAD_BUFFER_BYTES",
    "max_version_bytes": "COGMENT_MODEL_REGISTRY_MAX_VERSION_BYTES",
    "max_user_data_entries": "COGMENT_MODEL_REGISTRY_MAX_USER_DATA_ENTRIES",
    "max_user_data_bytes": "COGMENT_MODEL_REGISTRY_MAX_USER_DATA_BYTES",
    "max_message_bytes": "COGMENT_MODEL_REGISTRY_MAX_MESSAGE_BYTES",
    "max_reply_bytes": "COGMENT_MODEL_REGISTRY_MAX_REPLY_BYTES",
    "max_header_bytes": "COGMENT_MODEL_REGISTRY_MAX_HEADER_BYTES",
    "max_connections": "COGMENT_MODEL_REGISTRY_MAX_CONNECTIONS",
    "max_concurrent_streams": "COGMENT_MODEL_REGISTRY_MAX_CONCURRENT_STREAMS",
    "max_calls": "COGMENT_MODEL_REGISTRY_MAX_CALLS",
    "handshake_timeout": "COGMENT_MODEL_REGISTRY_HANDSHAKE_TIMEOUT",
    "idle_timeout": "COGMENT_MODEL_REGISTRY_IDLE_TIMEOUT",
    "stall_timeout": "COGMENT_MODEL_REGISTRY_STALL_TIMEOUT",
    "authentication_token_file": "COGMENT_MODEL_REGISTRY_AUTHENTICATION_TOKEN_FILE",
    "tls_certificate": "COGMENT_MODEL_REGISTRY_TLS_CERTIFICATE",
    "tls_key": "COGMENT_MODEL_REGISTRY_TLS_KEY",
    "tls_client_ca": "COGMENT_MODEL_REGISTRY_TLS_CLIENT_CA",
    "log_level": "COGMENT_LOG_LEVEL",
    "log_file": "COGMENT_LOG_FILE",
    "log_keep_days": "COGMENT_LOG_KEEP_DAYS",
    "log_format": "COGMENT_LOG_FORMAT",
    "directory_endpoint": "COGMENT_DIRECTORY_ENDPOINT",
    "directory_authentication_token": "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN",
    "directory_registration_host": "COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_HOST",
    "directory_registration_properties": "COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_PROPERTIES",
}


def test_the_transports_limits_are_options_with_the_same_defaults() -> None:
    limits = attrs.asdict(Limits())
    shared = limits.keys() & {option.name for option in OPTIONS}
    assert len(shared) == 9
    assert {name: getattr(Settings(), name) for name in shared} == {name: limits[name] for name in shared}


def test_tls_options_go_together() -> None:
    file = Path("file")
    Settings().check_together()
    Settings(tls_certificate=file, tls_key=file, tls_client_ca=file).check_together()
    for incomplete in (
        Settings(tls_certificate=file),
        Settings(tls_key=file),
        Settings(tls_client_ca=file),
        Settings(tls_key=file, tls_client_ca=file),
    ):
        with pytest.raises(InvalidOption, match="--tls_certificate"):
            incomplete.check_together()


def test_cautions_follow_what_protects() -> None:
    file = Path("file")
    assert not Settings().cautions
    assert "without authentication" in Settings(host="0.0.0.0").cautions[0]
    assert "without TLS" in Settings(host="0.0.0.0", authentication_token_file=file).cautions[0]
    assert not Settings(host="0.0.0.0", authentication_token_file=file, tls_certificate=file, tls_key=file).cautions
    assert not Settings(host="0.0.0.0", tls_certificate=file, tls_key=file, tls_client_ca=file).cautions


each_option = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


def test_every_option_is_a_setting_and_has_its_variable() -> None:
    names = [option.name for option in OPTIONS]
    assert {option.name: option.env for option in OPTIONS} == VARIABLES
    assert names == [field.name for field in attrs.fields(Settings) if field.name != "given"]
    assert set(names) == set(EXAMPLES)


@each_option
def test_a_flag_goes_before_a_variable_before_the_default(option: Option) -> None:
    (text, value), (other_text, other_value), _ = EXAMPLES[option.name]
    environ = {option.env: text}

    assert getattr(Settings.read({}, {}), option.name) == option.make_default()
    assert getattr(Settings.read({}, environ), option.name) == value != option.make_default()
    assert getattr(Settings.read({option.name: other_text}, environ), option.name) == other_value


@each_option
def test_an_empty_variable_is_none(option: Option) -> None:
    assert Settings.read({}, {option.env: ""}) == Settings.read({}, {})


@each_option
def test_a_bad_value_is_one_line_with_option_value_and_what_is_allowed(option: Option) -> None:
    for text in EXAMPLES[option.name][2]:
        for flags, environ, source in [
            ({option.name: text}, {}, f"--{option.name}"),
            ({}, {option.env: text}, option.env),
        ]:
            if not text and environ:
                continue
            with pytest.raises(InvalidOption) as caught:
                Settings.read(flags, environ)
            line = str(caught.value)
            assert line.startswith(f"{source}: ")
            assert len(line.splitlines()) == 1
            assert (repr(text) in line) != option.secret
            assert not line.endswith("is not ")


@each_option
def test_both_spellings_of_the_flag(option: Option) -> None:
    assert option.flags[0] == f"--{option.name}"
    assert option.flags[-1] == f"--{option.name}".replace("_", "-")


def test_log_levels_by_name_and_number() -> None:
    levels = ["off", "error", "warning", "info", "debug", "trace"]
    for number, level in enumerate(levels):
        for text in (level, level.upper(), str(number)):
            assert Settings.read({}, {"COGMENT_LOG_LEVEL": text}).log_level == level


def test_switch_values() -> None:
    for text, value in [("1", True), ("on", True), ("yes", True), ("0", False), ("off", False), ("No", False)]:
        assert Settings.read({"grpc_reflection": text}, {}).grpc_reflection is value


def test_chunks_stay_below_4_mib_until_the_option_is_set() -> None:
    name, env = "sent_version_chunk_size", VARIABLES["sent_version_chunk_size"]
    documented = str(DOCUMENTED_CHUNK_BYTES)

    assert Settings().sent_version_chunk_size == 5_242_880
    assert Settings().max_data_chunk_bytes == ACCEPTABLE_CHUNK_BYTES < 4 * 1024 * 1024
    assert Settings.read({name: documented}, {}).max_data_chunk_bytes == DOCUMENTED_CHUNK_BYTES
    assert Settings.read({}, {env: documented}).max_data_chunk_bytes == DOCUMENTED_CHUNK_BYTES
    assert Settings.read({name: "10"}, {}).max_data_chunk_bytes == 10
    assert Settings(sent_version_chunk_size=10_000_000).max_data_chunk_bytes == 10_000_000


def test_cache_max_bytes_is_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "memory_bytes", lambda: 4000)
    assert Settings().cache_max_bytes == 1000


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST."])
def test_loopback_is_no_cause_for_caution(host: str) -> None:
    assert Settings(host=host).cautions == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "registry.example"])
def test_listening_beyond_loopback_is_cautioned_about(host: str) -> None:
    (caution,) = Settings(host=host).cautions
    assert host in caution
    assert "without authentication" in caution


def test_registering_what_only_this_machine_can_reach_is_cautioned_about() -> None:
    (caution,) = Settings(directory_endpoint="grpc://foo:9005").cautions
    assert "listening on 127.0.0.1 only" in caution
    (caution,) = Settings(directory_endpoint="grpc://foo:9005", host="0.0.0.0").cautions
    assert "directory" not in caution


def test_a_directory_that_may_not_get_in_is_cautioned_about() -> None:
    registering = Settings(
        directory_endpoint="grpc://foo:9005", host="0.0.0.0", tls_certificate=Path("c"), tls_key=Path("k")
    )
    assert not attrs.evolve(registering, authentication_token_file=Path("t")).cautions  # its health check needs none
    (caution,) = attrs.evolve(registering, tls_client_ca=Path("ca")).cautions
    assert "health check" in caution


@pytest.mark.parametrize("url", ["grpc://user:PW@foo:1", "user:PW@foo:1", "grpc://foo:1?token=PW", "grpc://foo:1#PW"])
def test_a_url_with_a_secret_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidOption, match="gRPC endpoint") as caught:
        Settings.read({"directory_endpoint": url}, {})
    assert "PW" not in str(caught.value)
    assert "PW" not in repr(caught.value.__cause__)


def test_secrets_are_not_shown() -> None:
    shown = repr(Settings(directory_authentication_token="GH670ploT"))
    assert "GH670ploT" not in shown
    assert [option.name for option in OPTIONS if option.secret] == ["directory_authentication_token"]
