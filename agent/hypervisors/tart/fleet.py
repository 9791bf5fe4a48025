"""The VMs of ours that run now: started and adopted ones alike, and whose end to tell of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil
import structlog

from agent.hypervisors.contract import HypervisorError, VmExit
from agent.hypervisors.tart.layout import LOG
from agent.hypervisors.tart.outcome import read_outcome
from agent.hypervisors.tart.processes import running_vms
from agent.processes.bounded_output import read_tail
from agent.processes.exit_watcher import create_exit_watcher
from agent.processes.process import is_alive
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.hypervisors.tart.layout import Layout
    from agent.hypervisors.tart.outcome import Outcome
    from agent.hypervisors.tart.processes import VmProcess
    from agent.processes.process import ProcessIdentity

log = structlog.get_logger()

_READ_BYTES: Final = 64 << 10


@dataclass(slots=True)
class RunningVm:
    """A VM with a process, and what is kept about it only while that runs."""

    name: str
    process: ProcessIdentity
    ip: str = ""  # once it is known
    up: bool = True  # its end is told to listeners; until then, whoever starts it learns of it
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Outcome | None = None

    async def exited_within(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.exited.wait()
        except TimeoutError:
            return False
        return True


class Fleet:
    """All running VMs of one Tart home."""

    def __init__(self, where: Layout, program: str) -> None:
        self._where = where
        self._program = program
        self._watcher = create_exit_watcher()
        self._running: dict[str, RunningVm] = {}
        self._starting: set[str] = set()
        self._listeners: list[Callable[[VmExit], None]] = []
        self._last: dict[str, VmExit] = {}

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor.on_exit`."""
        self._listeners.append(listener)

    def last_exit(self, name: str) -> VmExit | None:
        """Return how a VM's process ended, if it did in this life of the agent."""
        return self._last.get(name)

    def forget(self, name: str) -> None:
        """Drop what is remembered of a VM that is deleted."""
        self._last.pop(name, None)

    async def find(self, name: str) -> RunningVm | None:
        """Return a VM if it runs: as watched, else as the kernel says."""
        vm = self._running.get(name)
        if vm is not None and is_alive(vm.process):
            return vm
        await self.survey()
        return self._running.get(name)

    async def survey(self) -> tuple[VmProcess, ...]:
        """Look at all VMs there are, and watch those of ours that are not watched yet. Raises `HypervisorError`."""
        try:
            found = await asyncio.to_thread(running_vms, self._where, self._program)
        except (OSError, psutil.Error) as error:
            raise HypervisorError(f"the VMs of {self._where.home} cannot be looked at: {error}") from error
        for vm in found:
            known = vm.name in self._running or vm.name in self._starting
            if not known and self._where.ours(vm.name) and is_alive(vm.process):
                self._add(vm.name, vm.process)
                log.info("vm-process-adopted", vm=vm.name, pid=vm.process.pid)
        return found

    async def start(self, name: str, spawn: Callable[[], ProcessIdentity]) -> RunningVm:
        """Start a VM's process by calling `spawn` in a thread, and watch it. A cancel leaves it running and watched."""
        self._starting.add(name)
        try:
            process = await run_in_thread(spawn, if_cancelled=lambda process: self._add(name, process))
        finally:
            self._starting.discard(name)
        log.info("vm-process-started", vm=name, pid=process.pid)
        vm = self._add(name, process)
        vm.up = False
        return vm

    def came_up(self, vm: RunningVm) -> None:
        """Tell of a VM's end from now on; at once when it has ended meanwhile. For a VM that `start` returned."""
        vm.up = True
        if vm.exited.is_set():
            self._tell(self._last[vm.name])

    def close(self) -> None:
        """Stop watching. Every VM runs on."""
        self._watcher.close()
        self._running.clear()
        self._listeners.clear()

    def _add(self, name: str, process: ProcessIdentity) -> RunningVm:
        vm = RunningVm(name, process)
        self._running[name] = vm
        self._watcher.watch(process, lambda code: self._ended(vm, code))
        return vm

    def _ended(self, vm: RunningVm, code: int | None) -> None:
        if self._running.get(vm.name) is vm:
            del self._running[vm.name]
        vm.outcome = read_outcome(self._output(vm.name), code)
        told = VmExit(vm.name, vm.outcome.code, vm.outcome.words)
        self._last[vm.name] = told
        vm.exited.set()
        log.info("vm-process-ended", vm=vm.name, pid=vm.process.pid, code=code, detail=told.detail)
        if vm.up:
            self._tell(told)

    def _tell(self, told: VmExit) -> None:
        for listener in self._listeners:
            listener(told)

    def _output(self, name: str) -> str:
        try:
            return read_tail(self._where.record(name) / LOG, _READ_BYTES).decode(errors="replace")
        except OSError:
            return ""  # its files are gone too
