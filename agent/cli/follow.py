"""Reading a rotating log: its last lines, then every new one, over any number of rotations."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final

from agent.telemetry.log_file import rotated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LOOK_AGAIN_MS: Final = 2000
"""The notifications of the system wake us; this only covers one that got lost."""


def log_files(path: Path) -> list[Path]:
    """Return the log file, where it exists, and its rotated predecessors, newest first."""
    return [*([path] if path.exists() else []), *rotated(path)]


class Follower:
    """Yields the complete lines of a log file from some point on, whatever happens to its name meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._partial = b""

    def close(self) -> None:
        """Let go of the file."""
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
            yield from self._lines()  # what was written between the last read and the rotation
            self.close()
            self._file = successor

    def older(self) -> list[Path]:
        """Return the files that came before the one it reads, newest first."""
        files = log_files(self._path)
        inodes = [_inode(file) for file in files]
        mine = self._file and os.fstat(self._file.fileno()).st_ino
        return files[inodes.index(mine) + 1 :] if mine in inodes else rotated(self._path)

    def _lines(self) -> Iterator[str]:
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # cut short in place by somebody
            self._partial = b""
        *whole, self._partial = (self._partial + self._file.read()).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")

    def _successor(self) -> IO[bytes] | None:
        """Return the file that came after ours when ours was rotated away, opened; None while ours is current."""
        assert self._file is not None
        mine = os.fstat(self._file.fileno()).st_ino
        files = log_files(self._path)
        inodes = [_inode(file) for file in files]
        if mine in inodes:
            index = inodes.index(mine)
            return _open(files[index - 1]) if index > 0 else None
        return _open(files[-1]) if files else None  # ours was dropped: go on with the oldest there is


def last_lines(path: Path, count: int, wanted: Callable[[str], bool]) -> tuple[list[str], Follower]:
    """Return the last `count` wanted lines, oldest first, and a follower that goes on right after them."""
    follower = Follower(path)
    found = [line for line in follower.drain() if wanted(line)]
    for file in follower.older():
        if len(found) >= count:
            break
        found = [line for line in _read(file) if wanted(line)] + found
    return (found[-count:] if count else []), follower


def all_lines(path: Path) -> Iterator[str]:
    """Yield every line there is, oldest first."""
    for file in reversed(log_files(path)):
        yield from _read(file)


def follow(follower: Follower, path: Path) -> Iterator[str]:
    """Yield lines as they are written, for ever. Sleeps on the system's file notifications."""
    from watchfiles import watch  # noqa: PLC0415 - only a follower needs it

    for _ in watch(
        path.parent, watch_filter=None, recursive=False, debounce=200, rust_timeout=_LOOK_AGAIN_MS,
        yield_on_timeout=True,
    ):  # fmt: skip
        yield from follower.drain()


def _read(file: Path) -> Iterator[str]:
    """Yield the complete lines of a file that may be rotated away, or dropped, at any moment."""
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
