"""A reader of a rotating log: its last lines, then every new line, over any number of rotations."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final

from agent.telemetry.log_file import rotated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_POLL_MS: Final = 2000
"""File notifications of the system wake the reader. Polling only covers a lost notification."""


def log_files(path: Path) -> list[Path]:
    """Return the log file, if it exists, and the rotated files, newest first."""
    return [*([path] if path.exists() else []), *rotated(path)]


class LogFollower:
    """Yields the complete lines of a log file from some point on, also after its file was rotated away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._partial = b""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def drain(self) -> Iterator[str]:
        """Yield the lines written since the last call. The first call begins at the start of the current file."""
        if self._file is None:
            self._file = _open(self._path)
        while self._file is not None:
            yield from self._lines()
            successor = self._successor()
            if successor is None:
                return
            yield from self._lines()  # lines written between the last read and the rotation
            self.close()
            self._file = successor

    def older_files(self) -> list[Path]:
        """Return the files that were written before the current one, newest first."""
        files = log_files(self._path)
        inodes = [_inode(file) for file in files]
        current = self._file and os.fstat(self._file.fileno()).st_ino
        return files[inodes.index(current) + 1 :] if current in inodes else rotated(self._path)

    def _lines(self) -> Iterator[str]:
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # another program truncated the file
            self._partial = b""
        *whole, self._partial = (self._partial + self._file.read()).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")

    def _successor(self) -> IO[bytes] | None:
        """Open the file that was written after the current one; None when the current one is the newest."""
        assert self._file is not None
        current = os.fstat(self._file.fileno()).st_ino
        files = log_files(self._path)
        inodes = [_inode(file) for file in files]
        if current in inodes:
            index = inodes.index(current)
            return _open(files[index - 1]) if index > 0 else None
        return _open(files[-1]) if files else None  # the current file was deleted: continue with the oldest


def read_last_lines(path: Path, count: int, is_selected: Callable[[str], bool]) -> tuple[list[str], LogFollower]:
    """Return the last `count` selected lines, oldest first, and a follower that continues after them."""
    follower = LogFollower(path)
    found = [line for line in follower.drain() if is_selected(line)]
    for file in follower.older_files():
        if len(found) >= count:
            break
        found = [line for line in _read_lines(file) if is_selected(line)] + found
    return (found[-count:] if count else []), follower


def read_all_lines(path: Path) -> Iterator[str]:
    """Yield every line of all files, oldest first."""
    for file in reversed(log_files(path)):
        yield from _read_lines(file)


def follow_lines(follower: LogFollower, path: Path) -> Iterator[str]:
    """Yield lines as they are written, without end. Blocks in between on the system's file notifications."""
    from watchfiles import watch  # noqa: PLC0415 - only needed here

    for _ in watch(
        path.parent, watch_filter=None, recursive=False, debounce=200, rust_timeout=_POLL_MS,
        yield_on_timeout=True,
    ):  # fmt: skip
        yield from follower.drain()


def _read_lines(file: Path) -> Iterator[str]:
    """Yield the complete lines of a file that may be rotated or deleted at any moment."""
    with suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield line[:-1]


def _open(path: Path) -> IO[bytes] | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return -1
