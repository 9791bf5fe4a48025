"""Holes in files: made, kept and found, so that a disk takes the space of its content and not of its size."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import TYPE_CHECKING, Final

from agent.images.files import pwrite_all

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLE_BYTES: Final = 64 << 10
"""Granularity at which zeros become holes."""

_ZEROS: Final = bytes(HOLE_BYTES)
_KEEP_SIZE_PUNCH_HOLE: Final = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def data_runs(buffer: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of `buffer[start:end]` that are not zero, at a granularity of 64 KiB from `start`."""
    run = start
    for at in range(start, end, HOLE_BYTES):
        size = min(HOLE_BYTES, end - at)
        # `startswith` compares in place; a slice would copy every block.
        if buffer.startswith(_ZEROS if size == HOLE_BYTES else bytes(size), at):
            if run < at:
                yield run, at
            run = at + size
    if run < end:
        yield run, end


def make_hole(descriptor: int, offset: int, size: int) -> None:
    """Turn a range of a file into zeros, giving its space back where the file system can."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (ctypes.c_int(descriptor), ctypes.c_int(_KEEP_SIZE_PUNCH_HOLE))
        if libc.fallocate(*arguments, ctypes.c_longlong(offset), ctypes.c_longlong(size)) == 0:
            return
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))
    for at in range(offset, offset + size, HOLE_BYTES):
        pwrite_all(descriptor, memoryview(_ZEROS)[: offset + size - at], at)


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that the file system holds data for. What is not yielded reads as zeros."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            if error.errno in _UNSUPPORTED:
                yield at, size
                return
            raise
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, min(at, size)
