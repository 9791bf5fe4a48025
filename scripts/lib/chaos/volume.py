"""A separate small file system for the data directory, which a test can fill without harm to the machine."""

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
    """Return whether this process may make and mount file systems."""
    tools = all(shutil.which(tool) for tool in ("mkfs.ext4", "mount", "umount"))
    return os.geteuid() == 0 and tools and os.path.exists("/dev/loop-control")


class Volume:
    """A file system in the sparse file `disk`, mounted at `mount_point`. All methods block."""

    def __init__(self, disk: Path, mount_point: Path) -> None:
        self._disk = disk
        self._mount_point = mount_point
        self._filler = mount_point / "filler"

    def mount(self) -> None:
        """Make and mount the file system. Raises `subprocess.CalledProcessError` when that is not allowed."""
        self._mount_point.mkdir(parents=True)
        with self._disk.open("wb") as file:
            file.truncate(SIZE_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self._disk], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", self._disk, self._mount_point], check=True, capture_output=True)

    def fill(self) -> None:
        """Use all free space, to the last block."""
        with self._filler.open("ab") as file:
            step = max(_STEP_BYTES, os.statvfs(self._mount_point).f_bavail * os.statvfs(self._mount_point).f_frsize)
            while step >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError:
                    step //= 2

    def free(self) -> None:
        """Free the space."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Unmount the file system and remove its disk. All processes that use it must have ended."""
        subprocess.run(["umount", self._mount_point], check=True, capture_output=True)
        self._disk.unlink()
