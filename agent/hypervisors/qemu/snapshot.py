"""The snapshot of a VM: saves its state to a file and loads it from there, by a QEMU migration on one host."""

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

    from agent.hypervisors.qemu.monitor import Monitor
    from agent.hypervisors.qemu.running import QemuRunningVm

SAVE_S: Final = 300.0
LOAD_S: Final = 300.0
_UNFINISHED: Final = f"{layout.SNAPSHOT}{layout.PARTIAL}"


async def save_snapshot(vm: QemuRunningVm) -> None:
    """Stop a VM, save its snapshot and request the end of its process.

    Raises `HypervisorError`. The VM then runs on if QEMU still answers; it may stay stopped if QEMU does not.
    """
    async with monitor(vm.name, vm.directory / layout.MONITOR_SOCKET, timeout_s=SAVE_S) as qmp:
        await qmp.run("stop")
        try:
            await qmp.migrate_out(vm.directory / _UNFINISHED)
        except MonitorError:
            await qmp.continue_vm()
            raise
        await qmp.quit()


def publish_snapshot(directory: Path) -> None:
    """Write a saved snapshot and its disk through to the storage, then make it valid.

    Blocks for the write: call it in a thread. Raises `OSError`. The guest's own flushes do not reach the storage
    (cmdline.py), and a snapshot is only valid with the disk of the same moment.
    """
    for path in (directory / layout.DISK, directory / _UNFINISHED):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    os.rename(directory / _UNFINISHED, directory / layout.SNAPSHOT)


def has_snapshot(directory: Path) -> bool:
    """Whether a VM is suspended: it has a complete snapshot."""
    return (directory / layout.SNAPSHOT).exists()


def ram_of(directory: Path) -> Ram:
    """Return where the main memory of a suspended VM is: one cloned from a template maps a file. Blocks."""
    return Ram.MAPPED if (directory / layout.RAM).exists() else Ram.OWN


async def load_snapshot(qmp: Monitor, directory: Path, ram: Ram) -> None:
    """Load the snapshot into a waiting QEMU process, and let the VM run. Raises `HypervisorError`, `OSError`.

    Removes the snapshot before the VM runs: from then on the disk changes, and an old snapshot would corrupt it. A
    mapped main memory stays mapped.
    """
    await qmp.migrate_in(directory / layout.SNAPSHOT, without_ram=ram is Ram.MAPPED)
    await asyncio.to_thread(partial(remove_snapshot, directory))
    await qmp.run("cont")


def remove_snapshot(directory: Path) -> None:
    """Remove the snapshot, if there is one, because the disk is about to change. Raises `OSError`."""
    for name in (layout.SNAPSHOT, layout.RAM):
        (directory / name).unlink(missing_ok=True)
