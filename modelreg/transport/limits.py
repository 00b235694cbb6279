"""How much a peer may ask of the server, and the meter that tells work from abuse.

Every bound of the transport is a field of `Limits`, so that an operator's option and a test can both set it. `Meter` is
a token bucket: a burst, refilled with time, and topped up by work that justifies more (a peer that is sent a lot of
DATA has to send a lot of WINDOW_UPDATE).
"""

from __future__ import annotations

import attrs

KIB = 1024
MIB = 1024 * KIB

PROGRESS = 4 * KIB
"""Bytes that count as progress. One byte every five minutes would keep a call, its file and its connection for years. A hundred
downloads over a link of 1 Mbit/s move a hundred times as much each in five minutes."""

MAX_BLOCK_BYTES = 256 * KIB
"""One header block as it is sent, over all CONTINUATIONs.

Up to this size a block is decoded even if its call is refused, as HPACK's state has to follow the client's.
"""


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds of one server. Sizes are bytes, times are seconds."""

    max_connections: int = attrs.field(default=1024, validator=attrs.validators.gt(0))
    """Connections at once that may make any call; see `places` for more of them."""

    max_concurrent_streams: int = attrs.field(default=4096, validator=attrs.validators.gt(0))
    """Running handlers of one connection; further streams get REFUSED_STREAM. A watch is a running handler."""

    max_calls: int = attrs.field(default=65_536, validator=attrs.validators.gt(1))
    """Running handlers of the server, and half as many for one address. A call beyond that ends with RESOURCE_EXHAUSTED.

    A call takes some 11 KB, even one that has sent only its headers.
    """

    max_message_bytes: int = attrs.field(default=4 * MIB, validator=attrs.validators.gt(0))
    """One message, after decompression.

    Methods with a `MessageDecoder` have no such limit: they never hold a message.
    """

    message_pool: int = attrs.field(default=64 * MIB, validator=attrs.validators.gt(0))
    """What all messages of the server together may hold while they are put together, and until the handler asks for the next.

    One that finds no room ends with RESOURCE_EXHAUSTED. At least `max_message_bytes`; a call's first `messages.UNCOUNTED` bytes are free.
    """

    max_reply_bytes: int = attrs.field(default=64 * MIB, validator=attrs.validators.gt(0))
    """The largest reply that is made of pieces, a list for example. One that would be larger ends with RESOURCE_EXHAUSTED."""

    reply_pool: int = attrs.field(default=128 * MIB, validator=attrs.validators.gt(0))
    """What all replies of the server together may hold in memory before further ones wait. At least `max_reply_bytes`."""

    max_header_bytes: int = attrs.field(
        default=16 * KIB, validator=[attrs.validators.gt(0), attrs.validators.le(MAX_BLOCK_BYTES)]
    )
    """The header fields of one call, as SETTINGS_MAX_HEADER_LIST_SIZE counts them (RFC 9113, section 6.5.2).

    A call with more ends with RESOURCE_EXHAUSTED, a connection with a block of more than `MAX_BLOCK_BYTES` ends.
    """

    header_pool: int = attrs.field(default=32 * MIB, validator=attrs.validators.gt(0))
    """Bytes of header fields that all calls of the server may keep, and of large header blocks that arrive.

    A call that finds no room ends with RESOURCE_EXHAUSTED, a connection whose block finds none ends. A call's first
    `core.FREE_HEADERS` bytes are not counted, nor are a connection's first `max_header_bytes`.
    """

    max_frame_bytes: int = attrs.field(default=MIB, validator=[attrs.validators.ge(2**14), attrs.validators.lt(2**24)])
    """The frame size offered to clients (SETTINGS_MAX_FRAME_SIZE, 2**14 to 2**24 - 1)."""

    stream_window: int = attrs.field(default=MIB, validator=attrs.validators.gt(0))
    """What a client may send on a stream before the handler has consumed any of it."""

    max_stream_window: int = attrs.field(default=8 * MIB, validator=attrs.validators.gt(0))
    """What the window of a stream with a `MessageDecoder` that keeps up may grow to."""

    receive_pool: int = attrs.field(default=64 * MIB, validator=attrs.validators.gt(0))
    """Receive buffers that data which waits may keep. Beyond it, such data is copied."""

    window_pool: int = attrs.field(default=64 * MIB, validator=attrs.validators.gt(0))
    """What all streams of the server together may have beyond `stream_window`."""

    handshake_timeout: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    """Time for preface and SETTINGS, and for the rest of any frame but DATA once it has begun."""

    keepalive_interval: float = attrs.field(default=30.0, validator=attrs.validators.gt(0))
    """A connection that has sent nothing for so long gets a PING."""

    keepalive_timeout: float = attrs.field(default=20.0, validator=attrs.validators.gt(0))
    """A connection that sends nothing for so long after that PING is dead."""

    idle_timeout: float = attrs.field(default=1800.0, validator=attrs.validators.gt(0))
    """A connection without any stream for so long is asked to go (GOAWAY NO_ERROR)."""

    socket_stall_timeout: float = attrs.field(default=60.0, validator=attrs.validators.gt(0))
    """A connection whose peer takes less than `PROGRESS` bytes from the socket in so long, while there are more, is dropped."""

    stall_timeout: float = attrs.field(default=300.0, validator=attrs.validators.gt(0))
    """A call that moves less than `PROGRESS` bytes in so long ends, where the client is to blame: the handler waits for its request,
    or a reply for its window. Five minutes are enough for a trainer that computes between two chunks."""


class CallQuota:
    """Counts the calls that run, of all clients and of each address (`places.host_of`)."""

    __slots__ = ("_hosts", "_limit", "_total")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._hosts: dict[str, int] = {}  # no Counter: its methods are Python, and each call uses four

    def take(self, host: str, beyond: int = 0) -> bool:
        """Count one more; False when it is one too many. `beyond` is for calls that find room where others don't."""
        calls = self._hosts.get(host, 0)
        if self._total >= self._limit + beyond or calls >= self._limit // 2 + beyond:
            return False
        self._total += 1
        self._hosts[host] = calls + 1
        return True

    def give(self, host: str) -> None:
        """One has ended."""
        self._total -= 1
        calls = self._hosts[host] - 1
        if calls:
            self._hosts[host] = calls
        else:
            del self._hosts[host]


class Meter:
    """A token bucket. `take` says whether one more is fine; it never is again once the peer is beyond its burst and its
    rate.
    """

    __slots__ = ("_burst", "_rate", "_since", "_tokens")

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._rate = per_second
        self._tokens = burst
        self._since = float("-inf")

    def take(self, now: float) -> bool:
        """Count one event at `now` (seconds, monotonic); False when it is one too many."""
        tokens = self._tokens - 1.0
        if tokens < 0.0:
            tokens = min(self._burst, self._tokens + (now - self._since) * self._rate) - 1.0
            self._since = now
            if tokens < 0.0:
                return False
        elif self._since == float("-inf"):
            self._since = now
        self._tokens = tokens
        return True

    def give(self, tokens: float) -> None:
        """The peer did something that justifies `tokens` more events."""
        self._tokens = min(self._burst, self._tokens + tokens)
