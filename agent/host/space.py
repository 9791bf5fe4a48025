"""Free space as the file system really gives it.

APFS counts clones once, and what `statvfs` calls free leaves out what is purgeable: snapshots and caches that macOS
gives back when a program asks for important data. Nothing here counts purgeable space as free: it is given back late,
and not always.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Space:
    """The volume of a path, in bytes."""

    total_bytes: int
    free_bytes: int


def measure(path: Path) -> Space:
    """Measure the volume that holds `path`, or its nearest folder that is there.

    Blocks: a network or failing disk may take its time. Raises `OSError`.
    """
    seen = os.statvfs(_there(path))
    return Space(seen.f_blocks * seen.f_frsize, seen.f_bavail * seen.f_frsize)


def purgeable_bytes(path: Path) -> int | None:
    """Return what could become free on the volume of `path`, beyond what is; None where the system does not tell it.

    Blocks: macOS asks another process for it. Raises `OSError`.
    """
    return _purgeable(_there(path), measure(path).free_bytes)


def _there(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


if sys.platform == "darwin":
    _SINT64 = 4  # kCFNumberSInt64Type

    def _purgeable(path: Path, free_bytes: int) -> int | None:
        """Return what macOS would give for important data beyond what is free (NSURL's resource values)."""
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
        """Return None: Linux frees what is deleted."""
        return None
