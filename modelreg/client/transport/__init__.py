"""gRPC over HTTP/2, the client's side, on asyncio and on Trio.

`core` is the protocol without I/O; `wire` moves bytes; `connection` has the tasks between the two; `calls` is one call on a
connection; `channel` finds or makes the connection for it. None of them knows what a model is.
"""

from __future__ import annotations
