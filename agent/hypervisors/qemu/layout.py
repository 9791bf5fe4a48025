"""The files of VMs: one directory for each VM, with the VM's name, in one folder.

A clone is made under `<name>.partial` and renamed when it is complete, so a directory without the suffix is a complete
VM. Files shared with the template it was cloned from are hard links: the VM stays complete if the template is removed.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Final

from agent.domain.names import PREFIX
from agent.hypervisors.running import is_ours

PARTIAL: Final = ".partial"

DISK: Final = "disk.qcow2"
BASE: Final = "base.qcow2"
"""The disk of the template a VM was cloned from, between the VM's own disk and the image's."""
OVERLAY: Final = "overlay.qcow2"
"""In a template: an empty disk on top of its own. Each VM cloned from the template gets a copy."""
NVRAM: Final = "nvram.bin"
IMAGE: Final = "image"
"""The digest of the image a VM was cloned from, for an agent that has lost its journal."""
PID_FILE: Final = "qemu.pid"
LOG: Final = "qemu.log"
CONSOLE: Final = "console.log"
SNAPSHOT: Final = "snapshot"
"""The VM state that QEMU saved: all of it, or all but the main memory if that is in a file of its own (`RAM`)."""
RAM: Final = "ram"
"""The main memory of a template, byte for byte. VMs started from the template map it: QEMU reads a page when the guest
first touches it, and copies it when the guest first writes to it."""
IDENTITY_PENDING: Final = "identity-pending"
"""Present until a VM cloned from a template has reinitialised its identity. Until then it has the names and secrets of
the VM that the template was made of."""
DRAFT: Final = "template.partial"
"""The folder in which a template of this VM is being made. While it exists, the VM may be paused."""
MONITOR_SOCKET: Final = "monitor.sock"
AGENT_SOCKET: Final = "agent.sock"
RESUME_SOCKET: Final = "resume.sock"
SCREEN: Final = "screen.png"


class QemuLayout:
    """The folder that holds all VMs. Methods that read it block, and raise `OSError`."""

    def __init__(self, vms_dir: Path, *, prefix: str = PREFIX) -> None:
        self._vms_dir = vms_dir
        self.prefix = prefix

    @cached_property
    def root(self) -> Path:
        """The folder without symlinks: processes are recognised by this path, however the configuration spells it."""
        return Path(os.path.realpath(self._vms_dir))

    def vm(self, name: str) -> Path:
        """Directory of a complete VM."""
        return self.root / name

    def partial(self, name: str) -> Path:
        """Directory of a VM that is being cloned."""
        return self.root / f"{name}{PARTIAL}"

    def is_ours(self, name: str) -> bool:
        """Whether this agent made the VM of that name."""
        return is_ours(name, self.prefix)

    def names(self) -> set[str]:
        """Return the names of all VMs that have files here, including incomplete and foreign ones."""
        try:
            entries = [entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return set()
        return {self._name(entry) for entry in entries}

    def image(self, name: str) -> str:
        """Return the digest of the image a VM was cloned from, empty if it is not known."""
        try:
            return (self.vm(name) / IMAGE).read_text(encoding="ascii").strip()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return ""

    def damage(self, name: str) -> str:
        """Return which file a complete VM lacks; empty if it has all of them, or is incomplete."""
        if not self.vm(name).is_dir():
            return "" if self.partial(name).is_dir() else f"its directory {self.vm(name)} is gone"
        return "" if (self.vm(name) / DISK).exists() else f"its disk {self.vm(name) / DISK} is gone"

    def _name(self, entry: str) -> str:
        name = entry.removesuffix(PARTIAL)
        return name if self.is_ours(name) else entry
