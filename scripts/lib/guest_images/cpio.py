"""Writes an initramfs: the `newc` archive the Linux kernel unpacks (kernel document "initramfs buffer format").

Written here and not by the `cpio` tool, since here every file belongs to root, has the same date and gets its inode
number by its place, so that the same files make the same bytes, and no right to make device nodes is needed.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Entry:
    """One file of the archive. `device` is (major, minor) for a device node."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Archive:
    """A file tree in memory, written out in the order of its paths."""

    _entries: dict[str, _Entry] = field(default_factory=dict)

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a directory and the ones above it."""
        for parent in reversed(PurePosixPath(path).parents[:-1]):
            self._entries.setdefault(str(parent), _Entry(stat.S_IFDIR | 0o755))
        self._entries[path] = _Entry(stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file and the directories above it."""
        self._add(path, _Entry(stat.S_IFREG | mode, data))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, _Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._add(path, _Entry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def tree(self, source: Path) -> None:
        """Add every file below `source`, keeping only whether it may be run."""
        for path in sorted(source.rglob("*")):
            if path.is_file():
                mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
                self.file(str(path.relative_to(source)), path.read_bytes(), mode)

    def _add(self, path: str, entry: _Entry) -> None:
        parent = str(PurePosixPath(path).parent)
        if parent != "." and parent not in self._entries:
            self.folder(parent)
        self._entries[path] = entry

    def to_bytes(self) -> bytes:
        """The whole archive."""
        parts = [_record(number, path, entry) for number, (path, entry) in enumerate(sorted(self._entries.items()), 1)]
        return b"".join([*parts, _record(0, "TRAILER!!!", _Entry(0))])


def _record(inode: int, path: str, entry: _Entry) -> bytes:
    """One header of 13 fields of 8 hexadecimal digits, then name and data, each padded to 4 bytes."""
    name = path.encode() + b"\0"
    fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % value for value in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
