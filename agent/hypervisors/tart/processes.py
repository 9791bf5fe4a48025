"""Which VMs run, asked of the kernel: who holds the lock on a VM's configuration, and which process works for it.

Tart itself goes by the lock alone. It lies when that file was replaced while the VM ran (tart issue 967), so the
process table is asked too: what `tart run` of ours there is. Nothing is written down, so nothing can be stale.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from agent.hypervisors.tart.layout import CONFIG
from agent.processes.posix_locks import lock_holder
from agent.processes.process import ProcessIdentity, identify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.hypervisors.tart.layout import Layout

HELPER: Final = "com.apple.Virtualization.VirtualMachine"
"""The process of the framework's that is a VM, as the kernel sees it."""
_GONE: Final = " (deleted)"
_ROOM_FOR_INTERPRETER: Final = 4


@dataclass(frozen=True, slots=True)
class VmProcess:
    """A `tart run` and the VM it runs."""

    name: str
    process: ProcessIdentity


def running_vms(where: Layout, program: str) -> tuple[VmProcess, ...]:
    """Return the processes of all VMs that run in a home. Blocks: call it in a thread. Raises `OSError`."""
    found: dict[str, VmProcess] = {}
    for name in where.names():
        holder = lock_holder(where.vm(name) / CONFIG)
        identity = None if holder is None else identify(holder)
        if identity is not None and (not where.ours(name) or _runs(holder, program) == name):
            found[name] = VmProcess(name, identity)
    for process in psutil.process_iter(["cmdline"]):
        ran = vm_of(process.info["cmdline"] or (), program)
        if ran is None or ran in found or not where.ours(ran) or not _works_in(process, where):
            continue
        # Looked at again once its identity is known: the pid may have been handed on in between.
        identity = identify(process.pid)
        if identity is not None and _runs(process.pid, program) == ran:
            found[ran] = VmProcess(ran, identity)
    return tuple(found.values())


def vm_of(argv: Sequence[str], program: str) -> str | None:
    """Return the VM that a process with these arguments runs as this driver starts them, None when it runs none."""
    name = Path(program).name
    for number, argument in enumerate(argv[:_ROOM_FOR_INTERPRETER]):
        if Path(argument).name == name and argv[number + 1 : number + 2] == ["run"]:
            return argv[-1]
    return None


def is_suspendable(process: ProcessIdentity) -> bool:
    """Whether a running VM was started so that it survives being suspended."""
    return "--suspendable" in arguments(process.pid)


def helpers() -> tuple[int, ...]:
    """Return the processes that are VMs to the kernel, whoever started them. Blocks."""
    return tuple(
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or ("",))[0].endswith(HELPER)
    )


def arguments(pid: int) -> list[str]:
    """Return the arguments of a process, none when it is gone."""
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _runs(pid: int | None, program: str) -> str | None:
    return None if pid is None else vm_of(arguments(pid), program)


def _works_in(process: psutil.Process, where: Layout) -> bool:
    """Whether a process belongs to this home: `tart run` works in its VM's directory, and was told its home."""
    with contextlib.suppress(psutil.Error, OSError):
        if Path(process.cwd().removesuffix(_GONE)).parent == where.vms:
            return True
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get("TART_HOME") == str(where.home)
    return False
