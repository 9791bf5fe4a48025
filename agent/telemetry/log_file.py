"""The log file and its rotated predecessors, with limits on size, age and total size.

The current file is rotated when the next line would exceed its size limit, or when its first line is too old.
`hearth.log.1` is always its direct predecessor. Rotated files are deleted, oldest first, when their last line is too
old, or when all files together with a full current file would exceed the budget.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count, takewhile
from logging.handlers import BaseRotatingHandler
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import TextIOWrapper

_FIRST_LINE_BYTES: Final = 4096
"""Bytes to read for the time of the first line. The time is at the start of each line."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Limits for rotation and deletion of log files. Sizes in bytes, ages in seconds."""

    max_bytes: int = 32 << 20
    max_age_s: float = 86400.0
    budget_bytes: int = 192 << 20
    keep_s: float = 14 * 86400.0


def log_path(data_dir: Path) -> Path:
    """Return the log file of the agent with this data directory. Rotated files have the suffixes `.1`, `.2`, …"""
    return data_dir / "logs" / "hearth.log"


def rotated(path: Path) -> list[Path]:
    """Return the rotated predecessors of a log file, newest first, up to the first missing number."""
    names = (path.with_name(f"{path.name}.{number}") for number in count(1))
    return list(takewhile(Path.exists, names))


class LogFile(BaseRotatingHandler):
    """The log file. If it is not writable, the handler reports it once on stderr, counts lost lines, and retries."""

    def __init__(
        self,
        path: Path,
        retention: Retention,
        *,
        lost_lines: Callable[[int], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(path, "a", encoding="utf-8", delay=True)
        self._path = path
        self._retention = retention
        self._lost_lines = lost_lines
        self._clock = clock
        self._first_line_s: float | None = None
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line. If lines were lost before, first write a line with their number."""
        lost = self._lost
        if lost:
            super().emit(logging.makeLogRecord({"msg": self._lost_lines(lost)}))
            if self._lost > lost:
                return
            self._lost = 0
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report the first of consecutive failures on stderr. The next line opens the file again."""
        if not self._lost and sys.stderr is not None:
            sys.stderr.write(f"hearth: cannot write the log {self.baseFilename}: {sys.exc_info()[1]}\n")
        self._lost += 1
        stream, self.stream = self.stream, None  # None: opened by the next line
        if stream is not None:
            with suppress(OSError):
                stream.close()

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Whether this line would exceed the size limit of the current file, or the file is too old. False if empty."""
        if self.stream is not None and self._is_replaced():
            self.stream.close()
            self.stream = None
        if self.stream is None:
            self.stream = self._open()
        size = self.stream.seek(0, os.SEEK_END)
        if size == 0 or not os.path.isfile(self.baseFilename):  # a device or a pipe is never full
            self._first_line_s = None
            return False
        if self._first_line_s is None:
            self._first_line_s = _first_time_s(self._path) or self._clock()
        too_large = size + len(f"{self.format(record)}\n".encode()) > self._retention.max_bytes
        return too_large or self._clock() - self._first_line_s >= self._retention.max_age_s

    def _is_replaced(self) -> bool:
        """Whether the file was moved or removed by another program. Lines written to it would be lost, unseen."""
        assert self.stream is not None
        written = os.fstat(self.stream.fileno())
        try:
            named = os.stat(self.baseFilename)
        except OSError:
            return True
        return (named.st_dev, named.st_ino) != (written.st_dev, written.st_ino)

    def doRollover(self) -> None:
        """Increase the number of each file by one, and delete the files that exceed the limits."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None  # opened by the next line
        self._first_line_s = None
        for number, file in reversed(list(enumerate(rotated(self._path), start=2))):
            file.rename(self._path.with_name(f"{self._path.name}.{number}"))
        self._path.rename(self._path.with_name(f"{self._path.name}.1"))
        self._prune()

    def _prune(self) -> None:
        """Delete the first rotated file that exceeds the budget or is too old, and all older ones."""
        left_bytes = self._retention.budget_bytes - self._retention.max_bytes
        for file in (files := rotated(self._path)):
            stat = file.stat()
            left_bytes -= stat.st_size
            if left_bytes < 0 or self._clock() - stat.st_mtime > self._retention.keep_s:
                for older in reversed(files[files.index(file) :]):
                    older.unlink(missing_ok=True)
                return

    def _open(self) -> TextIOWrapper:
        """Open the file, and end its last line if a crash left it incomplete."""
        stream = super()._open()
        try:
            with open(self.baseFilename, "rb") as written:
                size = written.seek(0, os.SEEK_END)
                written.seek(max(0, size - 1))
                incomplete = written.read(1) not in (b"", b"\n")
            if incomplete:
                stream.write("\n")
        except OSError:
            stream.close()
            raise
        return stream


def _first_time_s(path: Path) -> float | None:
    """Return the time of the first line of a log, or None if it has no valid time."""
    with path.open("rb") as file:
        line = file.readline(_FIRST_LINE_BYTES).decode("utf-8", "replace")
    try:
        return datetime.fromisoformat(json.loads(line)["ts"]).timestamp()
    except (ValueError, KeyError, TypeError):
        return None
