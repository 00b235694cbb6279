"""What is written next: the order in which the streams of a connection share its sending side.

Everything that is to be sent is in one of two places:

- `urgent`: whole frames, in order. Control frames, headers, trailers, and replies small enough to be charged to the
  windows at once. They leave with the next write.
- `ready`: streams with payload and with window, taking turns. A turn is `QUANTUM` bytes, so a small message waits for one
  turn of each download, however long those are.

`next_plan` makes the list of pieces for one write; the caller writes all of it, then says `done`. Nothing is copied here
and nothing is cut into frames before its turn: what is queued is a message's bytes as the handler made them, or a part of
a file, so a peer's window of 2**31 - 1 costs no memory. A stream leaves the round when its window is used up, or when the
pages of its file have to be read first (`parked`), and comes back by `resume`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from . import frames, replies
from ._h2 import Engine
from .messages import PREFIX, PREFIX_SIZE
from .reply_memory import ReplyMemory
from .streams import FilePiece, Stream

QUANTUM = 512 * 1024

REMAINDER = 16 * 1024
"""What is left of a message after a turn is sent with it if it's no more than this, not in a turn of its own."""


class FileSpan:
    """A piece of a plan: `count` times `header`, each with the next `size` bytes of a file, which the kernel is to send."""

    __slots__ = ("count", "header", "offset", "piece", "size")

    def __init__(self, piece: FilePiece, offset: int, size: int, header: bytes = b"", count: int = 1) -> None:
        self.piece = piece
        self.offset = offset
        self.size = size
        self.header = header
        self.count = count
        piece.in_flight += 1


PlanItem = bytes | memoryview | FileSpan


class Plan:
    """One write: pieces in order, and the streams they belong to."""

    __slots__ = ("has_files", "items", "memory", "streams")

    def __init__(self) -> None:
        self.items: list[PlanItem] = []
        self.streams: list[Stream] = []
        self.has_files = False
        self.memory = 0  # bytes of payload that aren't in a file


