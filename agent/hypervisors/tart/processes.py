"""Which VMs run: who holds the lock on a VM's configuration, and which process is a `tart run` of this home.

Tart itself trusts the lock alone. The lock is lost when the file is replaced while the VM runs (tart issue 967), so the
driver also reads the process table. Neither source can be out of date.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from agent.hypervisors.running import VmProcess
from agent.hypervisors.tart.layout import CONFIG
from agent.processes.posix_locks import lock_holder
from agent.processes.process import identify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.hypervisors.tart.layout import TartLayout
    from agent.processes.process import ProcessIdentity

FRAMEWORK_PROCESS: Final = "com.apple.Virtualization.VirtualMachine"
"""The process in which Apple's framework runs a VM."""
_DELETED: Final = " (deleted)"
_PROGRAM_POSITIONS: Final = 4
"""How many leading arguments may be an interpreter and its options, before `tart` itself."""


def find_vm_processes(where: TartLayout, program: str) -> tuple[VmProcess, ...]:
    """Return the processes of all running VMs of a home. Blocks: call it in a thread. Raises `OSError`."""
    found = {vm.name: vm for vm in (*_tart_runs(where, program), *_lock_holders(where, program))}
    return tuple(found.values())


def _lock_holders(where: TartLayout, program: str) -> list[VmProcess]:
    found = []
    for name in where.names():
        holder = lock_holder(where.vm(name) / CONFIG)
        identity = None if holder is None else identify(holder)
        if identity is not None and (not where.is_ours(name) or _run_by(holder, program) == name):
            found.append(VmProcess(name, identity))
    return found


def _tart_runs(where: TartLayout, program: str) -> list[VmProcess]:
    """Return the `tart run` processes of this agent's VMs, whether they hold a lock or not."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        name = vm_run_by(process.info["cmdline"] or (), program)
        if name is None or not where.is_ours(name) or not _belongs_to(process, where):
            continue
        # Read the arguments again once the identity is known: the kernel may have reused the pid in between.
        identity = identify(process.pid)
        if identity is not None and _run_by(process.pid, program) == name:
            found.append(VmProcess(name, identity))
    return found


def vm_run_by(argv: Sequence[str], program: str) -> str | None:
    """Return the VM that a `tart run` with these arguments runs, None if they are of another command."""
    name = Path(program).name
    for number, argument in enumerate(argv[:_PROGRAM_POSITIONS]):
        if Path(argument).name == name and argv[number + 1 : number + 2] == ["run"]:
            return argv[-1]
    return None


def is_suspendable(process: ProcessIdentity) -> bool:
    """Whether a running VM was started so that it survives a suspend."""
    return "--suspendable" in arguments(process.pid)


def list_framework_pids() -> tuple[int, ...]:
    """Return the processes in which Apple's framework runs VMs, of all users. Blocks."""
    return tuple(
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or ("",))[0].endswith(FRAMEWORK_PROCESS)
    )


def arguments(pid: int) -> list[str]:
    """Return the arguments of a process, empty if it has ended."""
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def _run_by(pid: int | None, program: str) -> str | None:
    return None if pid is None else vm_run_by(arguments(pid), program)


def _belongs_to(process: psutil.Process, where: TartLayout) -> bool:
    """Whether a process belongs to this home: by its working directory, that of its VM, or by its environment."""
    with contextlib.suppress(psutil.Error, OSError):
        if Path(process.cwd().removesuffix(_DELETED)).parent == where.vms:
            return True
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get("TART_HOME") == str(where.home)
    return False
