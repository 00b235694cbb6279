"""Messages that are made when there is memory for them: piece by piece, or read from somewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import attrs


@attrs.frozen
class PiecewiseMessage:
    """One gRPC message whose encoding is made when there is memory for it, and not at once where it is long.

    Attributes:
        pieces: makes the encoding from its beginning, in pieces. The transport may call it twice. What it yields may change
            in between. What it raises ends the call.
        advice: tells a client what to do when the message is larger than a reply may be. None: it's sent whatever its size,
            as it's the answer to a change that was made.
    """

    pieces: Callable[[], Iterator[bytes]]
    advice: str | None = None

    def SerializeToString(self) -> bytes:
        """Return the message as bytes, for transports that want it whole."""
        return b"".join(self.pieces())


@attrs.frozen
class LoadedMessage:
    """One gRPC message whose encoding is read from somewhere, a disk for example, when there is memory for it.

    Attributes:
        size: how many bytes the encoding has.
        load: reads it. What it raises ends the call.
    """

    size: int
    load: Callable[[], Awaitable[bytes]]
