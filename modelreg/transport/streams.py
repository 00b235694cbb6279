"""One call's stream: what has arrived and was not consumed, what is to be sent and was not, and the windows of both.

Receiving. The peer may have `recv_window` more bytes on their way. What does not land at once (`landing`) waits in the inbox until the
handler takes it; only then does the peer get the credit back, so the inbox is never longer than the window. Payloads are views of a
receive buffer, or copies where they are small, and small ones that follow each other share a copy: a thousand DATA frames
of one byte are one entry.

Progress. While the client is to blame for waiting (`out_bytes`, `awaits_request`), `is_stalled` says whether it moves too little.

Sending. `out` holds pieces of messages in order, `trailers` what follows them. The scheduler (`outbound`) cuts frames from
them as windows and socket allow.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ._h2 import StreamHandle
from .buffers import Buffer
from .limits import PROGRESS
from .requests import Request

SMALL_PAYLOAD = 4096
MAX_SHARED_COPY = 64 * 1024


def nothing() -> None:
    """For signals nobody has asked for yet."""


class Landing(Protocol):
    """Where the payload of a stream may go without waiting in the inbox; see `intake`."""

    def room(self, limit: int) -> memoryview | None: ...
    def landed(self, count: int) -> None: ...
    def take(self, payload: memoryview, buffer: Buffer | None) -> bool: ...


class FilePiece:
    """A part of a message that is in a file.

    While frames of it are being written (`in_flight`), the descriptor is needed even if the call is over: `disown` takes a
    copy for the rest.
    """

    __slots__ = ("_owned", "checked_until", "fd", "in_flight", "left", "offset", "truncated")

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self.fd = fd
        self.offset = offset
        self.left = length
        self.in_flight = 0
        self.checked_until = offset  # the pages before this are in the page cache
        self.truncated = False
        self._owned = False

    def disown(self) -> None:
        """The owner of the descriptor is about to close it. Raises `OSError` when there is no descriptor to be had."""
        if self.in_flight and not self._owned:
            self.fd = os.dup(self.fd)
            self._owned = True

    def landed(self) -> None:
        """A frame of it has been written, or never will be."""
        self.in_flight -= 1
        if self._owned and not self.in_flight:
            self._owned = False
            os.close(self.fd)


class Stream:
    """The state of one stream; no I/O. `outbound` and `core` change it."""

    __slots__ = (
        "_moved",
        "_waits_since",
        "awaits_request",
        "borrowed_headers",
        "buffered",
        "closed",
        "consumed",
        "credit_since_growth",
        "extra_window",
        "file",
        "handle",
        "headers_sent",
        "id",
        "in_plan",
        "inbox",
        "landing",
        "out",
        "out_bytes",
        "parked",
        "queued",
        "recv_total",
        "recv_window",
        "remote_ended",
        "request",
        "sent_total",
        "trailers",
        "wake_reader",
        "wake_sender",
        "wants_window",
    )

    def __init__(self, stream_id: int, handle: StreamHandle, request: Request, recv_window: int) -> None:
        self.id = stream_id
        self.handle = handle
        self.request = request
        self.borrowed_headers = 0  # bytes of the request's, from the server's pool
        # receiving
        self.inbox: deque[tuple[memoryview | bytearray, Buffer | None]] = deque()
        self.buffered = 0  # bytes in the inbox
        self.recv_window = recv_window
        self.recv_total = 0
        self.consumed = 0  # bytes the handler has done with, not yet given back as credit
        self.extra_window = 0  # borrowed from the server's pool
        self.credit_since_growth = 0
        self.wants_window = False  # may it borrow?
        self.remote_ended = False
        self.awaits_request = False  # does the handler wait for more of it?
        self.landing: Landing | None = None  # where its data goes past the inbox, if the handler has said so
        self.wake_reader: Callable[[], None] = nothing
        # sending
        self.out: deque[memoryview | FilePiece] = deque()
        self.out_bytes = 0
        self.file: FilePiece | None = None  # the newest that was queued
        self.in_plan = False  # is some of it being written right now?
        self.headers_sent = False
        self.trailers: bytes | None = None
        self.queued = False  # in the scheduler's round?
        self.parked = False  # waits for pages to be read
        self.sent_total = 0
        self.wake_sender: Callable[[], None] = nothing
        # both
        self.closed = False  # nothing can be sent any more
        self._waits_since: float | None = None  # since when the call has waited for the client without progress,
        self._moved = 0  # and what it had received and sent by then

    def deposit(self, payload: memoryview, buffer: Buffer | None) -> None:
        """Keep a payload until the handler takes it."""
        size = len(payload)
        inbox = self.inbox
        self.buffered += size
        if size < SMALL_PAYLOAD or (buffer is not None and buffer.pool.crowded):
            if inbox:
                last = inbox[-1][0]
                if type(last) is bytearray and len(last) < MAX_SHARED_COPY:
                    last += payload
                    return
            inbox.append((bytearray(payload), None))
        else:
            if buffer is not None:
                buffer.refs += 1
            inbox.append((payload, buffer))

    def is_stalled(self, now: float, timeout: float) -> bool:
        """Whether the call has waited for the client for so long, and moved less than `PROGRESS` bytes. To be asked once a second."""
        waits = self.out_bytes > 0 or self.awaits_request
        moved = self.recv_total + self.sent_total
        if not waits or self._waits_since is None or moved - self._moved >= PROGRESS:
            self._waits_since = now if waits else None
            self._moved = moved
            return False
        return now - self._waits_since > timeout

    @property
    def sent(self) -> bool:
        """Whether everything that was queued has been handed to the kernel."""
        return self.out_bytes == 0 and not self.in_plan

    def drop_inbox(self) -> int:
        """Forget what nobody will take; the number of bytes."""
        dropped = self.buffered
        for _, buffer in self.inbox:
            if buffer is not None:
                buffer.release()
        self.inbox.clear()
        self.buffered = 0
        return dropped
