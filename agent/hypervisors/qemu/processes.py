"""Which QEMU processes are our VMs: the process table itself is asked, so no record of pids can be stale or lost.

Even an agent killed between starting a VM and writing anything down leaves a process that names its VM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from agent.hypervisors.qemu.layout import PID_FILE
from agent.processes.process import ProcessIdentity, identify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class VmProcess:
    """A QEMU process and the VM it runs."""

    name: str
    process: ProcessIdentity


def running_vms(root: Path) -> tuple[VmProcess, ...]:
    """Return the processes of all VMs that lie, or lay, directly in `root`. Blocks: call it in a thread."""
    return tuple(_running_vms(root))


def _running_vms(root: Path) -> Iterator[VmProcess]:
    for process in psutil.process_iter(["cmdline"]):
        name = vm_of(process.info["cmdline"] or (), root)
        if name is None:
            continue
        # Looked at again once its identity is known: the pid may have been handed on in between.
        identity = identify(process.pid)
        if identity is not None and vm_of(_argv(process.pid), root) == name:
            yield VmProcess(name, identity)


def vm_of(argv: Sequence[str], root: Path) -> str | None:
    """Return the name of the VM that a process with these arguments runs, or None when it is no QEMU in `root`."""
    if not argv or "qemu-system-" not in Path(argv[0]).name or "-pidfile" not in argv[:-1]:
        return None
    pid_file = Path(argv[argv.index("-pidfile") + 1])
    return pid_file.parent.name if pid_file.name == PID_FILE and pid_file.parent.parent == root else None


def _argv(pid: int) -> Sequence[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ()
