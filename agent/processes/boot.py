"""Which run of the machine this is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.processes import sysctl

_LINUX: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return what changes with every boot of the host and with nothing else; empty where that cannot be told."""
    try:
        return _LINUX.read_text(encoding="ascii").strip()
    except OSError:
        pass
    try:
        return sysctl.text("kern.bootsessionuuid")
    except OSError:
        return ""
