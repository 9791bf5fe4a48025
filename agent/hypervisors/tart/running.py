"""The running VMs of the tart driver, found by the kernel's locks and the process table."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

from agent.hypervisors.contract import HypervisorError, VmExit
from agent.hypervisors.running import RunningVm, RunningVms
from agent.hypervisors.tart.layout import LOG
from agent.hypervisors.tart.processes import find_vm_processes
from agent.hypervisors.tart.run_result import parse_run_result
from agent.processes.bounded_output import read_tail

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.hypervisors.running import VmProcess
    from agent.hypervisors.tart.layout import TartLayout
    from agent.hypervisors.tart.run_result import RunResult
    from agent.processes.process import ProcessIdentity

_READ_BYTES: Final = 64 << 10


@dataclass(slots=True)
class TartRunningVm(RunningVm):
    """A running VM. Its exit is reported to listeners only once `is_started`: until then `start` raises it."""

    process: ProcessIdentity
    ip: str = ""  # empty until it is known
    is_started: bool = True
    result: RunResult | None = None

    @property
    def last_output(self) -> str:
        """The last output of `tart run`, for messages."""
        return (self.result.message if self.result else "") or "no output"


class TartRunningVms(RunningVms[TartRunningVm]):
    """All running VMs of one Tart home that this agent made."""

    def __init__(self, where: TartLayout, program: str) -> None:
        super().__init__(prefix=where.prefix)
        self._where = where
        self._program = program

    async def survey(self) -> tuple[VmProcess, ...]:
        """See `RunningVms`. Returns the processes of all running VMs of this home, foreign ones included."""
        try:
            found = await asyncio.to_thread(find_vm_processes, self._where, self._program)
        except (OSError, psutil.Error) as error:
            raise HypervisorError(f"the running VMs of {self._where.home} cannot be listed: {error}") from error
        self._adopt(found)
        return found

    async def start(self, name: str, spawn: Callable[[], ProcessIdentity]) -> TartRunningVm:
        """See `RunningVms`. Listeners get the VM's exit only after `mark_started`."""
        vm = await super().start(name, spawn)
        vm.is_started = False
        return vm

    def mark_started(self, vm: TartRunningVm) -> None:
        """Report a VM's exit to listeners from now on; immediately if it has already exited."""
        vm.is_started = True
        if vm.exit is not None:
            self._notify(vm, vm.exit)

    async def _exists(self, name: str) -> bool:
        return await asyncio.to_thread(self._where.exists, name)

    def _new_vm(self, name: str, process: ProcessIdentity | None) -> TartRunningVm:
        assert process is not None
        return TartRunningVm(name, process)

    def _exit_of(self, vm: TartRunningVm, code: int | None) -> VmExit:
        try:
            output = read_tail(self._where.record(vm.name) / LOG, _READ_BYTES).decode(errors="replace")
        except OSError:
            output = ""  # the VM's files were removed
        vm.result = parse_run_result(output, code)
        return VmExit(vm.name, vm.result.code, vm.result.message)

    def _notify(self, vm: TartRunningVm, ended: VmExit) -> None:
        if vm.is_started:
            super()._notify(vm, ended)
