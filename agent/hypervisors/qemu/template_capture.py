"""The capture of a template from a running VM: pauses it, saves its snapshot, copies its disk, and lets it run on.

The remaining work does not pause the VM: splitting the memory, and making an empty disk for new VMs. Until the template
is published, its files are in the VM's own folder (`layout.DRAFT`). The folder also shows a restarted agent that this
VM may be paused, if this agent is killed during the capture.
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
from agent.hypervisors.qemu.clone import overlay_command
from agent.hypervisors.qemu.memory_split import split_memory
from agent.hypervisors.qemu.monitor import MonitorError, monitor
from agent.hypervisors.qemu.snapshot import SAVE_S
from agent.processes.command import CommandError
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.qemu.monitor import Monitor
    from agent.hypervisors.qemu.running import QemuRunningVm, QemuRunningVms
    from agent.hypervisors.qemu.toolchain import Toolchain
    from agent.processes.command import CommandRunner

log = structlog.get_logger()

CONTINUE_S: Final = 10.0
_QCOW2: Final = struct.Struct(">8xQI4xQ")
"""Fields of its header: offset and length of the backing file's name, and the disk's size (docs/interop/qcow2.txt)."""


async def capture_template(vm: QemuRunningVm, vms: QemuRunningVms, tools: Toolchain, runner: CommandRunner) -> Path:
    """Save snapshot and disk of a VM in its draft folder, and return the folder.

    The VM runs on in every case. Raises `HypervisorError`.
    """
    draft = vm.directory / layout.DRAFT
    began_s = time.monotonic()
    try:
        await run_in_thread(partial(_make_draft, draft))
        spec, pause_s = await _save_paused(vm, draft, tools)
        _, disk_bytes = await run_in_thread(partial(read_disk_header, draft / layout.DISK))
        await runner.run(overlay_command(tools, draft / layout.OVERLAY, "qcow2", layout.BASE, size_bytes=disk_bytes))
        await split_memory(spec, draft, vms, tools)
    except (OSError, CommandError) as error:
        await abort_capture(vm)
        raise HypervisorError(f"no template can be made of {vm.name}: {error}") from error
    except BaseException:
        await abort_capture(vm)
        raise
    took_s = time.monotonic() - began_s
    log.info("template-captured", vm=vm.name, pause_s=round(pause_s, 3), duration_s=round(took_s, 3))
    return draft


async def abort_capture(vm: QemuRunningVm) -> None:
    """Let the VM of an unfinished template run on, then remove the draft.

    The draft stays if QEMU does not answer: it marks the VM as possibly paused, and the next `inventory` tries again.
    """
    try:
        async with monitor(vm.name, vm.directory / layout.MONITOR_SOCKET, timeout_s=CONTINUE_S) as qmp:
            await qmp.cancel_migration()
            await qmp.continue_vm()
    except MonitorError as error:
        log.warning("vm-left-paused", vm=vm.name, error=str(error))
        vm.may_be_paused = True
        return
    await run_in_thread(partial(remove_draft, vm.directory))
    vm.may_be_paused = False


def remove_draft(directory: Path) -> None:
    """Remove a VM's draft, if there is one. Blocks. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory / layout.DRAFT)


def read_disk_header(disk: Path) -> tuple[str, int]:
    """Return the name of a qcow2 disk's backing file, and the disk's size in bytes. Blocks. Raises `OSError`."""
    with disk.open("rb") as file:
        offset, length, size_bytes = _QCOW2.unpack(file.read(_QCOW2.size))
        file.seek(offset)
        return file.read(length).decode(), size_bytes


async def _save_paused(vm: QemuRunningVm, draft: Path, tools: Toolchain) -> tuple[VmSpec, float]:
    """Save snapshot and disk while the VM is paused. Returns its spec without ports, and the pause in seconds."""
    async with monitor(vm.name, vm.directory / layout.MONITOR_SOCKET, timeout_s=SAVE_S) as qmp:
        await _check_version(vm, qmp, tools.version)
        spec = VmSpec(vm.name, await _query_size(qmp), ())
        paused_s = time.monotonic()
        await qmp.run("stop")
        await qmp.migrate_out(draft / layout.SNAPSHOT)
        await run_in_thread(partial(_copy_disk, vm.directory, draft))
        await qmp.continue_vm()
        return spec, time.monotonic() - paused_s


async def _query_size(qmp: Monitor) -> VmSize:
    """Return the size of a VM: a snapshot can only be loaded into a VM of the same size."""
    memory = (await qmp.run("query-memory-size-summary"))["base-memory"]
    return VmSize(cpus=len(await qmp.run("query-cpus-fast")), memory_mib=memory >> 20)


async def _check_version(vm: QemuRunningVm, qmp: Monitor, version: str) -> None:
    """Raise `HypervisorError` if the VM runs in another QEMU: VMs outlive the agent, and QEMU may be upgraded."""
    reported = (await qmp.run("query-version"))["qemu"]
    running = f"{reported['major']}.{reported['minor']}.{reported['micro']}"
    if running != version:
        raise HypervisorError(f"{vm.name} runs in QEMU {running}, but new VMs would run in {version}")


def _make_draft(draft: Path) -> None:
    remove_draft(draft.parent)
    draft.mkdir(mode=0o700)


def _copy_disk(directory: Path, draft: Path) -> None:
    for name in (layout.DISK, layout.NVRAM):
        if (directory / name).exists():
            shutil.copyfile(directory / name, draft / name)
