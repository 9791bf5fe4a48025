"""Where the files of VMs lie: one directory for each, named as the VM, in a folder of VMs.

A clone is made under `<name>.partial` and renamed when whole, so a directory without the suffix is a whole VM. What it
shares with the template it was cloned from is linked into it: the template may go, the VM stays whole.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Final

from agent.domain.names import PREFIX, parse

PARTIAL: Final = ".partial"

DISK: Final = "disk.qcow2"
BASE: Final = "base.qcow2"
"""The disk of the template a VM was cloned from, between the VM's own and the image's."""
OVERLAY: Final = "overlay.qcow2"
"""In a template: an empty disk on top of its own, which each VM cloned from it gets a copy of."""
NVRAM: Final = "nvram.bin"
IMAGE: Final = "image"
"""The digest of the image a VM was cloned from, for an agent that has lost its journal."""
PID_FILE: Final = "qemu.pid"
LOG: Final = "qemu.log"
CONSOLE: Final = "console.log"
MEMORY: Final = "memory"
"""What QEMU saved of a machine: all of it, or all but the main memory where that is in a file of its own."""
RAM: Final = "ram"
"""The main memory of a template, byte for byte. Twins map it: a page is read when it is first touched, and copied when
it is first written."""
TWIN: Final = "twin"
"""Present until a VM cloned from a template has become itself; it goes by that one's names and secrets until then."""
DRAFT: Final = "template.partial"
"""A folder where a template of this VM is being made. While it is there, the VM may be paused."""
MONITOR: Final = "monitor.sock"
AGENT: Final = "agent.sock"
WAITER: Final = "resume.sock"
SCREEN: Final = "screen.png"


class Layout:
    """The folder that holds all VMs, and what the names in it mean."""

    def __init__(self, vms_dir: Path, *, prefix: str = PREFIX) -> None:
        self._vms_dir = vms_dir
        self._prefix = prefix

    @cached_property
    def root(self) -> Path:
        """The folder by its one true path: processes are known by it, however the configuration spells it."""
        return Path(os.path.realpath(self._vms_dir))

    def vm(self, name: str) -> Path:
        """Directory of a whole VM."""
        return self.root / name

    def partial(self, name: str) -> Path:
        """Directory of a VM that is being made."""
        return self.root / f"{name}{PARTIAL}"

    def ours(self, name: str) -> bool:
        """Whether a VM of that name was made by us."""
        return parse(name, prefix=self._prefix) is not None

    def names(self) -> set[str]:
        """Return the names of all VMs that have files here, half-made and foreign ones included. Raises `OSError`."""
        try:
            entries = [entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return set()
        return {self._name(entry) for entry in entries}

    def image(self, name: str) -> str:
        """Return the digest of the image a VM was cloned from, empty when that is not known. Raises `OSError`."""
        try:
            return (self.vm(name) / IMAGE).read_text(encoding="ascii").strip()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return ""

    def damage(self, name: str) -> str:
        """Return what a whole VM lacks of its files; empty when it has them, or is only half made. Raises `OSError`."""
        if not self.vm(name).is_dir():
            return "" if self.partial(name).is_dir() else f"its directory {self.vm(name)} is gone"
        return "" if (self.vm(name) / DISK).exists() else f"its disk {self.vm(name) / DISK} is gone"

    def _name(self, entry: str) -> str:
        name = entry.removesuffix(PARTIAL)
        return name if self.ours(name) else entry
