"""What a client may send that makes work and no progress, and how much of it (CVE-2019-9511 to 9518, CVE-2023-44487,
CVE-2025-8671).

Each kind of frame has a burst and a rate that no honest client comes near, and what justifies more of it. Beyond that the
connection ends with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from . import frames
from .faults import ConnectionFault, ErrorCode
from .limits import Meter


class AbuseMeters:
    """Counts the frames of one connection."""

    __slots__ = ("_meters", "_other")

    def __init__(self) -> None:
        self._meters = {
            frames.PING: Meter(500, 50),
            frames.SETTINGS: Meter(200, 20),
            frames.PRIORITY: Meter(1000, 100),
            # 1,000 watches may end at once. Counts streams that the client resets, streams that the server has to reset
            # because of what the client sent, headers for either, and requests that are no gRPC.
            frames.RST_STREAM: Meter(1500, 150),
            frames.WINDOW_UPDATE: Meter(5000, 1000),
            frames.DATA: Meter(1000, 100),  # empty ones, and ones for streams that are closed
        }
        self._other = Meter(1000, 100)

    def count(self, kind: int, now: float) -> None:
        """One more frame of a kind; raises `ConnectionFault` when it is one too many."""
        if not self._meters.get(kind, self._other).take(now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many frames of type {kind}")

    def data_sent(self, count: int) -> None:
        """So many DATA frames were sent.

        They have to be answered by windows, for the stream and for the connection; clients that measure the bandwidth
        (grpc-go) send a PING for each round trip, too.
        """
        self._meters[frames.WINDOW_UPDATE].give(3 * count)
        self._meters[frames.PING].give(count)

    def call_finished(self) -> None:
        """A call came to its end; clients answer early ends by RST_STREAM, or had END_STREAM under way."""
        self._meters[frames.RST_STREAM].give(1)
        self._meters[frames.DATA].give(1)
