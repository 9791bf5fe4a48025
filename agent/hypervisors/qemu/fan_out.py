"""Making a template of a running VM: it is paused, its memory saved, its disk copied, and it runs on.

While it is made, its files lie in the VM's own folder (`layout.DRAFT`). That folder is also the sign by which a later
agent knows that this VM may be paused, if this one is killed half-way.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.monitor import MonitorError, monitor
from agent.hypervisors.qemu.suspend import SAVE_S
from agent.processes.threads import finish_in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.qemu.fleet import RunningVm
    from agent.hypervisors.qemu.monitor import Monitor

log = structlog.get_logger()

WAKE_S: Final = 10.0
_QCOW2_BACKING: Final = struct.Struct(
    ">8xQI"
)  # offset and length of the name of the file below (docs/interop/qcow2.txt)


async def draft_template(vm: RunningVm, *, version: str) -> Path:
    """Save memory and disk of a VM of this QEMU version in its draft folder, which is returned.

    The VM runs on, whatever happens. Raises `HypervisorError`.
    """
    draft = vm.directory / layout.DRAFT
    began_s = time.monotonic()
    try:
        await finish_in_thread(partial(_begin, draft))
        async with monitor(vm.name, vm.directory / layout.MONITOR, timeout_s=SAVE_S) as qmp:
            await _check_version(vm, qmp, version)
            await qmp.ask("stop")
            await qmp.migrate_out(draft / layout.MEMORY)
            await finish_in_thread(partial(_copy_disk, vm.directory, draft))
            await qmp.go_on()
    except OSError as error:
        await abandon_draft(vm)
        raise HypervisorError(f"no template can be made of {vm.name}: {error}") from error
    except BaseException:
        await abandon_draft(vm)
        raise
    log.info("template-drafted", vm=vm.name, pause_s=round(time.monotonic() - began_s, 3))
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
    await finish_in_thread(partial(discard_draft, vm.directory))
    vm.paused = False


def discard_draft(directory: Path) -> None:
    """Remove what there is of a draft. Blocks. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory / layout.DRAFT)


def backing_file(disk: Path) -> str:
    """Return the name of the file that a qcow2 disk lies on. Blocks. Raises `OSError`."""
    with disk.open("rb") as file:
        offset, length = _QCOW2_BACKING.unpack(file.read(_QCOW2_BACKING.size))
        file.seek(offset)
        return file.read(length).decode()


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
