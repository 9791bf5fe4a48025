"""Which QEMU processes are our VMs: the process table itself is asked, so no record of pids can be stale or lost.

Even an agent killed between starting a VM and writing anything down leaves a process that names its VM.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from agent.hypervisors.qemu.layout import DRAFT, PID_FILE
from agent.processes.process import ProcessIdentity, identify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class VmProcess:
    """A QEMU process and the VM it runs, or works on a template of."""

    name: str
    process: ProcessIdentity
    drafting: bool = False


def running_vms(root: Path) -> tuple[VmProcess, ...]:
    """Return the processes of all VMs that lie, or lay, directly in `root`. Blocks: call it in a thread."""
    return tuple(_running_vms(root))


def _running_vms(root: Path) -> Iterator[VmProcess]:
    for process in psutil.process_iter(["cmdline"]):
        folder = folder_of(process.info["cmdline"] or (), root)
        if folder is None:
            continue
        # Looked at again once its identity is known: the pid may have been handed on in between.
        identity = identify(process.pid)
        if identity is not None and folder_of(_argv(process.pid), root) == folder:
            name, *below = folder.parts
            yield VmProcess(name, identity, drafting=bool(below))


def folder_of(argv: Sequence[str], root: Path) -> Path | None:
    """Return where in `root` a process with these arguments works: in a VM's folder, or in that of its draft.

    None when it is no QEMU that does either.
    """
    if not argv or "qemu-system-" not in Path(argv[0]).name or "-pidfile" not in argv[:-1]:
        return None
    pid_file = Path(argv[argv.index("-pidfile") + 1])
    if pid_file.name != PID_FILE or not pid_file.is_relative_to(root):
        return None
    folder = pid_file.parent.relative_to(root)
    return folder if folder.parts[1:] in ((), (DRAFT,)) and folder.parts else None


def _argv(pid: int) -> Sequence[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ()
