"""Writer of an initramfs: the `newc` archive that Linux unpacks (kernel document "initramfs buffer format").

The `cpio` tool is not used, for two reasons. Here every file belongs to root, has the same date and an inode number by
its position, so the same files give the same bytes. And device nodes need no root.
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
    """A file tree in memory, sorted by path."""

    _entries: dict[str, _Entry] = field(default_factory=dict)

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a directory and its parents."""
        for parent in reversed(PurePosixPath(path).parents[:-1]):
            self._entries.setdefault(str(parent), _Entry(stat.S_IFDIR | 0o755))
        self._entries[path] = _Entry(stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file and its parent directories."""
        self._add(path, _Entry(stat.S_IFREG | mode, data))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, _Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._add(path, _Entry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def tree(self, source: Path) -> None:
        """Add every file below `source`. Keeps only the executable bit of the mode."""
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
        """Return the archive."""
        parts = [_record(number, path, entry) for number, (path, entry) in enumerate(sorted(self._entries.items()), 1)]
        return b"".join([*parts, _record(0, "TRAILER!!!", _Entry(0))])


def _record(inode: int, path: str, entry: _Entry) -> bytes:
    """Return one record: a header of 13 fields of 8 hexadecimal digits, name and data, each padded to 4 bytes."""
    name = path.encode() + b"\0"
    fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % value for value in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
