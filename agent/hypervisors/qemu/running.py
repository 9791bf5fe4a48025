"""The running VMs of the qemu driver, and the helper processes that work on templates."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from agent.hypervisors.contract import HypervisorError, VmExit
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.guest_agent import GuestAgent
from agent.hypervisors.qemu.processes import find_vm_processes
from agent.hypervisors.running import RunningVm, RunningVms, wait_until_killed
from agent.processes.bounded_output import last_lines
from agent.processes.process import kill
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent.hypervisors.qemu.layout import QemuLayout
    from agent.hypervisors.running import VmProcess
    from agent.processes.process import ProcessIdentity


@dataclass(slots=True)
class QemuRunningVm(RunningVm):
    """A running VM and the connection to its guest agent."""

    process: ProcessIdentity
    directory: Path
    agent: GuestAgent
    ports: dict[int, int] | None = None  # host port by guest port, once queried
    is_identity_pending: bool = False  # started from a template; its guest still has the template's identity
    is_hook_waiting: bool = False  # a program in its guest waits for the request to reinitialise
    may_be_paused: bool = False  # saving a template of it was interrupted


class QemuRunningVms(RunningVms[QemuRunningVm]):
    """All running VMs of one folder."""

    def __init__(self, where: QemuLayout) -> None:
        super().__init__(prefix=where.prefix)
        self._where = where
        self._saving: set[str] = set()

    def paused(self) -> tuple[QemuRunningVm, ...]:
        """Return the VMs that an interrupted template may have left paused."""
        return tuple(vm for vm in self._running.values() if vm.may_be_paused)

    async def find(self, name: str) -> QemuRunningVm | None:
        """See `RunningVms`. Skips the survey for a VM whose exit was seen: only this agent would start it again."""
        if name in self._last_exits and name not in self._running:
            return None
        return await super().find(name)

    async def survey(self) -> tuple[VmProcess, ...]:
        """See `RunningVms`. Reads the process table, and kills the template helpers that an earlier agent left."""
        try:
            found = await asyncio.to_thread(find_vm_processes, self._where.root)
        except (OSError, psutil.Error) as error:
            raise HypervisorError(f"the processes of this host cannot be listed: {error}") from error
        for helper in found:
            if helper.is_template_helper and helper.name not in self._saving:
                kill(helper.process, signal.SIGKILL)
        running = tuple(vm for vm in found if not vm.is_template_helper)
        self._adopt(running)
        return running

    @contextlib.asynccontextmanager
    async def template_helper(self, name: str, spawn: Callable[[], ProcessIdentity]) -> AsyncIterator[None]:
        """Run a process that works on a template of a VM while the block runs; kill it at the end of the block.

        Raises `HypervisorError` if the process does not end.
        """
        exited = asyncio.Event()
        self._saving.add(name)
        try:
            process = await run_in_thread(spawn, if_cancelled=lambda process: kill(process, signal.SIGKILL))
            self._watcher.watch(process, lambda _code: exited.set())
            try:
                yield
            finally:
                kill(process, signal.SIGKILL)
                await wait_until_killed(exited, f"process {process.pid}, which worked on a template of {name},")
        finally:
            self._saving.discard(name)

    async def _exists(self, name: str) -> bool:
        return name in await asyncio.to_thread(self._where.names)

    def _new_vm(self, name: str, process: ProcessIdentity | None) -> QemuRunningVm:
        assert process is not None
        directory = self._where.vm(name)
        return QemuRunningVm(
            name,
            process,
            directory,
            GuestAgent(name, directory / layout.AGENT_SOCKET),
            is_identity_pending=(directory / layout.IDENTITY_PENDING).exists(),
            may_be_paused=(directory / layout.DRAFT).exists(),
        )

    def _exit_of(self, vm: QemuRunningVm, code: int | None) -> VmExit:
        try:
            detail = last_lines(vm.directory / layout.LOG, without=": warning: ")  # such as of a network without a user
        except OSError:
            detail = ""  # the VM's files were removed
        return VmExit(vm.name, code, detail)

    def _release(self, vm: QemuRunningVm) -> None:
        vm.agent.close()
