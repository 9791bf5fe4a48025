"""A file system in a file, for one test."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@contextlib.contextmanager
def xfs(folder: Path, *, mib: int = 400) -> Iterator[Path]:
    """Mount an XFS that can clone files. Skips the test when mounting is impossible."""
    image, mount = folder / "xfs.img", folder / "xfs"
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    mount.mkdir()
    commands = (f"mkfs.xfs -q -m reflink=1 {image}", f"mount -o loop {image} {mount}")
    if os.geteuid() != 0 or any(os.system(f"{command} 2>/dev/null") for command in commands):
        pytest.skip("needs root, loop devices and mkfs.xfs")
    try:
        yield mount
    finally:
        assert os.system(f"umount {mount}") == 0
