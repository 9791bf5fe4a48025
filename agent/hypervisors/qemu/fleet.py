"""The VMs that run now: which there are, and whose end to tell of. Started and adopted ones are the same here."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil
import structlog

from agent.hypervisors.contract import HypervisorError, VmExit
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.guest_agent import GuestAgent
from agent.hypervisors.qemu.processes import running_vms
from agent.processes.bounded_output import last_lines
from agent.processes.exit_watcher import create_exit_watcher
from agent.processes.process import is_alive, kill
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent.hypervisors.qemu.layout import Layout
    from agent.hypervisors.qemu.processes import VmProcess
    from agent.processes.process import ProcessIdentity

log = structlog.get_logger()

END_S: Final = 15.0
"""How long a killed QEMU may take to vanish: it has the guest's memory to give back."""


@dataclass(slots=True)
class RunningVm:
    """A VM with a process, and what is kept about it only while that runs."""

    name: str
    process: ProcessIdentity
    directory: Path
    agent: GuestAgent
    ports: dict[int, int] | None = None  # host port by guest port, once asked
    twin: bool = False  # it has not become itself yet
    waiting: bool = False  # a program in its guest waits to be told who it is
    paused: bool = False  # it may be: making a template of it was interrupted
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    exit: VmExit | None = None


class Fleet:
    """All running VMs of one folder."""

    def __init__(self, where: Layout) -> None:
        self._where = where
        self._watcher = create_exit_watcher()
        self._running: dict[str, RunningVm] = {}
        self._starting: set[str] = set()
        self._drafting: set[str] = set()
        self._listeners: list[Callable[[VmExit], None]] = []
        self._last_exits: dict[str, VmExit] = {}

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor.on_exit`."""
        self._listeners.append(listener)

    def last_exit(self, name: str) -> VmExit | None:
        """Return how a VM's process ended, if it did in this life of the agent."""
        return self._last_exits.get(name)

    def forget(self, name: str) -> None:
        """Drop what is remembered of a VM that is deleted."""
        self._last_exits.pop(name, None)

    def paused(self) -> tuple[RunningVm, ...]:
        """Return the VMs that may have been left paused."""
        return tuple(vm for vm in self._running.values() if vm.paused)

    async def find(self, name: str) -> RunningVm | None:
        """Return a VM if it runs: as watched, else as the process table says.

        The table is not asked of a VM whose process was seen to end: only we would have started another.
        """
        if name not in self._running and name not in self._last_exits:
            await self.survey()
        return self._running.get(name)

    async def survey(self) -> tuple[VmProcess, ...]:
        """Look into the process table, and adopt each VM of ours not yet watched. Raises `HypervisorError`.

        What an earlier life of the agent left at work on a template is ended.
        """
        try:
            found = await asyncio.to_thread(running_vms, self._where.root)
        except (OSError, psutil.Error) as error:
            raise HypervisorError(f"the processes of this host cannot be listed: {error}") from error
        for helper in found:
            if helper.drafting and helper.name not in self._drafting:
                kill(helper.process, signal.SIGKILL)
        running = tuple(vm for vm in found if not vm.drafting)
        for vm in running:
            known = vm.name in self._running or vm.name in self._starting
            if not known and self._where.ours(vm.name) and is_alive(vm.process):
                self._add(vm.name, vm.process)
                log.info("vm-process-adopted", vm=vm.name, pid=vm.process.pid)
        return running

    async def start(self, name: str, spawn: Callable[[], ProcessIdentity]) -> RunningVm:
        """Start a VM's process by calling `spawn` in a thread, and watch it. A cancel leaves it running and watched."""
        self._starting.add(name)
        try:
            process = await run_in_thread(spawn, if_cancelled=lambda process: self._add(name, process))
        finally:
            self._starting.discard(name)
        log.info("vm-process-started", vm=name, pid=process.pid)
        return self._add(name, process)

    @contextlib.asynccontextmanager
    async def helper(self, name: str, spawn: Callable[[], ProcessIdentity]) -> AsyncIterator[None]:
        """Run a process that works on a template of a VM while the block runs; it ends with it at the latest.

        Raises `HypervisorError` when it does not.
        """
        ended = asyncio.Event()
        self._drafting.add(name)
        try:
            process = await run_in_thread(spawn, if_cancelled=lambda process: kill(process, signal.SIGKILL))
            self._watcher.watch(process, lambda _code: ended.set())
            try:
                yield
            finally:
                kill(process, signal.SIGKILL)
                await end_of(ended, f"process {process.pid}, which worked on a template of {name},")
        finally:
            self._drafting.discard(name)

    def close(self) -> None:
        """Stop watching. Every VM runs on."""
        self._watcher.close()
        for vm in self._running.values():
            vm.agent.close()
        self._running.clear()
        self._listeners.clear()

    def _add(self, name: str, process: ProcessIdentity) -> RunningVm:
        directory = self._where.vm(name)
        vm = RunningVm(
            name,
            process,
            directory,
            GuestAgent(name, directory / layout.AGENT),
            twin=(directory / layout.TWIN).exists(),
            paused=(directory / layout.DRAFT).exists(),
        )
        self._running[name] = vm
        self._watcher.watch(process, lambda code: self._ended(vm, code))
        return vm

    def _ended(self, vm: RunningVm, code: int | None) -> None:
        if self._running.get(vm.name) is vm:
            del self._running[vm.name]
        vm.agent.close()
        vm.exit = VmExit(vm.name, code, _last_words(vm.directory))
        self._last_exits[vm.name] = vm.exit
        vm.exited.set()
        log.info("vm-process-ended", vm=vm.name, pid=vm.process.pid, code=code, detail=vm.exit.detail)
        for listener in self._listeners:
            listener(vm.exit)


async def end_of(exited: asyncio.Event, who: str) -> None:
    """Wait for the end of a process that was killed. Raises `HypervisorError` when it does not come."""
    try:
        async with asyncio.timeout(END_S):
            await exited.wait()
    except TimeoutError:
        raise HypervisorError(
            f"{who} was killed but does not end",
            remedy="the kernel holds it: look for a disk or network mount that hangs",
        ) from None


def _last_words(directory: Path) -> str:
    try:
        return last_lines(directory / layout.LOG, without=": warning: ")  # such as: a network has nobody on it
    except OSError:
        return ""  # its files are gone too
