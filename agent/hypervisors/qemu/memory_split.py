"""Splits a snapshot into main memory and the rest, so that VMs start from it without reading the whole memory.

QEMU saves one stream that contains the main memory. A helper QEMU, which never runs the guest, loads that stream with
its main memory in a file, then saves a new stream without it. Every VM started from the template maps the file: QEMU
reads a page when the guest touches it, and the VMs share the pages that none of them writes.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.cmdline import Ram
from agent.hypervisors.qemu.monitor import monitor
from agent.hypervisors.qemu.sockets import connect
from agent.hypervisors.qemu.startup import SOCKETS, start_process
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from agent.hypervisors.contract import VmSpec
    from agent.hypervisors.qemu.running import QemuRunningVms
    from agent.hypervisors.qemu.toolchain import Toolchain

SPLIT_S: Final = 300.0
_WITHOUT_RAM: Final = f"{layout.SNAPSHOT}{layout.PARTIAL}"
_HELPER_FILES: Final = (*SOCKETS, layout.PID_FILE, layout.LOG, layout.CONSOLE)


async def split_memory(spec: VmSpec, draft: Path, vms: QemuRunningVms, tools: Toolchain) -> None:
    """Move the main memory from the snapshot in `draft` to a file of its own there.

    `spec` is that of the VM the snapshot was saved from. Raises `HypervisorError`, `OSError`.
    """
    start = partial(start_process, tools, spec, draft, incoming=True, ram=Ram.WRITTEN)
    async with (
        vms.template_helper(spec.name, start),
        monitor(f"the template of {spec.name}", draft / layout.MONITOR_SOCKET, timeout_s=SPLIT_S) as qmp,
    ):
        # A client stays connected to the agent's port, as when the snapshot was saved. Otherwise the guest is notified
        # after a resume that the port was closed, and its agent polls a closed port less often.
        with connect(draft / layout.AGENT_SOCKET):
            await qmp.migrate_in(draft / layout.SNAPSHOT)
            await qmp.migrate_out(draft / _WITHOUT_RAM, without_ram=True)
        await qmp.quit()
    await run_in_thread(partial(_replace_snapshot, draft))


def _replace_snapshot(draft: Path) -> None:
    os.replace(draft / _WITHOUT_RAM, draft / layout.SNAPSHOT)
    for name in _HELPER_FILES:
        (draft / name).unlink(missing_ok=True)
