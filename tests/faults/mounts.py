"""File systems of the tests' own: they take root, and a kernel that lets it mount something."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# ioctl_fslabel(2)'s neighbour, in linux/fs.h: FS_IOC_SHUTDOWN, and the flag by which ext4 doesn't even write its journal.
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


class Disk:
    """A small ext4 on a file, whose power can be cut; made by :func:`open_disk` only."""

    def __init__(self, image: Path, directory: Path) -> None:
        self._image = image
        self.directory = directory

    def mount(self) -> None:
        run("mount", "-o", "loop,errors=continue", self._image, self.directory)

    def unmount(self, *how: str) -> None:
        run("umount", *how, self.directory)

    def sync(self) -> None:
        """Bring all of it to the disk."""
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            assert ctypes.CDLL(None).syncfs(fd) == 0
        finally:
            os.close(fd)

    def cut_power(self) -> None:
        """From now on nothing gets to the disk any more."""
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def restart(self) -> None:
        """The power is back: the journal is replayed."""
        self.unmount()
        self.mount()


@contextmanager
def open_disk(directory: Path, size: int) -> Iterator[Disk]:
    """A disk of *size* bytes, mounted below *directory*; skips the test where that can't be."""
    make = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if os.geteuid() or make is None:
        pytest.skip("cutting the power of a file system takes root and mkfs.ext4")
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(size)
    run(make, "-q", "-F", image)
    (directory / "disk").mkdir()
    result = Disk(image, directory / "disk")
    try:
        result.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device can be mounted here: {error.stderr.decode().strip()}")
    try:
        yield result
    finally:
        result.unmount("--lazy")  # whatever a failed test has left open


@contextmanager
def small_memory(directory: Path, size: int) -> Iterator[Path]:
    """A tmpfs of *size* bytes; skips the test where it can't be mounted."""
    if os.geteuid():
        pytest.skip("mounting a tmpfs takes root")
    try:
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        run("umount", "--lazy", directory)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
