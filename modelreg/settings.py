"""Every option of the registry, once: name, environment variable, default, meaning.

`Settings` is the table: each of its fields is an option and carries what the command line, the docs and the tests
need to know of it; `OPTIONS` lists the same in order. Names and variables are those of ``cogment services
model_registry``, where it has the option.

Values arrive as text and pass the same conversion whichever way they came. A flag goes before a variable, a variable
before the default; an empty variable is the same as none, as it is for the program this one replaces. An empty flag
isn't for the files that protect the registry: a shell's variable that isn't set must not open it to everybody.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs

from modelreg.machine import Shares, memory_bytes

T = TypeVar("T")

LogLevel = Literal["off", "error", "warning", "info", "debug", "trace"]
LogFormat = Literal["text", "json"]

# In the order of the documentation. Its example of a number, COGMENT_LOG_LEVEL=5, is a position in this list.
LOG_LEVELS: tuple[LogLevel, ...] = ("off", "error", "warning", "info", "debug", "trace")
LOG_FORMATS: tuple[LogFormat, ...] = ("text", "json")

# gRPC clients refuse messages over 4 MiB unless told otherwise, and the documented default of sent_version_chunk_size
# is more. While the option is left alone, what is sent stays a page below: room for the framing, and reads stay
# page-aligned.
DOCUMENTED_CHUNK_BYTES = 5 * 1024 * 1024
ACCEPTABLE_CHUNK_BYTES = 4 * 1024 * 1024 - 4096

_MAX_CHUNK_BYTES = 2 * 1024 * 1024 * 1024 - 4096  # protobuf's messages end at 2 GiB
_MAX_COUNT = 2**63 - 1


class InvalidOption(Exception):
    """An option was given a value it doesn't allow. The message is one line for the user."""


@attrs.frozen(kw_only=True)
class Option:
    """What there is to know of one option.

    *convert* makes a value of the text that the user gave, or raises ValueError saying what is allowed, in words that
    can follow "is not". *metavar* stands for the value in the help. A *switch* may be given without a value, which
    means yes. A *secret*'s value is never shown.
    """

    name: str
    env: str
    metavar: str
    meaning: str
    default_text: str
    make_default: Callable[[], object]
    convert: Callable[[str], object]
    switch: bool
    secret: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """The flag's spellings: ``--archive_dir`` as documented, and ``--archive-dir``."""
        return tuple(dict.fromkeys((f"--{self.name}", f"--{self.name.replace('_', '-')}")))

    def read(self, text: str, source: str) -> object:
        """The value that *text* stands for; *source* is the flag or variable it came by. Raises InvalidOption."""
        try:
            return self.convert(text)
        except ValueError as error:
            # A URL may hold a password, before its host or as a query.
            shown = "the value given" if self.secret or re.search("[@?#]", text) else repr(text)
            raise InvalidOption(f"{source}: {shown} is not {error}") from None


def _option(
    *,
    env: str,
    metavar: str,
    default: T | Callable[[], T],
    default_text: str,
    convert: Callable[[str], T],
    meaning: str,
    switch: bool = False,
    secret: bool = False,
) -> T:
    """Make a field of `Settings` that is an option of the same name."""

    def make_default() -> T:
        return default() if callable(default) else default

    def describe(name: str) -> Option:
        return Option(
            name=name,
            env=env,
            metavar=metavar,
            meaning=meaning,
            default_text=default_text,
            make_default=make_default,
            convert=convert,
            switch=switch,
            secret=secret,
        )

    return attrs.field(factory=make_default, repr=not secret, metadata={_DESCRIBE: describe})


_DESCRIBE = "modelreg.settings.option"


