"""`[hypervisor]`: which hypervisor runs the VMs, and how."""

from __future__ import annotations

from typing import Literal

from agent.config.base import Section


class QemuConfig(Section):
    """`[hypervisor.qemu]`."""

    accelerator: Literal["auto", "hvf", "kvm", "tcg"] = "auto"
    """`auto` proves each by a trial boot and remembers the first that works."""
    binary: str | None = None
    """Path of qemu-system-*; default: the one for this machine's architecture on PATH."""


class HypervisorConfig(Section):
    """`[hypervisor]`."""

    kind: Literal["auto", "qemu", "simulated"] = "auto"
    qemu: QemuConfig = QemuConfig()
