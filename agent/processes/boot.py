"""Identity of the current boot of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.processes import sysctl

_LINUX: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return an identifier that changes with each boot of the host and only then; empty if the system has none."""
    try:
        return _LINUX.read_text(encoding="ascii").strip()
    except OSError:
        pass
    try:
        return sysctl.text("kern.bootsessionuuid")
    except OSError:
        return ""
