"""Output that cannot grow without bound: a byte sink that keeps head and tail, and the tails and trims of log files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class HeadTailBuffer:
    """A sink that keeps the first and the last bytes of what is written to it, at most `limit_bytes` in all.

    The head tells how a program began, the tail how it ended; what lies between is counted and dropped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._head_limit = limit_bytes // 2
        self._tail_limit = limit_bytes - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self._written = 0

    def write(self, data: bytes) -> None:
        """Add `data`, dropping from the middle what does not fit."""
        self._written += len(data)
        room = self._head_limit - len(self._head)
        self._head += data[:room]
        self._tail += data[room:][-self._tail_limit :]
        # Cut in strides, so that a flood of small writes does not move the whole tail each time.
        if len(self._tail) > 2 * self._tail_limit:
            del self._tail[: -self._tail_limit]

    @property
    def truncated(self) -> bool:
        """Whether some of what was written is not kept."""
        return self._written > self._head_limit + self._tail_limit

    def getvalue(self) -> bytes:
        """Return the head followed by the tail."""
        return bytes(self._head) + bytes(self._tail[-self._tail_limit :])


def read_tail(path: Path, limit_bytes: int) -> bytes:
    """Return the last bytes of a file, empty when there is no such file. Raises `OSError`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit_bytes))
            return file.read(limit_bytes)
    except FileNotFoundError:
        return b""


def last_lines(path: Path, *, lines: int = 3, limit_bytes: int = 2048, without: str | None = None) -> str:
    """Return the last lines of a log as one line of text for an error message, but for those with a text in them.

    Raises `OSError`.
    """
    said = read_tail(path, limit_bytes).decode(errors="replace").splitlines()
    telling = [line.strip() for line in said if line.strip() and (without is None or without not in line)]
    return " | ".join(telling[-lines:])


def truncate_log(path: Path, *, limit_bytes: int) -> bool:
    """Cut a log that another process appends to once it is over its limit; its last half goes to `<path>.1`.

    The writer must have opened it with O_APPEND: its next line then lands at the new end. Lines written while the tail
    is copied are lost, which a bounded disk is worth. Returns whether it cut. Raises `OSError`.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    path.with_name(f"{path.name}.1").write_bytes(read_tail(path, limit_bytes // 2))
    os.truncate(path, 0)
    return True
