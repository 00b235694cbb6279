"""Where a service is: an `Endpoint`, and what its URL says.

grpc://host:port                                  there
cogment://discover                                wherever the Directory says that a service of the wanted type is
cogment://discover/<type>?<property>=<value>&…    of this type, with these properties
cogment://discover/service?__id=N                 the one with this registration
"""

from __future__ import annotations

import os
import re
import ssl
import tempfile
from urllib.parse import parse_qsl, urlsplit

import attrs

from modelreg.api.directory_pb2 import ServiceType
from modelreg.transport.suites import ALPN, CIPHERS

DISCOVER = "cogment://discover"

TYPES: dict[str, ServiceType] = {
    "actor": ServiceType.ACTOR_SERVICE,
    "environment": ServiceType.ENVIRONMENT_SERVICE,
    "datalog": ServiceType.DATALOG_SERVICE,
    "prehook": ServiceType.PRE_HOOK_SERVICE,
    "lifecycle": ServiceType.TRIAL_LIFE_CYCLE_SERVICE,
    "actservice": ServiceType.CLIENT_ACTOR_CONNECTION_SERVICE,
    "datastore": ServiceType.DATASTORE_SERVICE,
    "modelregistry": ServiceType.MODEL_REGISTRY_SERVICE,
    "directory": ServiceType.DIRECTORY_SERVICE,
}

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----[\x00-\x7f]*?-----END \1-----")


@attrs.define
class Endpoint:
    """How to connect to a service.

    Attributes:
        url: where it is, or how to discover it.
        private_key: PEM-encoded; set, the connection uses TLS, and with `certificate_chain` the service is told who is calling.
        root_certificates: PEM-encoded, of those who may vouch for the service; the system's where it's None. Set, the connection
            uses TLS.
        certificate_chain: PEM-encoded, of `private_key`.
        token: sent with each call as metadata ``authentication-token``, to a registry that wants one.
        tls: use TLS, even if there is no key and the system's root certificates are to be trusted.
    """

    url: str = DISCOVER
    private_key: str | None = attrs.field(default=None, repr=False)
    root_certificates: str | None = attrs.field(default=None, repr=False)
    certificate_chain: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    tls: bool = False

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.private_key is not None or self.root_certificates is not None

    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS needs; None without it. Raises `ValueError` where keys or certificates can't be used."""
        if self.certificate_chain is not None and self.private_key is None:
            raise ValueError("the endpoint's certificate_chain is of no use without its private_key")
        if not self.uses_tls:
            return None
        try:
            roots = self.root_certificates
            context = ssl.create_default_context(cadata=None if roots is None else _pem("root_certificates", roots))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(CIPHERS)
            context.set_alpn_protocols([ALPN])
            if self.private_key is not None and self.certificate_chain is not None:
                key = _pem("private_key", self.private_key)
                _load_chain(context, key + _pem("certificate_chain", self.certificate_chain))
        except (ssl.SSLError, ValueError) as error:
            raise ValueError(f"the endpoint's keys or certificates can't be used: {error}") from error
        return context


def _pem(name: str, text: str) -> str:
    """The PEM blocks of a text (RFC 7468), without what stands around them: comments, a byte order mark. Raises `ValueError`."""
    blocks = [match[0] for match in _BLOCK.finditer(text)]
    if not blocks:  # none at all would be taken for the system's
        raise ValueError(f"there is no PEM in {name}")
    return "\n".join(blocks) + "\n"


def _load_chain(context: ssl.SSLContext, key_and_chain: str) -> None:
    """Give a context a certificate, which it takes from files only: one in memory, or one that is ours alone, and gone afterwards."""
    in_memory = hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd")
    with open(os.memfd_create("modelreg"), "w") if in_memory else tempfile.NamedTemporaryFile("w") as file:
        file.write(key_and_chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}" if in_memory else file.name, password=_no_password)


def _no_password() -> str:  # else OpenSSL would ask for it on the terminal
    raise ValueError("the private_key is encrypted: decrypt it, with 'openssl pkey' for example")


@attrs.frozen(kw_only=True)
class Direct:
    """A URL that says where."""

    host: str
    port: int


@attrs.frozen(kw_only=True)
class Inquiry:
    """A URL that says what to ask the Directory for.

    Attributes:
        service_id: a registration; the rest is of no meaning then.
        type: of service; None where the URL leaves it to the caller.
        properties: that the service has to have.
    """

    service_id: int | None = None
    type: ServiceType | None = None
    properties: dict[str, str] = attrs.field(factory=dict)


def shown(url: str) -> str:
    """A URL for messages: without user and password, and without the values of its query, as they may be secret, too."""
    url = re.sub(r"^(\w+://)?.*@", r"\1...@", url, flags=re.DOTALL)
    return re.sub(r"(?<=[?#&])([^&=]*=)?[^&]*", r"\1...", url)


def parse_url(url: str) -> Direct | Inquiry:
    """What an endpoint's URL says. Raises `ValueError` with what is wrong with it."""
    what = f"{shown(url)!r} is no endpoint"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # whose text may have a password in it
        raise ValueError(f"{what}: it should be like grpc://host:9002") from None
    if parts.scheme == "grpc":
        if (
            not parts.hostname
            or not port
            or parts.path.strip("/")
            or parts.query
            or parts.fragment
            or "@" in parts.netloc
        ):
            raise ValueError(f"{what}: it should be like grpc://host:9002")
        return Direct(host=parts.hostname, port=port)
    if parts.scheme != "cogment":
        raise ValueError(f"{what}: it should begin with grpc:// or cogment://")
    if parts.netloc != "discover":
        raise ValueError(f"{what} for a registry: after cogment:// comes discover")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        raise ValueError(f"{what}: after the ? come property=value pairs") from None
    properties = dict(pairs)
    if "" in properties or len(properties) < len(pairs):
        raise ValueError(f"{what}: each property has a name, and is given once")
    path = parts.path.strip("/")
    if path == "service":
        number = properties.get("__id", "")
        if not (number.isascii() and number.isdigit()) or int(number) >= 2**64:
            raise ValueError(f"{what}: a registration is like cogment://discover/service?__id=7")
        return Inquiry(service_id=int(number))
    if path and path not in TYPES:
        raise ValueError(f"{what}: {path} is none of {', '.join(TYPES)}")
    return Inquiry(type=TYPES.get(path), properties=properties)


def check_endpoint(endpoint: object) -> None:
    """Raise `TypeError` for an object that is no `Endpoint`: its URL alone, or another library's."""
    if isinstance(endpoint, str):
        raise TypeError(f"an endpoint can't be a text: give Endpoint({shown(endpoint)!r})")
    if not isinstance(endpoint, Endpoint):
        raise TypeError(f"an endpoint can't be a {type(endpoint).__name__}: give a modelreg.client.Endpoint")


def endpoint_from_environment(variable: str) -> Endpoint | None:
    """The basic endpoint that an environment variable names."""
    url = os.environ.get(variable)
    return Endpoint(url) if url else None
