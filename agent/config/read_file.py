"""Bounded reads of the files that people write: configuration, assignment, tokens."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 1 << 20


def read_regular_file(path: Path) -> bytes:
    """Return the content of a regular file of at most `MAX_BYTES`, links followed. Blocks only for the disk.

    A FIFO in the place of the file would block for ever, and a device has no end. Raises `OSError`, also for these.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(f"it is a {_kind(mode)}, not a file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"it is larger than {MAX_BYTES >> 20} MiB")
    return content


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "FIFO", stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFSOCK: "socket",
        stat.S_IFDIR: "folder",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "special file")
