"""Who holds the POSIX lock on a file: Tart's word for "this VM runs", and for "this image is in use"."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def lock_holder(path: Path) -> int | None:
    """Return the process that holds a POSIX lock on a file; None when nobody does, or there is no such file.

    One of this process itself is not seen. Raises `OSError`.
    """
    # struct flock differs: Linux has type and whence first, macOS last.
    linux = sys.platform == "linux"
    layout = "hhqqi4x" if linux else "qqihh"
    asked = (fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0) if linux else (0, 0, 0, fcntl.F_RDLCK, os.SEEK_SET)
    try:
        with path.open("rb") as file:
            answer = fcntl.fcntl(file.fileno(), fcntl.F_GETLK, struct.pack(layout, *asked))
    except (FileNotFoundError, NotADirectoryError):
        return None
    fields = struct.unpack(layout, answer)
    kind, pid = (fields[0], fields[4]) if linux else (fields[3], fields[2])
    return None if kind == fcntl.F_UNLCK else int(pid)
