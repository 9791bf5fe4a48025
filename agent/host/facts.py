"""Who this host is and what it has. Reads of the machine; values for everyone else."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from agent.domain.model import HostLimits

if TYPE_CHECKING:
    from agent.config import HostConfig

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


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The data volume, in bytes."""

    total_bytes: int
    free_bytes: int
    reserve_bytes: int

    @property
    def full(self) -> bool:
        """Whether free space has reached the reserve."""
        return self.free_bytes < self.reserve_bytes


def identify(*, agent_version: str, hypervisor: str, hypervisor_version: str) -> HostIdentity:
    """Read the host's identity. Blocks briefly: call it before the loop serves, or in a thread."""
    return HostIdentity(
        name=socket.gethostname(),
        machine_id=_machine_id(),
        boot_id=boot_id(),
        os=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cpus=os.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total // _MIB,
        agent_version=agent_version,
        hypervisor=hypervisor,
        hypervisor_version=hypervisor_version,
    )


def measure_disk(path: Path, *, reserve_mib: int) -> DiskFacts:
    """Measure the volume that holds `path`. Blocks: a network or failing disk may take its time."""
    usage = psutil.disk_usage(str(path))
    return DiskFacts(usage.total, usage.free, reserve_mib * _MIB)


def limits(config: HostConfig) -> HostLimits:
    """Return what VMs may use together: the configuration, or what the machine has less the reserve."""
    memory_mib = config.memory_mib
    if memory_mib is None:
        memory_mib = max(0, psutil.virtual_memory().total // _MIB - config.memory_reserve_mib)
    return HostLimits(config.slots, config.cpus or (os.cpu_count() or 1) * _DEFAULT_OVERCOMMIT, memory_mib)


def boot_id() -> str:
    """Return what changes with every boot of the host, and with nothing else."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return f"boot-{int(psutil.boot_time())}"


def _machine_id() -> str:
    """Return the machine's lasting identity: systemd's machine-id, or the platform UUID of a Mac."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return _platform_uuid() or socket.gethostname()


def _platform_uuid() -> str | None:
    try:
        listing = subprocess.run(
            ["/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"],
            capture_output=True, text=True, timeout=5, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line for line in listing.splitlines() if "IOPlatformUUID" in line]
    return lines[0].split('"')[3] if lines else None
