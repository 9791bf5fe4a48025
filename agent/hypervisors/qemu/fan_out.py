"""Making a template of a running VM: it is paused, its memory saved, its disk copied, and it runs on.

The rest is done beside it: the memory is parted, and an empty disk made for the VMs to come. While it is made, its
files lie in the VM's own folder (`layout.DRAFT`). That folder is also the sign by which a later agent knows that this
VM may be paused, if this one is killed half-way.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.model import VmSize
from agent.hypervisors.contract import HypervisorError, VmSpec
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.clone import overlay
from agent.hypervisors.qemu.mappable import part_memory
from agent.hypervisors.qemu.monitor import MonitorError, monitor
from agent.hypervisors.qemu.suspend import SAVE_S
from agent.processes.command import CommandError
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.qemu.fleet import Fleet, RunningVm
    from agent.hypervisors.qemu.monitor import Monitor
    from agent.hypervisors.qemu.toolchain import Toolchain
    from agent.processes.command import CommandRunner

log = structlog.get_logger()

WAKE_S: Final = 10.0
_QCOW2: Final = struct.Struct(">8xQI4xQ")
"""Of its header: offset and length of the name of the file below, and the disk's size (docs/interop/qcow2.txt)."""


async def draft_template(vm: RunningVm, fleet: Fleet, tools: Toolchain, runner: CommandRunner) -> Path:
    """Save memory and disk of a VM in its draft folder, which is returned.

    The VM runs on, whatever happens. Raises `HypervisorError`.
    """
    draft = vm.directory / layout.DRAFT
    began_s = time.monotonic()
    try:
        await run_in_thread(partial(_begin, draft))
        async with monitor(vm.name, vm.directory / layout.MONITOR, timeout_s=SAVE_S) as qmp:
            await _check_version(vm, qmp, tools.version)
            spec = VmSpec(vm.name, await _size(qmp), ())
            paused_s = time.monotonic()
            await qmp.ask("stop")
            await qmp.migrate_out(draft / layout.MEMORY)
            await run_in_thread(partial(_copy_disk, vm.directory, draft))
            await qmp.go_on()
            pause_s = time.monotonic() - paused_s
        _, disk_bytes = await run_in_thread(partial(disk_header, draft / layout.DISK))
        await runner.run(overlay(tools, draft / layout.OVERLAY, "qcow2", layout.BASE, size_bytes=disk_bytes))
        await part_memory(spec, draft, fleet, tools)
    except (OSError, CommandError) as error:
        await abandon_draft(vm)
        raise HypervisorError(f"no template can be made of {vm.name}: {error}") from error
    except BaseException:
        await abandon_draft(vm)
        raise
    took_s = time.monotonic() - began_s
    log.info("template-drafted", vm=vm.name, pause_s=round(pause_s, 3), duration_s=round(took_s, 3))
    return draft


async def abandon_draft(vm: RunningVm) -> None:
    """Let a VM run on whose template was not finished, and remove the draft: never both undone."""
    try:
        async with monitor(vm.name, vm.directory / layout.MONITOR, timeout_s=WAKE_S) as qmp:
            await qmp.abandon_migration()
            await qmp.go_on()
    except MonitorError as error:
        log.warning("vm-left-paused", vm=vm.name, error=str(error))
        vm.paused = True
        return
    await run_in_thread(partial(discard_draft, vm.directory))
    vm.paused = False


def discard_draft(directory: Path) -> None:
    """Remove what there is of a draft. Blocks. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory / layout.DRAFT)


def disk_header(disk: Path) -> tuple[str, int]:
    """Return the name of the file that a qcow2 disk lies on, and the disk's size. Blocks. Raises `OSError`."""
    with disk.open("rb") as file:
        offset, length, size_bytes = _QCOW2.unpack(file.read(_QCOW2.size))
        file.seek(offset)
        return file.read(length).decode(), size_bytes


async def _size(qmp: Monitor) -> VmSize:
    """Ask how large a VM is: a saved memory is only loaded into another as large."""
    memory = (await qmp.ask("query-memory-size-summary"))["base-memory"]
    return VmSize(cpus=len(await qmp.ask("query-cpus-fast")), memory_mib=memory >> 20)


async def _check_version(vm: RunningVm, qmp: Monitor, version: str) -> None:
    """A VM outlives the agent and may run in an older QEMU than the one its twins would be started with."""
    said = (await qmp.ask("query-version"))["qemu"]
    own = f"{said['major']}.{said['minor']}.{said['micro']}"
    if own != version:
        raise HypervisorError(f"{vm.name} runs in QEMU {own}, and new VMs would in {version}")


def _begin(draft: Path) -> None:
    discard_draft(draft.parent)
    draft.mkdir(mode=0o700)


def _copy_disk(directory: Path, draft: Path) -> None:
    for name in (layout.DISK, layout.NVRAM):
        if (directory / name).exists():
            shutil.copyfile(directory / name, draft / name)
