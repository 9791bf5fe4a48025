"""Parting a saved memory, so that the VMs that start from it need not read it.

What QEMU saves is one stream in which main memory lies between the rest. A QEMU that never runs a guest loads it with
its main memory in a file, and saves it anew without: the file is then mapped by every twin, which reads a page of it
when it touches it and shares with the others what nobody writes.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.cmdline import Ram
from agent.hypervisors.qemu.launch import SOCKETS, spawn
from agent.hypervisors.qemu.monitor import monitor
from agent.hypervisors.qemu.sockets import connect
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.qemu.fleet import Fleet
    from agent.hypervisors.qemu.toolchain import Toolchain

PART_S: Final = 300.0
_REST: Final = f"{layout.MEMORY}{layout.PARTIAL}"
_LEFT_BEHIND: Final = (*SOCKETS, layout.PID_FILE, layout.LOG, layout.CONSOLE)


async def part_memory(spec: VmSpec, draft: Path, fleet: Fleet, tools: Toolchain) -> None:
    """Take main memory out of the saved memory in `draft` and put it into a file beside it.

    `spec` is that of the VM it was saved from. Raises `HypervisorError`, `OSError`.
    """
    start = partial(spawn, tools, spec, draft, incoming=True, ram=Ram.WRITTEN)
    async with (
        fleet.helper(spec.name, start),
        monitor(f"the template of {spec.name}", draft / layout.MONITOR, timeout_s=PART_S) as qmp,
    ):
        # Nobody is to tell the guest that its agent's line was dropped meanwhile: it would look at it less often.
        with connect(draft / layout.AGENT):
            await qmp.migrate_in(draft / layout.MEMORY)
            await qmp.migrate_out(draft / _REST, ram_apart=True)
        await qmp.quit()
    await run_in_thread(partial(_tidy, draft))


def _tidy(draft: Path) -> None:
    os.replace(draft / _REST, draft / layout.MEMORY)
    for name in _LEFT_BEHIND:
        (draft / name).unlink(missing_ok=True)
