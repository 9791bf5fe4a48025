"""The programs that the driver needs: finds them and checks that they work."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.hypervisors.qemu.accelerator import select_accelerator
from agent.hypervisors.qemu.firmware import Firmware, find_firmware
from agent.hypervisors.qemu.machine import Machine, machine_for
from agent.processes.command import Command, CommandRunner, ProgramMissingError

if TYPE_CHECKING:
    from agent.config import QemuConfig


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The programs and the machine type with which this host makes and runs VMs."""

    machine: Machine
    emulator: Path
    disk_tool: Path  # qemu-img
    version: str
    accelerator: str
    firmware: tuple[Firmware, ...]


async def find_toolchain(config: QemuConfig, runner: CommandRunner, *, state_dir: Path) -> Toolchain:
    """Find QEMU and check that it runs guests. Raises `HypervisorUnavailableError` with what to install or change."""
    machine = machine_for(config.binary)
    emulator = _find(config.binary or machine.program, machine.remedy)
    sibling = emulator.with_name("qemu-img")
    disk_tool = sibling if sibling.exists() else _find("qemu-img", "install the Debian package qemu-utils")
    answer = await runner.run(Command((str(emulator), "--version"), timeout_s=30, remedy=machine.remedy))
    version = _version(answer.stdout.decode(errors="replace"))
    accelerator = await select_accelerator(
        runner, machine, emulator, version=version, wanted=config.accelerator, state_dir=state_dir
    )
    firmware = await asyncio.to_thread(find_firmware, machine, emulator)
    return Toolchain(machine, emulator, disk_tool, version, accelerator, firmware)


def _find(program: str, remedy: str) -> Path:
    found = shutil.which(program)
    if found is None:
        raise ProgramMissingError(f"the program {program} was not found", remedy=remedy)
    return Path(found).absolute()


def _version(text: str) -> str:
    """Return the version from `QEMU emulator version 7.2.22 (Debian …)`."""
    found = re.search(r"version (\S+)", text)
    return found[1] if found else text.strip()
