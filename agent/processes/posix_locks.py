"""Holders of POSIX file locks. Tart locks a file while a VM runs, and while an image is in use."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def lock_holder(path: Path) -> int | None:
    """Return the pid of the process that holds a POSIX lock on a file; None if there is no lock or no file.

    A lock that this process holds is not reported. Raises `OSError`.
    """
    # The layout of struct flock: Linux has type and whence first, macOS has them last.
    linux = sys.platform == "linux"
    layout = "hhqqi4x" if linux else "qqihh"
    query = (fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0) if linux else (0, 0, 0, fcntl.F_RDLCK, os.SEEK_SET)
    try:
        with path.open("rb") as file:
            reply = fcntl.fcntl(file.fileno(), fcntl.F_GETLK, struct.pack(layout, *query))
    except (FileNotFoundError, NotADirectoryError):
        return None
    fields = struct.unpack(layout, reply)
    kind, pid = (fields[0], fields[4]) if linux else (fields[3], fields[2])
    return None if kind == fcntl.F_UNLCK else int(pid)
