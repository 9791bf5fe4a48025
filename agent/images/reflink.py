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
_CANNOT: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)


def clone_file(source: Path, target: Path) -> bool:
    """Make `target` a copy of `source` that takes no space; False, and no target, where that cannot be done."""
    if sys.platform == "darwin":
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.clonefile(os.fsencode(source), os.fsencode(target), 0) == 0)
    with source.open("rb") as opened, target.open("xb") as made:
        try:
            fcntl.ioctl(made.fileno(), _FICLONE, opened.fileno())
        except OSError as error:
            target.unlink()
            if error.errno in _CANNOT:
                return False
            raise
    return True
