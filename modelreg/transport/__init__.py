"""gRPC over HTTP/2 on Trio: frames, streams, windows, deadlines. Knows nothing of models.

The public names; everything else is in the modules they come from. `core` is the protocol without I/O and says how the
parts fit together, `connection` has the tasks around it, `server` accepts.
"""

from __future__ import annotations

from .files import FileMessage
from .intake import Destination, LandsData
from .limits import Limits
from .messages import DecodeError, MessageDecoder
from .pieces import PiecewiseMessage
from .places import host_of
from .requests import Request
from .server import Server, Statistics

__all__ = [
    "DecodeError",
    "Destination",
    "FileMessage",
    "LandsData",
    "Limits",
    "MessageDecoder",
    "PiecewiseMessage",
    "Request",
    "Server",
    "Statistics",
    "host_of",
]
