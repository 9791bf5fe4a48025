"""Bounded output: a buffer that keeps the head and tail of a stream, and reading and truncating of log files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class HeadTailBuffer:
    """A buffer that keeps the first and the last bytes written to it, at most `limit_bytes` in total.

    The head shows how a program started, the tail how it ended. The bytes between them are dropped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._head_limit = limit_bytes // 2
        self._tail_limit = limit_bytes - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self._written = 0

    def write(self, data: bytes) -> None:
        """Add `data`. Drop bytes from the middle if the limit is exceeded."""
        self._written += len(data)
        head_left = self._head_limit - len(self._head)
        self._head += data[:head_left]
        self._tail += data[head_left:][-self._tail_limit :]
        # Cutting only at twice the limit avoids moving the whole tail at each of many small writes.
        if len(self._tail) > 2 * self._tail_limit:
            del self._tail[: -self._tail_limit]

    @property
    def truncated(self) -> bool:
        """Whether bytes were dropped."""
        return self._written > self._head_limit + self._tail_limit

    def getvalue(self) -> bytes:
        """Return the head followed by the tail."""
        return bytes(self._head) + bytes(self._tail[-self._tail_limit :])


def read_tail(path: Path, limit_bytes: int) -> bytes:
    """Return the last bytes of a file; empty if the file does not exist. Raises `OSError`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit_bytes))
            return file.read(limit_bytes)
    except FileNotFoundError:
        return b""


def last_lines(path: Path, *, lines: int = 3, limit_bytes: int = 2048, without: str | None = None) -> str:
    """Return the last lines of a log, joined by ` | `, for an error message. Raises `OSError`.

    Empty lines and lines that contain `without` are skipped.
    """
    text = read_tail(path, limit_bytes).decode(errors="replace")
    kept = [line.strip() for line in text.splitlines() if line.strip() and (without is None or without not in line)]
    return " | ".join(kept[-lines:])


def truncate_log(path: Path, *, limit_bytes: int) -> bool:
    """Empty a log that another process appends to if it is over its limit. Return whether it did so.

    The last `limit_bytes` / 2 are kept in `<path>.1`. The writer must have opened the log with O_APPEND, so that its
    next line goes to the new end. Lines written while the tail is copied are lost; bounding the disk space is more
    important. Raises `OSError`.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    path.with_name(f"{path.name}.1").write_bytes(read_tail(path, limit_bytes // 2))
    os.truncate(path, 0)
    return True
