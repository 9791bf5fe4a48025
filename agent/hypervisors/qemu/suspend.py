"""Saving a VM's memory to a file and starting it from there: QEMU's migration, to itself."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Final

from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.cmdline import Ram
from agent.hypervisors.qemu.monitor import MonitorError, monitor

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.qemu.fleet import RunningVm
    from agent.hypervisors.qemu.monitor import Monitor

SAVE_S: Final = 300.0
LOAD_S: Final = 300.0
_UNFINISHED: Final = f"{layout.MEMORY}{layout.PARTIAL}"


async def save_memory(vm: RunningVm) -> None:
    """Stop a VM, save its memory and ask its process to end.

    Raises `HypervisorError`; the VM then runs on if QEMU still listens, and may be left stopped if it does not.
    """
    async with monitor(vm.name, vm.directory / layout.MONITOR, timeout_s=SAVE_S) as qmp:
        await qmp.ask("stop")
        try:
            await qmp.migrate_out(vm.directory / _UNFINISHED)
        except MonitorError:
            await qmp.go_on()
            raise
        await qmp.quit()


def keep_memory(directory: Path) -> None:
    """Make a saved memory and its disk last, then valid. Blocks for the write: call it in a thread. Raises `OSError`.

    The guest's own flushes do not reach the platter (cmdline.py), and a memory is only good with the disk it knew.
    """
    for path in (directory / layout.DISK, directory / _UNFINISHED):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    os.rename(directory / _UNFINISHED, directory / layout.MEMORY)


def has_memory(directory: Path) -> bool:
    """Whether a VM is suspended: its memory is saved and whole."""
    return (directory / layout.MEMORY).exists()


def ram_of(directory: Path) -> Ram:
    """Return where the main memory of a VM that is suspended will be: a twin's is mapped. Blocks."""
    return Ram.MAPPED if (directory / layout.RAM).exists() else Ram.OWN


async def load_memory(qmp: Monitor, directory: Path, ram: Ram) -> None:
    """Fill a process that waits for it with the saved memory, and let it run. Raises `HypervisorError`, `OSError`.

    The memory is removed before the VM goes on: from then on its disk is another, and the two must never meet again.
    What is mapped stays so.
    """
    await qmp.migrate_in(directory / layout.MEMORY, ram_apart=ram is Ram.MAPPED)
    await asyncio.to_thread(partial(drop_memory, directory))
    await qmp.ask("cont")


def drop_memory(directory: Path) -> None:
    """Remove a saved memory, if there is one: its disk is about to change. Raises `OSError`."""
    for name in (layout.MEMORY, layout.RAM):
        (directory / name).unlink(missing_ok=True)
