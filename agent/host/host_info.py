"""Identity of the host, and the resources that its VMs may use together."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from agent.domain.model import HostLimits
from agent.host.hardware import UNKNOWN_HARDWARE, Hardware, read_hardware
from agent.processes.boot import boot_id

if TYPE_CHECKING:
    from agent.config import HostConfig
    from agent.processes.command import CommandRunner

_MIB: Final = 2**20
_DEFAULT_OVERCOMMIT: Final = 2.0


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """The identity, system and hardware of this host. `cpus` and `memory_mib` are totals of the machine."""

    name: str
    machine_id: str
    boot_id: str
    os: str
    arch: str
    cpus: int
    memory_mib: int
    agent_version: str
    hypervisor: str
    hypervisor_version: str
    hardware: Hardware = UNKNOWN_HARDWARE


async def read_host_identity(
    runner: CommandRunner, *, agent_version: str, hypervisor: str, hypervisor_version: str
) -> HostIdentity:
    """Read the identity of this host. On a Mac it runs `ioreg`; it does not fail if that fails."""
    hardware = await read_hardware(runner)
    return HostIdentity(
        name=socket.gethostname(),
        machine_id=_machine_id(hardware.uuid),
        boot_id=boot_id() or f"boot-{int(psutil.boot_time())}",
        os=_operating_system(),
        arch=platform.machine(),
        cpus=os.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total // _MIB,
        agent_version=agent_version,
        hypervisor=hypervisor,
        hypervisor_version=hypervisor_version,
        hardware=hardware,
    )


def host_limits(config: HostConfig) -> HostLimits:
    """Return what VMs may use together: the configured values, or defaults from the machine's totals.

    By default memory is the total without `memory_reserve_mib`, and `cpus` is twice the number of processors.
    """
    memory_mib = config.memory_mib
    if memory_mib is None:
        memory_mib = max(0, psutil.virtual_memory().total // _MIB - config.memory_reserve_mib)
    return HostLimits(config.slots, config.cpus or (os.cpu_count() or 1) * _DEFAULT_OVERCOMMIT, memory_mib)


def _machine_id(uuid: str) -> str:
    """Return an identity that survives restarts: systemd's machine-id, the platform UUID of a Mac, or the host name."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return uuid or socket.gethostname()


def _operating_system() -> str:
    version = platform.mac_ver()[0]
    return f"macOS {version}" if version else f"{platform.system()} {platform.release()}"
