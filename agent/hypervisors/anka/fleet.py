"""The VMs of ours that run: their hypervisor processes, and whose end to tell of.

`anka show` of some releases tells the process of a VM (A6). It is no child of the agent, so its exit code is nobody's
to know, but its end is an event. Where no process is told, listings tell of the end, asked for at a slow period.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import structlog

from agent.hypervisors.contract import VmExit
from agent.processes.exit_watcher import create_exit_watcher
from agent.processes.process import is_alive, kill

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.processes.process import ProcessIdentity

log = structlog.get_logger()


@dataclass(slots=True)
class RunningVm:
    """A VM that runs. `process` is None where Anka does not tell it."""

    name: str
    process: ProcessIdentity | None
    ports: dict[int, int] | None = None  # host port by guest port, once asked
    host: str = "127.0.0.1"
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    async def exited_within(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.exited.wait()
        except TimeoutError:
            return False
        return True

    def kill(self) -> None:
        """Kill the hypervisor process, having made sure that it is one: its pid is only what `anka show` told.

        Blocks shortly.
        """
        if self.process is None:
            return
        try:
            command = psutil.Process(self.process.pid).cmdline()
        except psutil.Error:
            return
        if any("anka" in os.path.basename(argument) for argument in command):
            kill(self.process, signal.SIGKILL)


class Fleet:
    """All running VMs of ours."""

    def __init__(self) -> None:
        self._watcher = create_exit_watcher()
        self._running: dict[str, RunningVm] = {}
        self._listeners: list[Callable[[VmExit], None]] = []
        self.last_exits: dict[str, VmExit] = {}

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor.on_exit`."""
        self._listeners.append(listener)

    def get(self, name: str) -> RunningVm | None:
        """Return a VM that is known to run."""
        return self._running.get(name)

    @property
    def names(self) -> frozenset[str]:
        """The VMs that are known to run."""
        return frozenset(self._running)

    @property
    def unwatched(self) -> bool:
        """Whether the end of some VM is told by listings only."""
        return any(vm.process is None for vm in self._running.values())

    def add(self, name: str, process: ProcessIdentity | None) -> RunningVm:
        """Take note of a VM that runs, and watch it."""
        vm = self._running.get(name)
        if vm is None or (vm.process != process and process is not None):
            vm = self._running[name] = RunningVm(name, process)
            if process is not None:
                self._watcher.watch(process, lambda code: self._end(vm, code))
        return vm

    def note_stopped(self, name: str) -> None:
        """Take note that a listing tells a VM not to run (any more)."""
        vm = self._running.get(name)
        if vm is not None and (vm.process is None or not is_alive(vm.process)):
            self._end(vm, None)

    def close(self) -> None:
        """Stop watching. Every VM runs on."""
        self._watcher.close()
        self._running.clear()
        self._listeners.clear()

    def _end(self, vm: RunningVm, code: int | None) -> None:
        if vm.exited.is_set():
            return
        if self._running.get(vm.name) is vm:
            del self._running[vm.name]
        vm.exited.set()
        told = self.last_exits[vm.name] = VmExit(vm.name, code)
        log.info("vm-process-ended", vm=vm.name, pid=vm.process.pid if vm.process else None, code=code, detail="")
        for listener in self._listeners:
            listener(told)
