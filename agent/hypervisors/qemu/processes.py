"""Which QEMU processes run VMs of this agent, read from the process table: a record of pids could be stale or lost.

A process names its VM on its command line, even if the agent was killed before it wrote anything down. Only processes
of this user count: another user could name our files in the arguments of any process. If the data directory was moved,
the command line has the old path, but the process still has files of the new one open.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from agent.hypervisors.qemu.layout import DRAFT, PID_FILE
from agent.hypervisors.running import VmProcess
from agent.processes.process import identify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class QemuProcess(VmProcess):
    """A QEMU process, and the VM it runs or works on a template of."""

    is_template_helper: bool = False


def find_vm_processes(root: Path) -> tuple[QemuProcess, ...]:
    """Return the processes of all VMs directly in `root`, also of deleted ones. Blocks: call it in a thread."""
    return tuple(_find_vm_processes(root))


def _find_vm_processes(root: Path) -> Iterator[QemuProcess]:
    for process in psutil.process_iter(["cmdline"]):
        argv = process.info["cmdline"] or ()
        if _pid_file(argv) is None or not _is_own(process):
            continue
        folder = working_folder(argv, root) or _moved_folder(process, argv, root)
        if folder is None:
            continue
        # Read the arguments again once the identity is known: the kernel may have reused the pid in between.
        identity = identify(process.pid)
        if identity is not None and _argv(process.pid) == argv:
            name, *below = folder.parts
            yield QemuProcess(name, identity, is_template_helper=bool(below))


def working_folder(argv: Sequence[str], root: Path) -> Path | None:
    """Return the folder below `root` in which a process with these arguments works: a VM's, or that of its draft.

    None if the process is not a QEMU of this driver.
    """
    pid_file = _pid_file(argv)
    if pid_file is None or not pid_file.is_relative_to(root):
        return None
    folder = pid_file.parent.relative_to(root)
    return folder if folder.parts[1:] in ((), (DRAFT,)) and folder.parts else None


def _pid_file(argv: Sequence[str]) -> Path | None:
    """Return the pid file of a QEMU of this driver, None for other processes."""
    if not argv or "qemu-system-" not in Path(argv[0]).name or "-pidfile" not in argv[:-1]:
        return None
    pid_file = Path(argv[argv.index("-pidfile") + 1])
    return pid_file if pid_file.name == PID_FILE else None


def _moved_folder(process: psutil.Process, argv: Sequence[str], root: Path) -> Path | None:
    """Return the folder of a VM that was moved to `root` while it ran, with its data directory."""
    pid_file = _pid_file(argv)
    name = pid_file.parent.name if pid_file else ""
    if not name or not (root / name).is_dir():
        return None
    with suppress(psutil.Error, OSError):
        if any(Path(file.path).is_relative_to(root / name) for file in process.open_files()):
            return Path(name)
    return None


def _is_own(process: psutil.Process) -> bool:
    with suppress(psutil.Error, OSError):
        return process.uids().real == os.getuid()
    return False


def _argv(pid: int) -> Sequence[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ()
