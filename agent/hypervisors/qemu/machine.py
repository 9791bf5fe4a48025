"""The table of processor architectures that the qemu driver supports, and how their VMs differ."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.hypervisors.contract import HypervisorUnavailableError


@dataclass(frozen=True, slots=True)
class Trial:
    """A firmware image that tests an accelerator: QEMU exits with `exit_code` only if the guest code runs."""

    code: bytes  # at the start of the image
    reset: bytes  # in its last 16 bytes, where an x86 processor starts
    arguments: tuple[str, ...]
    exit_code: int

    def firmware(self) -> bytes:
        """Return the image: 64 KiB, the smallest size that QEMU accepts."""
        size, reset = 1 << 16, self.reset.ljust(16, b"\0")
        return self.code.ljust(size - len(reset), b"\0") + reset


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of VMs of one architecture."""

    arch: str  # the name in images: "amd64" or "arm64"
    qemu_arch: str  # the name in QEMU
    type: str
    ram: str  # QEMU's name for this machine's main memory
    bios: bool  # can boot without UEFI
    devices: tuple[str, ...]  # in addition to those of every VM
    trial: Trial
    remedy: str  # how to install the emulator
    firmware_remedy: str  # how to install UEFI for it

    @property
    def program(self) -> str:
        """The emulator's name on PATH."""
        return f"qemu-system-{self.qemu_arch}"


# Switches from real mode through protected mode to long mode with paging, and only then ends QEMU. A KVM that creates
# VMs and runs real mode may still hang in the mode switches that every kernel does next. Starts at f000:0.
_X86_TRIAL: Final = Trial(
    code=bytes.fromhex(
        "fa 2e660f01169800"  # cli; lgdt
        "0f20c0 0c01 0f22c0 66ea18000f000800"  # CR0.PE = 1; jump to the 32-bit code that follows
        "66b81000 8ed8 8ec0"  # flat data segments
        "bf00100000 31c0 b9000c0000 fc f3ab"  # three zeroed page tables from 0x1000 on:
        "66c705001000000320 66c705002000000330 c6050030000083"  # the first 2 MiB, mapped to themselves
        "b020 0f22e0 66b80010 0f22d8"  # CR4.PAE = 1; CR3 = 0x1000
        "b9800000c0 0f32 80cc01 0f30"  # EFER.LME = 1
        "0f20c0 0fbae81f 0f22c0 ea71000f001800"  # CR0.PG = 1; jump to the 64-bit code that follows
        "b010 e6f4 f4 0000"  # out 0xf4, 0x10: the isa-debug-exit device ends QEMU with 0x10 << 1 | 1; hlt
        "0000000000000000 ffff0000009acf00 ffff00000092cf00 ffff0000009aaf00"  # descriptors: code 32, data, code 64
        "1f00 78000f00"  # their table: limit and address
    ),
    reset=bytes.fromhex("ea000000f0"),  # jump to f000:0000
    arguments=("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
    exit_code=0x10 << 1 | 1,
)
# PSCI SYSTEM_OFF: QEMU ends with 0.
_ARM_TRIAL: Final = Trial(
    code=bytes.fromhex("00018052 0080b072 020000d4"),  # w0 = 0x84000008; hvc #0
    reset=b"",
    arguments=(),
    exit_code=0,
)

_X86: Final = Machine(
    arch="amd64",
    qemu_arch="x86_64",
    type="q35",
    ram="pc.ram",
    bios=True,
    devices=("-device", "VGA", "-device", "vmgenid,guid=auto"),
    trial=_X86_TRIAL,
    remedy="install the Debian package qemu-system-x86 or the Homebrew formula qemu",
    firmware_remedy="install the Debian package ovmf or the Homebrew formula qemu",
)
_ARM: Final = Machine(
    arch="arm64",
    qemu_arch="aarch64",
    type="virt",
    ram="mach-virt.ram",
    bios=False,
    devices=("-device", "virtio-gpu-pci"),
    trial=_ARM_TRIAL,
    remedy="install the Debian package qemu-system-arm or the Homebrew formula qemu",
    firmware_remedy="install the Debian package qemu-efi-aarch64 or the Homebrew formula qemu",
)

_BY_HOST: Final = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}


def machine_for(binary: str | None) -> Machine:
    """Return the machine of the configured emulator, or of this host's architecture if none is configured.

    Raises `HypervisorUnavailableError` for an architecture that is not in the table.
    """
    named = Path(binary).name.removeprefix("qemu-system-") if binary else platform.machine().lower()
    if machine := _BY_HOST.get(named):
        return machine
    raise HypervisorUnavailableError(
        f"VMs of {named} are not supported by the qemu driver",
        remedy=f"set hypervisor.qemu.binary to {_X86.program} or {_ARM.program}",
    )
