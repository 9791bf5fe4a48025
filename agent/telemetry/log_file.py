"""The log on disk: one current file and its rotated predecessors, bounded in size, in age, and all together.

The current file is rotated when the next line would make it too large, or when its first line is too old; so at most
one file is written to at any time, and `hearth.log.1` is always what came before. Rotated files go, oldest first, when
all files together would pass the budget once the current one is full, or when their last line is too old.
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
"""Enough of a file's first line to hold its time, which comes first in every line."""


@dataclass(frozen=True, slots=True)
class Retention:
    """When the log is rotated, and what is kept of it. Sizes in bytes, ages in seconds."""

    max_bytes: int = 32 << 20
    max_age_s: float = 86400.0
    budget_bytes: int = 192 << 20
    keep_s: float = 14 * 86400.0


def log_path(data_dir: Path) -> Path:
    """Return where the agent with this data directory writes its log; rotated files are beside it as `.1`, `.2`, …"""
    return data_dir / "logs" / "hearth.log"


def rotated(path: Path) -> list[Path]:
    """Return the rotated predecessors of a log file, newest first, as far as they exist without a gap."""
    names = (path.with_name(f"{path.name}.{number}") for number in count(1))
    return list(takewhile(Path.exists, names))


class LogFile(BaseRotatingHandler):
    """The log file. When it cannot be written it says so once on stderr, counts, and goes on when it can again."""

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
        self._began_s: float | None = None
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; after lines that could not be written, first one that tells how many."""
        lost = self._lost
        if lost:
            super().emit(logging.makeLogRecord({"msg": self._lost_lines(lost)}))
            if self._lost > lost:
                return
            self._lost = 0
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell the first failure in a row; the agent works on without its log. The file is opened anew for each try."""
        if not self._lost and sys.stderr is not None:
            sys.stderr.write(f"hearth: cannot write the log {self.baseFilename}: {sys.exc_info()[1]}\n")
        self._lost += 1
        stream, self.stream = self.stream, None  # None: opened by the next line
        if stream is not None:
            with suppress(OSError):
                stream.close()

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Whether the current file is full with this line, or too old for it. An empty file is neither."""
        if self.stream is None:
            self.stream = self._open()
        size = self.stream.seek(0, os.SEEK_END)
        if size == 0 or not os.path.isfile(self.baseFilename):  # a device or a pipe is never full
            self._began_s = None
            return False
        if self._began_s is None:
            self._began_s = _first_time_s(self._path) or self._clock()
        too_large = size + len(f"{self.format(record)}\n".encode()) > self._retention.max_bytes
        return too_large or self._clock() - self._began_s >= self._retention.max_age_s

    def doRollover(self) -> None:
        """Move every file one number up, and let go of what the retention does not hold."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None  # opened by the next line
        self._began_s = None
        for number, file in reversed(list(enumerate(rotated(self._path), start=2))):
            file.rename(self._path.with_name(f"{self._path.name}.{number}"))
        self._path.rename(self._path.with_name(f"{self._path.name}.1"))
        self._prune()

    def _prune(self) -> None:
        """Delete the rotated files from the first one on that does not fit the budget or is too old."""
        left_bytes = self._retention.budget_bytes - self._retention.max_bytes
        for file in (files := rotated(self._path)):
            about = file.stat()
            left_bytes -= about.st_size
            if left_bytes < 0 or self._clock() - about.st_mtime > self._retention.keep_s:
                for older in reversed(files[files.index(file) :]):
                    older.unlink(missing_ok=True)
                return

    def _open(self) -> TextIOWrapper:
        """Open the file at the beginning of a line: the last one may have been cut short."""
        stream = super()._open()
        try:
            with open(self.baseFilename, "rb") as written:
                size = written.seek(0, os.SEEK_END)
                written.seek(max(0, size - 1))
                cut_short = written.read(1) not in (b"", b"\n")
            if cut_short:
                stream.write("\n")
        except OSError:
            stream.close()
            raise
        return stream


def _first_time_s(path: Path) -> float | None:
    """Return when the first line of a log was written, or None where that cannot be told."""
    with path.open("rb") as file:
        line = file.readline(_FIRST_LINE_BYTES).decode("utf-8", "replace")
    try:
        return datetime.fromisoformat(json.loads(line)["ts"]).timestamp()
    except (ValueError, KeyError, TypeError):
        return None
