"""The qemu driver: VMs as overlays on an image, controlled by QMP and the guest agent."""

from __future__ import annotations

from agent.hypervisors.qemu.driver import QemuHypervisor

__all__ = ["QemuHypervisor"]
