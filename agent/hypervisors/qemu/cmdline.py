"""The QEMU command line of one VM. Pure.

QEMU runs in the VM's directory, so that paths in it need neither length nor escaping; the one absolute path is that of
its pid file, by which processes.py knows a VM's process in the process table.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from agent.hypervisors.qemu import layout

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.qemu.firmware import Firmware
    from agent.hypervisors.qemu.machine import Machine

WAITER: Final = "resume"
"""What QEMU calls the port at which a guest can wait to be told that it is another now."""
CPU_MODELS: Final = {"tcg": "max", "kvm": "host", "hvf": "host"}
ALWAYS: Final = ("-nodefaults", "-no-user-config", "-display", "none")
"""What every QEMU of ours is started with: nothing but what is asked for."""


class Ram(Enum):
    """Where a VM's main memory is."""

    OWN = "own"  # memory that is nobody else's
    MAPPED = "mapped"  # as `layout.RAM` holds it, which stays as it is
    WRITTEN = "written"  # in `layout.RAM`, which is made and changed


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one VM. The descriptors are listening sockets the process inherits."""

    binary: Path
    machine: Machine
    accelerator: str
    spec: VmSpec
    directory: Path
    firmware: Firmware | None  # None: boot by the machine's BIOS
    monitor_fd: int
    agent_fd: int
    waiter_fd: int
    incoming: bool = False  # wait for a saved memory instead of booting
    inherited: bool = False  # that memory is, or began as, another VM's
    ram: Ram = Ram.OWN


def command_line(launch: Launch) -> list[str]:
    """Return the whole command."""
    machine, spec = launch.machine, launch.spec
    return [
        str(launch.binary),
        *("-name", spec.name),
        *("-pidfile", str(launch.directory / layout.PID_FILE)),
        *ALWAYS,
        *accelerated(machine, launch.accelerator),
        *("-no-reboot", "-smp", str(spec.size.cpus), "-m", f"{spec.size.memory_mib}M"),
        *_memory(machine, spec, launch.ram),
        *_pflash(launch.firmware),
        *_disk(),
        *_network(spec, inherited=launch.inherited),
        *_channels(launch),
        *("-device", "virtio-rng-pci"),
        *machine.devices,
        *(("-incoming", "defer") if launch.incoming else ()),
    ]


def accelerated(machine: Machine, accelerator: str) -> tuple[str, ...]:
    """Return the arguments that choose machine, accelerator and processor: the same for VMs and for the trial."""
    return ("-machine", f"{machine.type},accel={accelerator}", "-cpu", CPU_MODELS[accelerator])


def mac_address(name: str) -> str:
    """Return a VM's own network address: locally administered, in QEMU's range, drawn from its name."""
    tail = hashlib.sha256(name.encode()).digest()[:3]
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, 0x00, *tail))


def _memory(machine: Machine, spec: VmSpec, ram: Ram) -> tuple[str, ...]:
    if ram is Ram.OWN:
        return ()
    file = {
        "qom-type": "memory-backend-file",
        "id": machine.ram,
        "size": spec.size.memory_mib << 20,
        "mem-path": layout.RAM,
        "share": ram is Ram.WRITTEN,
        # Named as QEMU names the memory it makes by itself: a saved memory is loaded by that name.
        "x-use-canonical-path-for-ramblock-id": False,
    }
    return ("-object", json.dumps(file), "-machine", f"memory-backend={machine.ram}")


def _pflash(firmware: Firmware | None) -> tuple[str, ...]:
    if firmware is None:
        return ()
    code = {"driver": "file", "filename": str(firmware.code), "node-name": "code-file", "read-only": True}
    variables = {"driver": "file", "filename": layout.NVRAM, "node-name": "nvram-file"}
    return (
        *("-blockdev", json.dumps(code)),
        *("-blockdev", json.dumps({"driver": "raw", "file": "code-file", "node-name": "code", "read-only": True})),
        *("-blockdev", json.dumps(variables)),
        *("-blockdev", json.dumps({"driver": "raw", "file": "nvram-file", "node-name": "nvram"})),
        *("-machine", "pflash0=code,pflash1=nvram"),
    )


def _disk() -> tuple[str, ...]:
    # A clone dies with its host, so the guest's flushes need not reach the platter: builds are much faster for it.
    disk = {
        "driver": "qcow2",
        "node-name": "disk",
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": True},
        "file": {"driver": "file", "filename": layout.DISK, "cache": {"direct": False, "no-flush": True}},
    }
    # By default QEMU pauses a guest when the host's disk is full, for ever: an error lets its job fail and be told.
    return ("-blockdev", json.dumps(disk), "-device", "virtio-blk-pci,drive=disk,bootindex=0,werror=report")


def _network(spec: VmSpec, *, inherited: bool) -> tuple[str, ...]:
    # A saved memory holds the user network's leases, and to a VM that changes its address the network would lease an IP
    # other than the one ports are forwarded to. A first network with nobody on it takes the inherited leases in, and
    # the VM's own begins without any.
    taker = ("-netdev", "user,id=inherited") if inherited else ()
    # Host port 0: the kernel picks a free one, without a race, and the monitor tells which.
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in spec.ports)
    device = f"virtio-net-pci,netdev=net,mac={mac_address(spec.name)},romfile="
    return (*taker, "-netdev", f"user,id=net{forwards}", "-device", device)


def _channels(launch: Launch) -> tuple[str, ...]:
    return (
        *("-chardev", f"socket,id=monitor,fd={launch.monitor_fd},server=on,wait=off"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,fd={launch.agent_fd},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-chardev", f"socket,id={WAITER},fd={launch.waiter_fd},server=on,wait=off"),
        *("-device", f"virtserialport,chardev={WAITER},name=hearth.resume.0"),
        *("-chardev", f"file,id=console,path={layout.CONSOLE},append=on"),
        *("-serial", "chardev:console"),
    )