def is_resident(fd: int, offset: int, length: int) -> bool:
    """Whether a part of a file can be read without waiting for a disk, as far as a sample can tell.

    Asks for one byte in every 128 KiB (the smallest unit of read-ahead) with RWF_NOWAIT: about 1 us each, against the 20 us
    that sending them takes. Files in memory (memfd, tmpfs) do not know the flag; where the system does not have it at all,
    this is always true and a cold file blocks the loop.
    """
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return True
    byte = [bytearray(1)]
    try:
        for position in range(offset, offset + length, 128 * 1024):
            os.preadv(fd, byte, position, flag)
        os.preadv(fd, byte, offset + length - 1, flag)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class Outbound:
    """The queue of a connection's sending side; no I/O."""

    __slots__ = (
        "_engine",
        "_first_block",
        "_memory",
        "_on_end",
        "_urgent_payload",
        "buffered",
        "cold",
        "frames_cut",
        "ready",
        "resident",
        "urgent",
        "urgent_bytes",
        "wake",
    )

    def __init__(self, engine: Engine, on_end: Callable[[Stream, bytes], bytes], memory: ReplyMemory) -> None:
        self._engine = engine
        self._memory = memory
        self._urgent_payload = 0
        self._on_end = on_end
        self._first_block = True
        self.frames_cut = 0
        self.urgent: list[bytes] = []
        self.urgent_bytes = 0
        self.buffered = 0  # payload in memory, over all streams, until it has been written
        self.ready: deque[Stream] = deque()
        self.cold: list[Stream] = []  # parked, and nobody was told yet
        self.resident: Callable[[int, int, int], bool] = is_resident
        self.wake: Callable[[], None] = lambda: None

    def control(self, frame: bytes) -> None:
        """Whole frames that do not depend on any window."""
        self.urgent.append(frame)
        self.urgent_bytes += len(frame)
        self.wake()

    def whole_reply(self, frames_of_it: bytes, size: int) -> None:
        """Queue a small reply, as whole frames with `size` bytes of payload that have been charged to the windows."""
        self._urgent_payload += size
        self.hold(size)
        self.control(frames_of_it)

    def hold(self, size: int) -> None:
        """Count bytes of replies in memory."""
        self.buffered += size
        self._memory.take(size)

    def let_go(self, size: int) -> None:
        """Count bytes that replies take no more."""
        self.buffered -= size
        self._memory.give(size)

    def close(self) -> None:
        """Forget everything, as the connection is closed."""
        self.let_go(self.buffered)

    def headers(self, stream_id: int, block: bytes, end_stream: bool) -> bytes:
        """A HEADERS frame for one of the blocks of `replies`."""
        if self._first_block:
            self._first_block = False
            block = replies.TABLE_SIZE_ZERO + block
        return replies.headers_frame(stream_id, block, end_stream)

    def beginning(self, stream_id: int, size: int) -> bytes:
        """What comes before the message of a reply that has one: HEADERS, and the DATA frame's head and message prefix."""
        if self._first_block:
            headers = self.headers(stream_id, replies.RESPONSE, False)
            return headers + frames.frame_header(size, frames.DATA, 0, stream_id) + PREFIX.pack(0, size - PREFIX_SIZE)
        return replies.beginning(stream_id, size)

    def add(self, stream: Stream, piece: memoryview | FilePiece) -> None:
        """Queue a part of a message."""
        if isinstance(piece, FilePiece):
            size = piece.left
            stream.file = piece
        else:
            size = len(piece)
            self.hold(size)
        if size:
            stream.out.append(piece)
            stream.out_bytes += size

    def resume(self, stream: Stream) -> None:
        """The stream has got payload, or window, or its pages: give it its turns, if it can use them."""
        if (
            not stream.queued
            and stream.out_bytes
            and not stream.parked
            and stream.handle.outbound_flow_control_window > 0
        ):
            stream.queued = True
            self.ready.append(stream)
            self.wake()

    def withdraw(self, stream: Stream) -> None:
        """Forget what is queued for a stream; a frame that is being written is completed all the same.

        Raises `OSError` when that needs a descriptor and there is none.
        """
        self.let_go(sum(len(piece) for piece in stream.out if not isinstance(piece, FilePiece)))
        stream.out.clear()
        stream.out_bytes = 0
        stream.trailers = None
        if stream.file is not None:
            stream.file.disown()
            stream.file = None

    def take_frame_count(self) -> int:
        """DATA frames cut since the last time this was asked; one more for each 16 KiB of a frame."""
        count = self.frames_cut
        self.frames_cut = 0
        return count

    def next_plan(self) -> Plan | None:
        """What to write now, None when there is nothing."""
        plan = Plan()
        if self.urgent:
            plan.items.extend(self.urgent)
            self.urgent.clear()
            self.urgent_bytes = 0
            plan.memory = self._urgent_payload
            self._urgent_payload = 0
        budget = QUANTUM
        while self.ready and budget > 0 and self._engine.window > 0:
            stream = self.ready.popleft()
            stream.queued = False
            if stream.out_bytes:
                budget -= self._take(stream, plan, budget)
                self.resume(stream)
        return plan if plan.items else None

    def done(self, plan: Plan) -> None:
        """The plan was written, or never will be."""
        for item in plan.items:
            if isinstance(item, FileSpan):
                item.piece.landed()
        self.let_go(plan.memory)
        for stream in plan.streams:
            stream.in_plan = False
            stream.wake_sender()

    def _take(self, stream: Stream, plan: Plan, budget: int) -> int:
        """Cut frames from a stream's payload; the number of bytes taken."""
        engine = self._engine
        handle = stream.handle
        window = min(handle.outbound_flow_control_window, engine.window)
        max_frame = engine.max_frame_bytes
        out = stream.out
        items = plan.items
        taken = 0
        while out and taken < window and (taken < budget or stream.out_bytes <= REMAINDER):
            size = min(max_frame, stream.out_bytes, window - taken)
            first = out[0]
            if isinstance(first, FilePiece) and size <= first.left:
                # The usual case in bulk: frames with nothing but a part of a file, as many as there may be now.
                count = max(1, min(first.left, window - taken, budget - taken) // size)
                if not self._pages_ready(stream, size * count):
                    break
                header = frames.frame_header(size, frames.DATA, 0, stream.id)
                items.append(FileSpan(first, first.offset, size, header, count))
                plan.has_files = True
                self.frames_cut += count * (1 + (size >> 14))
                size *= count
                taken += size
                stream.out_bytes -= size
                first.offset += size
                first.left -= size
                if not first.left:
                    out.popleft()
                continue
            if stream.file is not None and not self._pages_ready(stream, size):
                break
            items.append(frames.frame_header(size, frames.DATA, 0, stream.id))
            stream.out_bytes -= size
            taken += size
            self.frames_cut += 1 + (size >> 14)
            while size:
                piece = out[0]
                if isinstance(piece, FilePiece):
                    length = min(size, piece.left)
                    items.append(FileSpan(piece, piece.offset, length))
                    plan.has_files = True
                    piece.offset += length
                    piece.left -= length
                    if not piece.left:
                        out.popleft()
                else:
                    length = len(piece)
                    if length <= size:
                        items.append(piece)
                        out.popleft()
                    else:
                        length = size
                        items.append(piece[:size])
                        out[0] = piece[size:]
                    plan.memory += length
                size -= length
        if taken:
            engine.window -= taken
            handle.outbound_flow_control_window -= taken
            stream.sent_total += taken
            if not stream.in_plan:
                stream.in_plan = True
                plan.streams.append(stream)
            if not out and stream.trailers is not None:
                items.append(self._on_end(stream, stream.trailers))
        return taken

    def _pages_ready(self, stream: Stream, size: int) -> bool:
        """Park the stream if the file it sends from would keep the loop waiting."""
        for piece in stream.out:
            if isinstance(piece, FilePiece):
                needed = piece.offset + min(size, piece.left)
                if needed > piece.checked_until:
                    ahead = min(max(size, QUANTUM), piece.left)
                    if not self.resident(piece.fd, piece.offset, ahead):
                        stream.parked = True
                        self.cold.append(stream)
                        return False
                    piece.checked_until = piece.offset + ahead
                return True
            size -= len(piece)
            if size <= 0:
                return True
        return True
