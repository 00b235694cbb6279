"""A message whose payload is sent from a file by the kernel."""

from __future__ import annotations

import os

import attrs


@attrs.frozen
class FileMessage:
    """One gRPC message: `prefix`, then `length` bytes of the file from `offset` on.

    The descriptor stays the caller's; it must be open until the reply that follows is asked for, or the call has ended.
    The file must have the bytes: if it turns out to be shorter while it is sent, the stream is reset (INTERNAL_ERROR), as
    the message can neither be completed nor taken back.
    """

    prefix: bytes
    fd: int
    offset: int
    length: int

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
