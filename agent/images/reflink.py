"""Copies of files that share their blocks until one is written to, where the file system can (APFS, XFS, Btrfs)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_FICLONE: Final = 0x40049409  # linux/fs.h
_CANNOT: Final = frozenset(
    (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)
)


def clone_file(source: Path, target: Path) -> bool:
    """Make `target` a copy of `source` that takes no space; False, and no target, where that cannot be done.

    Raises `OSError` for every other reason, `FileExistsError` when there is a target among them.
    """
    try:
        _clone(source, target)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


if sys.platform == "darwin":

    def _clone(source: Path, target: Path) -> None:
        """clonefile(2): whole or not at all, attributes included."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.clonefile(os.fsencode(source), os.fsencode(target), ctypes.c_uint32(0)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(source), None, str(target))

else:

    def _clone(source: Path, target: Path) -> None:
        """ioctl_ficlone(2), into a file that is removed again when it fails."""
        with source.open("rb") as opened, target.open("xb") as made:
            try:
                fcntl.ioctl(made.fileno(), _FICLONE, opened.fileno())
            except OSError:
                target.unlink()
                raise
