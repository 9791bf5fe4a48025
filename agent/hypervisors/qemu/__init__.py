"""The qemu driver: overlay clones, QMP, guest agent, processes adopted from the process table."""

from __future__ import annotations

from agent.hypervisors.qemu.driver import QemuHypervisor

__all__ = ["QemuHypervisor"]
