"""The QEMU command line of one VM. Pure.

QEMU runs in the VM's directory, so the paths are short and need no escaping. The one absolute path is that of the pid
file: processes.py recognises a VM's process by it.
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

RESUME_PORT: Final = "resume"
"""QEMU's name for the port at which a guest can wait for the request to reinitialise its identity."""
CPU_MODELS: Final = {"tcg": "max", "kvm": "host", "hvf": "host"}
COMMON_ARGUMENTS: Final = ("-nodefaults", "-no-user-config", "-display", "none")
"""Arguments of every QEMU this driver starts: no default devices, no user configuration, no window."""


class Ram(Enum):
    """Where a VM's main memory is."""

    OWN = "own"  # anonymous memory of the process
    MAPPED = "mapped"  # a private mapping of `layout.RAM`, which stays unchanged
    WRITTEN = "written"  # a shared mapping of `layout.RAM`, which QEMU creates and changes


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """Options of one QEMU process. The descriptors are listening sockets that it inherits."""

    binary: Path
    machine: Machine
    accelerator: str
    spec: VmSpec
    directory: Path
    firmware: Firmware | None  # None: boot from the machine's BIOS
    monitor_fd: int
    agent_fd: int
    resume_fd: int
    incoming: bool = False  # wait for a snapshot instead of booting
    is_from_template: bool = False  # that snapshot is, or began as, one of another VM
    ram: Ram = Ram.OWN


def command_line(launch: LaunchOptions) -> list[str]:
    """Return the program and its arguments."""
    machine, spec = launch.machine, launch.spec
    return [
        str(launch.binary),
        *("-name", spec.name),
        *("-pidfile", str(launch.directory / layout.PID_FILE)),
        *COMMON_ARGUMENTS,
        *accelerated(machine, launch.accelerator),
        *("-no-reboot", "-smp", str(spec.size.cpus), "-m", f"{spec.size.memory_mib}M"),
        *_memory(machine, spec, launch.ram),
        *_pflash(launch.firmware),
        *_disk(),
        *_network(spec, is_from_template=launch.is_from_template),
        *_channels(launch),
        *("-device", "virtio-rng-pci"),
        *machine.devices,
        *(("-incoming", "defer") if launch.incoming else ()),
    ]


def accelerated(machine: Machine, accelerator: str) -> tuple[str, ...]:
    """Return the arguments for machine, accelerator and processor: the same for VMs and for the trial."""
    return ("-machine", f"{machine.type},accel={accelerator}", "-cpu", CPU_MODELS[accelerator])


def mac_address(name: str) -> str:
    """Return a VM's own network address: locally administered, in QEMU's range, derived from its name."""
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
        # Named like the memory that QEMU makes by default: a snapshot is loaded by that name.
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
    # A clone is not used after a crash of its host, so the guest's flushes are not passed to the storage: builds get
    # much faster.
    disk = {
        "driver": "qcow2",
        "node-name": "disk",
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": True},
        "file": {"driver": "file", "filename": layout.DISK, "cache": {"direct": False, "no-flush": True}},
    }
    # By default QEMU pauses a guest for an unlimited time when the host's disk is full. With an I/O error the job fails
    # and is reported.
    return ("-blockdev", json.dumps(disk), "-device", "virtio-blk-pci,drive=disk,bootindex=0,werror=report")


def _network(spec: VmSpec, *, is_from_template: bool) -> tuple[str, ...]:
    # A snapshot contains the leases of QEMU's user network. A VM that changes its network address would get another IP
    # than the one that ports are forwarded to. So a first network without a device gets the leases of the snapshot,
    # and the VM's own network starts without leases.
    lease_sink = ("-netdev", "user,id=inherited") if is_from_template else ()
    # Host port 0: the kernel selects a free port without a race, and the monitor reports it.
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in spec.ports)
    device = f"virtio-net-pci,netdev=net,mac={mac_address(spec.name)},romfile="
    return (*lease_sink, "-netdev", f"user,id=net{forwards}", "-device", device)


def _channels(launch: LaunchOptions) -> tuple[str, ...]:
    return (
        *("-chardev", f"socket,id=monitor,fd={launch.monitor_fd},server=on,wait=off"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,fd={launch.agent_fd},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-chardev", f"socket,id={RESUME_PORT},fd={launch.resume_fd},server=on,wait=off"),
        *("-device", f"virtserialport,chardev={RESUME_PORT},name=hearth.resume.0"),
        *("-chardev", f"file,id=console,path={layout.CONSOLE},append=on"),
        *("-serial", "chardev:console"),
    )
