"""Who this host is and what it has. Reads of the machine; values for everyone else."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from agent.domain.model import HostLimits
from agent.host import space
from agent.host.hardware import UNKNOWN_HARDWARE, Hardware, read_hardware
from agent.processes.boot import boot_id

if TYPE_CHECKING:
    from agent.config import Config, HostConfig
    from agent.processes.command import CommandRunner

_MIB: Final = 2**20
_DEFAULT_OVERCOMMIT: Final = 2.0


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """Who this host is and what it is made of. Sizes are totals."""

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


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The data volume, in bytes."""

    total_bytes: int
    free_bytes: int
    reserve_bytes: int
    excess_bytes: int = 0
    """Bytes to free: down to the low watermark when above the high one, and up to the reserve. 0 when neither binds."""

    @property
    def full(self) -> bool:
        """Whether free space has reached the reserve."""
        return self.free_bytes < self.reserve_bytes


async def identify(
    runner: CommandRunner, *, agent_version: str, hypervisor: str, hypervisor_version: str
) -> HostIdentity:
    """Read who this host is and what it is made of."""
    hardware = await read_hardware(runner)
    return HostIdentity(
        name=socket.gethostname(),
        machine_id=_machine_id(hardware.uuid),
        boot_id=boot_id() or f"boot-{int(psutil.boot_time())}",
        os=_system(),
        arch=platform.machine(),
        cpus=os.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total // _MIB,
        agent_version=agent_version,
        hypervisor=hypervisor,
        hypervisor_version=hypervisor_version,
        hardware=hardware,
    )


def measure_disk(path: Path, config: Config) -> DiskFacts:
    """Measure the volume that holds `path`. Blocks: a network or failing disk may take its time."""
    seen = space.measure(path)
    used = seen.total_bytes - seen.free_bytes
    full = used > seen.total_bytes * config.images.high_watermark_percent / 100
    reserve = config.host.disk_reserve_mib * _MIB
    excess = int(used - seen.total_bytes * config.images.low_watermark_percent / 100) if full else 0
    excess = max(0, excess, reserve - seen.free_bytes)
    return DiskFacts(seen.total_bytes, seen.free_bytes, reserve, excess)


def limits(config: HostConfig) -> HostLimits:
    """Return what VMs may use together: the configuration, or what the machine has less the reserve."""
    memory_mib = config.memory_mib
    if memory_mib is None:
        memory_mib = max(0, psutil.virtual_memory().total // _MIB - config.memory_reserve_mib)
    return HostLimits(config.slots, config.cpus or (os.cpu_count() or 1) * _DEFAULT_OVERCOMMIT, memory_mib)


def _machine_id(uuid: str) -> str:
    """Return the machine's lasting identity: systemd's machine-id, or the platform UUID of a Mac."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return uuid or socket.gethostname()


def _system() -> str:
    version = platform.mac_ver()[0]
    return f"macOS {version}" if version else f"{platform.system()} {platform.release()}"