def _number(lowest: int, highest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if re.fullmatch("[0-9]{1,19}", text) and lowest <= int(text) <= highest:
            return int(text)
        raise ValueError(
            f"a whole number of at least {lowest}" if highest == _MAX_COUNT else f"a number from {lowest} to {highest}"
        )

    return convert


def _yes_or_no(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("1 or 0 (true or false, yes or no, on or off)")


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError("a path")
    return Path(text)


def _file(text: str) -> Path | None:
    if not Path(text).name or "\0" in text:
        raise ValueError("the path of a file")
    return Path(text)


def _optional_file(text: str) -> Path | None:
    return _file(text) if text else None


def _host(text: str) -> str:
    """A host name (RFC 1123, and underscores, which containers' have) or an address, IPv6 with or without brackets."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    if len(text) <= 253 and re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?", text):
        return text
    raise ValueError("a host name or an IP address")


def _optional_host(text: str) -> str | None:
    return _host(text) if text else None


def _log_level(text: str) -> LogLevel:
    for number, level in enumerate(LOG_LEVELS):
        if text.lower() in (level, str(number)):
            return level
    raise ValueError(f"one of {', '.join(LOG_LEVELS)}, or a number from 0 (off) to {len(LOG_LEVELS) - 1} (trace)")


def _log_format(text: str) -> LogFormat:
    for log_format in LOG_FORMATS:
        if text.lower() == log_format:
            return log_format
    raise ValueError(" or ".join(LOG_FORMATS))


def _endpoint(text: str) -> str | None:
    if not text:
        return None
    allowed = "a gRPC endpoint like grpc://host:9005"
    try:
        url = urllib.parse.urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(allowed) from None
    if url.scheme != "grpc" or not url.hostname or not port or url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(allowed)
    if url.username is not None:
        raise ValueError(f"{allowed} (a token goes into directory_authentication_token)")
    return text.rstrip("/")


def _token(text: str) -> str | None:
    # It travels as gRPC metadata, which is printable ASCII (gRPC over HTTP/2, "ASCII-Value").
    if text and not re.fullmatch("[ -~]+", text):
        raise ValueError("printable ASCII")
    return text or None


def _properties(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for item in text.split(",") if text else ():
        name, _, value = item.partition("=")
        pairs.append((name.strip(), value.strip()))
    names = [name for name, _ in pairs]
    if "" in names or len(set(names)) < len(names):
        raise ValueError('of the form "name=value,name,name=value", each name once')
    return tuple(pairs)


@attrs.frozen(kw_only=True)
class Settings:
    """The options' values. `Settings.read` makes them from flags and variables; tests and embedders call it as it is."""

    port: int = _option(
        env="COGMENT_MODEL_REGISTRY_PORT",
        metavar="PORT",
        default=9002,
        default_text="9002",
        convert=_number(0, 65535),
        meaning="TCP port to serve on. 0 takes a free one and logs it.",
    )
    host: str = _option(
        env="COGMENT_MODEL_REGISTRY_HOST",
        metavar="HOST",
        default="127.0.0.1",
        default_text="127.0.0.1",
        convert=_host,
        meaning="Address to listen on. The default lets only this machine connect; 0.0.0.0 or :: let every machine.",
    )
    grpc_reflection: bool = _option(
        env="COGMENT_MODEL_REGISTRY_GRPC_REFLECTION",
        metavar="[BOOL]",
        default=False,
        default_text="off",
        convert=_yes_or_no,
        meaning="Serve gRPC reflection, so that tools like grpcurl know the calls.",
        switch=True,
    )
    archive_dir: Path = _option(
        env="COGMENT_MODEL_REGISTRY_ARCHIVE_DIR",
        metavar="DIR",
        default=Path(".cogment/model_registry"),
        default_text=".cogment/model_registry",
        convert=_path,
        meaning="Directory of models and stored versions. The server makes it if it isn't there.",
    )
    cache_max_items: int = _option(
        env="COGMENT_MODEL_REGISTRY_VERSION_CACHE_MAX_ITEMS",
        metavar="COUNT",
        default=100,
        default_text="100",
        convert=_number(1, _MAX_COUNT),
        meaning="Most transient versions kept in memory.",
    )
    cache_max_items_per_model: int = _option(
        env="COGMENT_MODEL_REGISTRY_VERSION_CACHE_MAX_ITEMS_PER_MODEL",
        metavar="COUNT",
        default=0,
        default_text="0",
        convert=_number(0, _MAX_COUNT),
        meaning="Most transient versions of one model; its least recently used one goes first. 0 sets no limit but "
        "--cache_max_items.",
    )
    cache_max_bytes: int = _option(
        env="COGMENT_MODEL_REGISTRY_VERSION_CACHE_MAX_BYTES",
        metavar="BYTES",
        default=lambda: Shares.of(memory_bytes()).cache,
        default_text="a quarter of the memory",
        convert=_number(1, _MAX_COUNT),
        meaning="Most bytes that all transient versions together take in memory.",
    )
    scrub_bytes_per_second: int = _option(
        env="COGMENT_MODEL_REGISTRY_SCRUB_BYTES_PER_SECOND",
        metavar="BYTES",
        default=0,
        default_text="0",
        convert=_number(0, _MAX_COUNT),
        meaning="Stored bytes that are read again each second, to find damage on the disk early. 0 reads none.",
    )
    sent_version_chunk_size: int = _option(
        env="COGMENT_MODEL_REGISTRY_SENT_MODEL_VERSION_DATA_CHUNK_SIZE",
        metavar="BYTES",
        default=DOCUMENTED_CHUNK_BYTES,
        default_text=str(DOCUMENTED_CHUNK_BYTES),
        convert=_number(1, _MAX_CHUNK_BYTES),
        meaning="Largest chunk of version data sent. While the option isn't set, messages also stay under 4 MiB, the "
        "most that gRPC clients accept by default.",
    )
    upload_buffer_bytes: int = _option(
        env="COGMENT_MODEL_REGISTRY_UPLOAD_BUFFER_BYTES",
        metavar="BYTES",
        default=lambda: Shares.of(memory_bytes()).uploads,
        default_text="an eighth of the memory, at most 268435456",
        convert=_number(16 * 1024 * 1024, _MAX_COUNT),
        meaning="Memory that all uploads share. An upload that finds none left waits, and its client waits with it.",
    )
    max_version_bytes: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_VERSION_BYTES",
        metavar="BYTES",
        default=0,
        default_text="0",
        convert=_number(0, _MAX_COUNT),
        meaning="Largest version accepted. 0 sets no limit.",
    )
    max_user_data_entries: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_USER_DATA_ENTRIES",
        metavar="COUNT",
        default=10_000,
        default_text="10000",
        convert=_number(1, _MAX_COUNT),
        meaning="Most entries that the user data (properties) of a model or version may have.",
    )
    max_user_data_bytes: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_USER_DATA_BYTES",
        metavar="BYTES",
        default=1024 * 1024,
        default_text="1048576",
        convert=_number(1, _MAX_COUNT),
        meaning="Most bytes that the user data of a model or version may have, names and values together.",
    )
    max_message_bytes: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_MESSAGE_BYTES",
        metavar="BYTES",
        default=4 * 1024 * 1024,
        default_text="4194304",
        convert=_number(1024, 1024 * 1024 * 1024),
        meaning="Largest message accepted, decompressed. Messages with a version's data have no limit: the server never "
        "holds one as a whole.",
    )
    max_reply_bytes: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_REPLY_BYTES",
        metavar="BYTES",
        default=lambda: Shares.of(memory_bytes()).largest_reply,
        default_text="a 32nd of the memory, at most 67108864",
        convert=_number(1024, _MAX_CHUNK_BYTES),
        meaning="Largest list sent. A client that asks for a larger one is told to ask for pages. The data of versions "
        "has no limit.",
    )
    max_header_bytes: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_HEADER_BYTES",
        metavar="BYTES",
        default=16 * 1024,
        default_text="16384",
        convert=_number(1024, 256 * 1024),
        meaning="Most bytes of a call's headers, metadata among them. Clients are told the limit. A call with more is "
        "refused.",
    )
    max_connections: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_CONNECTIONS",
        metavar="COUNT",
        default=1024,
        default_text="1024",
        convert=_number(1, _MAX_COUNT),
        meaning="Most connections at once, and never more than half of the files that may be open (ulimit -n). A further "
        "one takes the place of one that makes no call; if there is none, it may only check the health.",
    )
    max_concurrent_streams: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_CONCURRENT_STREAMS",
        metavar="COUNT",
        default=4096,
        default_text="4096",
        convert=_number(1, 2**31 - 1),
        meaning="Most calls, watches among them, at once on one connection. Clients are told the limit, and wait. More "
        "are refused.",
    )
    max_calls: int = _option(
        env="COGMENT_MODEL_REGISTRY_MAX_CALLS",
        metavar="COUNT",
        default=lambda: Shares.of(memory_bytes()).calls,
        default_text="one for each 64 KiB of the memory, at most 65536",
        convert=_number(2, _MAX_COUNT),
        meaning="Most calls, watches among them, at once on all connections; half as many from one address. More are "
        "refused, except health checks.",
    )
    handshake_timeout: int = _option(
        env="COGMENT_MODEL_REGISTRY_HANDSHAKE_TIMEOUT",
        metavar="SECONDS",
        default=10,
        default_text="10",
        convert=_number(1, _MAX_COUNT),
        meaning="Seconds that a client has for the handshakes of TLS and HTTP/2, and to complete each frame other than "
        "data.",
    )
    idle_timeout: int = _option(
        env="COGMENT_MODEL_REGISTRY_IDLE_TIMEOUT",
        metavar="SECONDS",
        default=1800,
        default_text="1800",
        convert=_number(1, _MAX_COUNT),
        meaning="Seconds without a call after which a client is asked to close its connection. Its next call opens "
        "another.",
    )
    stall_timeout: int = _option(
        env="COGMENT_MODEL_REGISTRY_STALL_TIMEOUT",
        metavar="SECONDS",
        default=300,
        default_text="300",
        convert=_number(1, _MAX_COUNT),
        meaning="Seconds after which a call ends if its client sent, or took, less than 4 KiB in them while the server "
        "waited for it.",
    )
    authentication_token_file: Path | None = _option(
        env="COGMENT_MODEL_REGISTRY_AUTHENTICATION_TOKEN_FILE",
        metavar="FILE",
        default=None,
        default_text="none",
        convert=_file,
        meaning="File of accepted tokens, one a line after read-write or read-only; name=NAME may follow. Without it, "
        "calls need no token.",
    )
    tls_certificate: Path | None = _option(
        env="COGMENT_MODEL_REGISTRY_TLS_CERTIFICATE",
        metavar="FILE",
        default=None,
        default_text="none",
        convert=_file,
        meaning="PEM file of the certificate to serve TLS with, and of those that lead to its CA. Read again on SIGHUP.",
    )
    tls_key: Path | None = _option(
        env="COGMENT_MODEL_REGISTRY_TLS_KEY",
        metavar="FILE",
        default=None,
        default_text="none",
        convert=_file,
        meaning="PEM file of the TLS certificate's key, not encrypted.",
    )
    tls_client_ca: Path | None = _option(
        env="COGMENT_MODEL_REGISTRY_TLS_CLIENT_CA",
        metavar="FILE",
        default=None,
        default_text="none",
        convert=_file,
        meaning="PEM file of the CA that clients need a certificate from. Without it, clients need none.",
    )
    log_level: LogLevel = _option(
        env="COGMENT_LOG_LEVEL",
        metavar="LEVEL",
        default="info",
        default_text="info",
        convert=_log_level,
        meaning="Lowest level logged: off, error, warning, info, debug or trace, or 0 to 5 for these.",
    )
    log_file: Path | None = _option(
        env="COGMENT_LOG_FILE",
        metavar="FILE",
        default=None,
        default_text="standard output",
        convert=_optional_file,
        meaning="Base name of log files: a new file every day (UTC), its date appended, like cogment.log.2025-01-31.",
    )
    log_keep_days: int = _option(
        env="COGMENT_LOG_KEEP_DAYS",
        metavar="DAYS",
        default=0,
        default_text="0",
        convert=_number(0, _MAX_COUNT),
        meaning="Days of log files to keep, today among them. Older files of the same base name are deleted. 0 keeps all.",
    )
    log_format: LogFormat = _option(
        env="COGMENT_LOG_FORMAT",
        metavar="FORMAT",
        default="text",
        default_text="text",
        convert=_log_format,
        meaning="text for people, or json with one object a line.",
    )
    directory_endpoint: str | None = _option(
        env="COGMENT_DIRECTORY_ENDPOINT",
        metavar="ENDPOINT",
        default=None,
        default_text="none",
        convert=_endpoint,
        meaning="Cogment Directory to register with, like grpc://foo:9005.",
    )
    directory_authentication_token: str | None = _option(
        env="COGMENT_DIRECTORY_AUTHENTICATION_TOKEN",
        metavar="TOKEN",
        default=None,
        default_text="none",
        convert=_token,
        meaning="Token recorded in the directory: clients that ask the directory for this registry need the same. Other "
        "users of the machine can see the flag: use the variable.",
        secret=True,
    )
    directory_registration_host: str | None = _option(
        env="COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_HOST",
        metavar="HOST",
        default=None,
        default_text="this machine's address",
        convert=_optional_host,
        meaning="Host recorded in the directory, for clients to connect to.",
    )
    directory_registration_properties: tuple[tuple[str, str], ...] = _option(
        env="COGMENT_MODEL_REGISTRY_DIRECTORY_REGISTRATION_PROPERTIES",
        metavar="PROPERTIES",
        default=(),
        default_text="none",
        convert=_properties,
        meaning="Properties recorded in the directory, like Sim=20,hpp,mem=HIGH, for clients to choose by.",
    )

    given: frozenset[str] = frozenset()
    """The names of the options that a flag or a variable set."""

    @classmethod
    def read(cls, flags: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
        """Read every option from *flags* (by option name), *environ* or its default. Raises InvalidOption."""
        values: dict[str, Any] = {}
        for option in OPTIONS:
            if option.name in flags:
                values[option.name] = option.read(flags[option.name], option.flags[0])
            elif environ.get(option.env):
                values[option.name] = option.read(environ[option.env], option.env)
        return cls(**values, given=frozenset(values))

    def check_together(self) -> None:
        """Raise InvalidOption where one option makes no sense without another."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidOption("--tls_certificate and --tls_key go together: give both, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise InvalidOption("--tls_client_ca needs --tls_certificate and --tls_key")

    @property
    def max_data_chunk_bytes(self) -> int:
        """The most version data to put into one message, in bytes."""
        size = self.sent_version_chunk_size
        if size == DOCUMENTED_CHUNK_BYTES and "sent_version_chunk_size" not in self.given:
            return ACCEPTABLE_CHUNK_BYTES
        return size

    @property
    def cautions(self) -> tuple[str, ...]:
        """What a person should know before relying on these settings; to be logged as warnings at the start."""
        cautions = []
        if self.authentication_token_file is not None:
            if self.tls_certificate is None and not _is_loopback(self.host):
                cautions.append(
                    f"listening on {self.host}, beyond this machine, without TLS: tokens and models can be read on "
                    "their way"
                )
        elif self.tls_client_ca is None and not _is_loopback(self.host):
            cautions.append(
                f"listening on {self.host}, beyond this machine, without authentication: "
                "whoever reaches the port can read, publish and delete models"
            )
        if self.directory_endpoint is not None and _is_loopback(self.host):
            cautions.append(
                f"registering with the directory, but listening on {self.host} only: "
                "nobody beyond this machine can reach what the directory tells them, unless --host says otherwise"
            )
        if self.directory_endpoint is not None and self.tls_client_ca is not None:
            cautions.append(
                "registering with the directory, but clients need a certificate: a directory whose health check "
                "shows none will drop the registration each time"
            )
        return tuple(cautions)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


OPTIONS: tuple[Option, ...] = tuple(
    field.metadata[_DESCRIBE](field.name) for field in attrs.fields(Settings) if _DESCRIBE in field.metadata
)
