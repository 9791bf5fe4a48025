"""A small file system of its own for the data directory, so that it can be filled without harm to the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

SIZE_MIB: Final = 3072
_STEP_BYTES: Final = 1 << 20


def can_mount() -> bool:
    """Whether this process may make and mount file systems."""
    tools = all(shutil.which(tool) for tool in ("mkfs.ext4", "mount", "umount"))
    return os.geteuid() == 0 and tools and os.path.exists("/dev/loop-control")


class Volume:
    """A file system in the sparse file `disk`, mounted at `where`. Blocks: nothing here is called on a loop."""

    def __init__(self, disk: Path, where: Path) -> None:
        self._disk = disk
        self._where = where
        self._filler = where / "filler"

    def mount(self) -> None:
        """Make and mount it. Raises `subprocess.CalledProcessError` where that is not allowed."""
        self._where.mkdir(parents=True)
        with self._disk.open("wb") as file:
            file.truncate(SIZE_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self._disk], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", self._disk, self._where], check=True, capture_output=True)

    def fill(self) -> None:
        """Take all free space, to the last block."""
        with self._filler.open("ab") as file:
            step = max(_STEP_BYTES, os.statvfs(self._where).f_bavail * os.statvfs(self._where).f_frsize)
            while step >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError:
                    step //= 2

    def free(self) -> None:
        """Give the space back."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Unmount it and remove its disk. What uses it must have ended."""
        subprocess.run(["umount", self._where], check=True, capture_output=True)
        self._disk.unlink()
