"""Space on the volumes of the host, as the file system counts it.

APFS counts blocks that clones share once. The free space of `statvfs` excludes purgeable space: snapshots and caches
that macOS deletes when a program needs space for important data. Purgeable space is reported separately and never
counted as free, because macOS frees it late and not always.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from agent.config import Config

_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class VolumeSpace:
    """Total and free space of one volume, in bytes."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Space on the data volume and its limits, in bytes."""

    total_bytes: int
    free_bytes: int
    reserve_bytes: int
    excess_bytes: int = 0
    """Bytes to free: down to the low watermark if usage is above the high one, and up to the reserve. 0 if neither."""

    @property
    def full(self) -> bool:
        """Whether free space is below the reserve."""
        return self.free_bytes < self.reserve_bytes


def measure_disk(path: Path, config: Config) -> DiskUsage:
    """Measure the volume that holds `path` against the configured limits.

    Blocks: a network or failing disk can take long. Raises `OSError`.
    """
    volume = measure_volume(path)
    used = volume.total_bytes - volume.free_bytes
    above_high = used > volume.total_bytes * config.images.high_watermark_percent / 100
    reserve = config.host.disk_reserve_mib * _MIB
    excess = int(used - volume.total_bytes * config.images.low_watermark_percent / 100) if above_high else 0
    excess = max(0, excess, reserve - volume.free_bytes)
    return DiskUsage(volume.total_bytes, volume.free_bytes, reserve, excess)


def measure_volume(path: Path) -> VolumeSpace:
    """Measure the volume that holds `path`, or its nearest existing parent folder.

    Blocks: a network or failing disk can take long. Raises `OSError`.
    """
    stat = os.statvfs(_nearest_existing(path))
    return VolumeSpace(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)


def purgeable_bytes(path: Path) -> int | None:
    """Return the purgeable bytes on the volume of `path`; None if the system does not report them.

    Blocks: macOS queries another process. Raises `OSError`.
    """
    return _purgeable(_nearest_existing(path), measure_volume(path).free_bytes)


def _nearest_existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


if sys.platform == "darwin":
    _SINT64 = 4  # kCFNumberSInt64Type

    def _purgeable(path: Path, free_bytes: int) -> int | None:
        """Return NSURL's "available capacity for important usage" without the space that is free already."""
        core = ctypes.CDLL("/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation")
        pointer = ctypes.c_void_p
        core.CFURLCreateFromFileSystemRepresentation.restype = pointer
        core.CFURLCreateFromFileSystemRepresentation.argtypes = [pointer, ctypes.c_char_p, ctypes.c_long, ctypes.c_bool]
        core.CFURLCopyResourcePropertyForKey.restype = ctypes.c_bool
        core.CFURLCopyResourcePropertyForKey.argtypes = [pointer, pointer, ctypes.POINTER(pointer), pointer]
        core.CFNumberGetValue.restype = ctypes.c_bool
        core.CFNumberGetValue.argtypes = [pointer, ctypes.c_long, pointer]
        core.CFRelease.argtypes = [pointer]
        raw = os.fsencode(path)
        url = core.CFURLCreateFromFileSystemRepresentation(None, raw, len(raw), True)
        if not url:
            return None
        try:
            key = pointer.in_dll(core, "kCFURLVolumeAvailableCapacityForImportantUsageKey")
            number = pointer()
            if not core.CFURLCopyResourcePropertyForKey(url, key, ctypes.byref(number), None) or not number:
                return None
            value = ctypes.c_int64()
            read = core.CFNumberGetValue(number, _SINT64, ctypes.byref(value))
            core.CFRelease(number)
        finally:
            core.CFRelease(url)
        return max(0, value.value - free_bytes) if read else None

else:

    def _purgeable(_path: Path, _free_bytes: int) -> int | None:
        """Return None: Linux has no purgeable space."""
        return None
