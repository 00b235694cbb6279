"""A message whose payload is sent from a file by the kernel."""

from __future__ import annotations

import os

import attrs


@attrs.define(eq=False)
class FileMessage:
    """One gRPC message: `prefix`, then `length` bytes of the file from `offset` on.

    The descriptor stays the caller's; it must be open until the reply that follows is asked for, or the call has ended.

    The file must have the bytes. What is missing, or can't be read, while it is sent can't be taken back: zeros take its
    place, and `complete` is False when the reply that follows is asked for. The handler has to raise an error then. One
    that goes on ends its call with INTERNAL.
    """

    prefix: bytes
    fd: int
    offset: int
    length: int
    complete: bool = attrs.field(default=True, init=False)

    def SerializeToString(self) -> bytes:
        """The message as bytes, for transports that know nothing of files. Raises `EOFError` when the file is too short."""
        pieces = [self.prefix]
        offset, left = self.offset, self.length
        while left:
            piece = os.pread(self.fd, left, offset)
            if not piece:
                raise EOFError("the file is shorter than its message")
            pieces.append(piece)
            offset += len(piece)
            left -= len(piece)
        return b"".join(pieces)
