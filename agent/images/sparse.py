"""Holes in files: made, kept and found, so that a disk takes the space of its content and not of its size."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from typing import TYPE_CHECKING, Final

from agent.images.files import pwrite_all

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLE_BYTES: Final = 64 << 10
"""Granularity at which zeros become holes."""

_ZEROS: Final = bytes(HOLE_BYTES)
_KEEP_SIZE_PUNCH_HOLE: Final = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h
_F_PUNCHHOLE: Final = 99  # sys/fcntl.h of macOS
_FPUNCHHOLE: Final = struct.Struct("=IIqq")  # fpunchhole_t: flags, reserved, offset, length
_SYNC_FILE_RANGE_WRITE: Final = 0x02  # linux/fs.h
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


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
    """Turn a range within a file into zeros, giving its space back where the file system can."""
    start, end = _punch(descriptor, offset, offset + size)
    _write_zeros(descriptor, offset, start)
    _write_zeros(descriptor, end, offset + size)


if sys.platform == "darwin":

    def _punch(descriptor: int, start: int, end: int) -> tuple[int, int]:
        """Punch what is whole blocks of a range; return what was punched. fcntl(2) refuses parts of blocks."""
        block = os.fstatvfs(descriptor).f_frsize
        first, last = -(-start // block) * block, end // block * block
        if first >= last:
            return end, end
        try:
            fcntl.fcntl(descriptor, _F_PUNCHHOLE, _FPUNCHHOLE.pack(0, 0, first, last - first))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return end, end
        return first, last

else:

    def _punch(descriptor: int, start: int, end: int) -> tuple[int, int]:
        """Punch a range; return what was punched. fallocate(2) zeroes parts of blocks itself."""
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (ctypes.c_int(descriptor), ctypes.c_int(_KEEP_SIZE_PUNCH_HOLE))
        if libc.fallocate(*arguments, ctypes.c_longlong(start), ctypes.c_longlong(end - start)) == 0:
            return start, end
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))
        return end, end


def _write_zeros(descriptor: int, start: int, end: int) -> None:
    for at in range(start, end, HOLE_BYTES):
        pwrite_all(descriptor, memoryview(_ZEROS)[: end - at], at)


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Have what was written to a range of a file go to the disk now, not when it is waited for.

    A hint, and one that Linux alone needs: it would keep gigabytes until the sync at the end, and the disk idle.
    """
    if sys.platform == "linux":
        arguments = (ctypes.c_int(descriptor), ctypes.c_longlong(offset), ctypes.c_longlong(size))
        ctypes.CDLL(None).sync_file_range(*arguments, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


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
