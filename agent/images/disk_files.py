"""Disk files that take little space: holes instead of zeros, and clones that share blocks (APFS, XFS, Btrfs)."""

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
    from pathlib import Path

HOLE_BYTES: Final = 64 << 10
"""Zeros become holes in units of this size."""

_ZEROS: Final = bytes(HOLE_BYTES)
_KEEP_SIZE_PUNCH_HOLE: Final = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h
_F_PUNCHHOLE: Final = 99  # sys/fcntl.h of macOS
_FPUNCHHOLE: Final = struct.Struct("=IIqq")  # fpunchhole_t: flags, reserved, offset, length
_SYNC_FILE_RANGE_WRITE: Final = 0x02  # linux/fs.h
_FICLONE: Final = 0x40049409  # linux/fs.h
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_CLONE_UNSUPPORTED: Final = frozenset((*_UNSUPPORTED, errno.ENOTTY, errno.EXDEV, errno.EPERM))


def data_runs(buffer: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of `buffer[start:end]` that are not zero, in units of 64 KiB from `start`."""
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
    """Zero a range of a file, and free its space if the file system supports holes."""
    start, end = _punch(descriptor, offset, offset + size)
    _write_zeros(descriptor, offset, start)
    _write_zeros(descriptor, end, offset + size)


def clone_file(source: Path, target: Path) -> bool:
    """Clone `source` to `target`, sharing its blocks until one of the two is written.

    Returns False, without creating `target`, if the file system cannot clone. Raises `OSError` for every other reason,
    for example `FileExistsError` if `target` exists.
    """
    try:
        _clone(source, target)
    except OSError as error:
        if error.errno in _CLONE_UNSUPPORTED:
            return False
        raise
    return True


if sys.platform == "darwin":

    def _clone(source: Path, target: Path) -> None:
        """Call clonefile(2), which clones completely or not at all, attributes included."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.clonefile(os.fsencode(source), os.fsencode(target), ctypes.c_uint32(0)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(source), None, str(target))

    def _punch(descriptor: int, start: int, end: int) -> tuple[int, int]:
        """Punch the whole blocks of a range and return the punched range. fcntl(2) rejects parts of blocks."""
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

    def _clone(source: Path, target: Path) -> None:
        """Call ioctl_ficlone(2) on a new file, and remove that file if the call fails."""
        with source.open("rb") as source_file, target.open("xb") as target_file:
            try:
                fcntl.ioctl(target_file.fileno(), _FICLONE, source_file.fileno())
            except OSError:
                target.unlink()
                raise

    def _punch(descriptor: int, start: int, end: int) -> tuple[int, int]:
        """Punch a range and return the punched range. fallocate(2) zeroes parts of blocks itself."""
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
    """Start writing a range of a file to the disk now, without waiting for it.

    Only Linux needs this hint: otherwise it keeps gigabytes in memory, with an idle disk, until the final sync.
    """
    if sys.platform == "linux":
        arguments = (ctypes.c_int(descriptor), ctypes.c_longlong(offset), ctypes.c_longlong(size))
        ctypes.CDLL(None).sync_file_range(*arguments, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file for which the file system stores data. All other ranges read as zeros."""
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
