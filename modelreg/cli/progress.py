"""A bar for transfers that take long, on standard error where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# What is done sooner needs no bar. In seconds.
APPEARS_AFTER = 0.5

# Pieces are told of some thousand times a second, which nobody sees. In seconds.
BETWEEN_UPDATES = 0.1

Told = Callable[[int, int], object]


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Bar | None]:
    """A bar to call with the bytes done and all bytes, as often as the caller likes; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # what pipes don't need
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar = Bar(progress, label)
    try:
        yield bar
    finally:
        bar.close()


class Bar:
    """Appears also where nothing is told for long, as nobody answers: it moves then without a figure."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._label = label
        self._begun = time.monotonic()
        self._told = 0.0
        self._at: tuple[str, int, int | None] = label, 0, None
        self._shown = label
        self._task: TaskID | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(APPEARS_AFTER, self._show)
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, done: int, total: int) -> None:
        self._tell(self._label, done, total)

    def step(self, label: str) -> Told:
        """What to call during a step that has a label of its own."""
        return partial(self._tell, label)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._task is not None:
                self._progress.stop()

    def _tell(self, label: str, done: int, total: int) -> None:
        self._at = label, done, total
        now = time.monotonic()
        if now - self._begun < APPEARS_AFTER or (now - self._told < BETWEEN_UPDATES and done < total):
            return
        self._told = now
        self._show()

    def _show(self) -> None:
        label, done, total = self._at
        with self._lock:
            if self._closed:
                return
            if self._task is None:
                self._progress.start()
                self._task = self._progress.add_task(label, total=total)
                self._shown = label
            elif label != self._shown:  # its speed begins anew
                self._progress.reset(self._task, description=label)
                self._shown = label
            self._progress.update(self._task, completed=done, total=total)
