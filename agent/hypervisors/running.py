"""The table of this host's running VMs that drivers share: start, adopt, find, end, and report exits.

Started and adopted VMs are treated alike. A driver subclasses `RunningVms`, and `RunningVm` for what it keeps about a
VM while it runs. Use on the event loop only.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import structlog

from agent.domain.names import parse
from agent.hypervisors.contract import (
    ForeignVmError,
    HypervisorError,
    VmExit,
    VmNotFoundError,
    VmNotRunningError,
)
from agent.processes.exit_watcher import create_exit_watcher
from agent.processes.process import is_alive, kill
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.processes.process import ProcessIdentity

log = structlog.get_logger()

KILL_S: Final = 15.0
"""How long a killed hypervisor process may take to end: it has the guest's memory to free."""


def is_ours(name: str, prefix: str) -> bool:
    """Whether this agent made the VM of that name."""
    return parse(name, prefix=prefix) is not None


def require_ours(name: str, prefix: str) -> None:
    """Raise `ForeignVmError` unless this agent made the VM of that name."""
    if not is_ours(name, prefix):
        raise ForeignVmError(f"the VM {name} was not made by this agent", remedy="end it with the tool that made it")


def still_runs(name: str, pid: int | None = None) -> HypervisorError:
    """Return the error for deleting a running VM."""
    process = f" as process {pid}" if pid is not None else ""
    return HypervisorError(f"{name} still runs{process}", remedy="stop it first")


@dataclass(frozen=True, slots=True)
class VmProcess:
    """A process of this host and the VM it runs."""

    name: str
    process: ProcessIdentity


@dataclass(slots=True)
class RunningVm:
    """A running VM. `process` is None if the hypervisor does not report the process."""

    name: str
    process: ProcessIdentity | None
    exited: asyncio.Event = field(default_factory=asyncio.Event, kw_only=True)
    exit: VmExit | None = field(default=None, kw_only=True)  # set before `exited` is

    @property
    def pid(self) -> int | None:
        """The process id, None if it is not known."""
        return self.process.pid if self.process else None

    @property
    def is_alive(self) -> bool:
        """Whether its process is known and runs. The exit of one that does not may still be on its way."""
        return self.process is not None and is_alive(self.process)

    async def exited_within(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for its exit. Returns whether it has exited."""
        return await _is_set_within(self.exited, timeout_s)


VmT = TypeVar("VmT", bound=RunningVm)


class RunningVms(Generic[VmT]):
    """All running VMs of one host that this agent made. Subclasses observe them."""

    def __init__(self, *, prefix: str) -> None:
        self._prefix = prefix
        self._watcher = create_exit_watcher()
        self._running: dict[str, VmT] = {}
        self._starting: set[str] = set()
        self._listeners: list[Callable[[VmExit], None]] = []
        self._last_exits: dict[str, VmExit] = {}

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor.on_exit`."""
        self._listeners.append(listener)

    def last_exit(self, name: str) -> VmExit | None:
        """Return how a VM's process ended, None if it did not end since this agent started."""
        return self._last_exits.get(name)

    def forget(self, name: str) -> None:
        """Drop the last exit of a deleted VM."""
        self._last_exits.pop(name, None)

    async def survey(self) -> object:
        """Observe this host, and adopt each running VM that is not in the table. Raises `HypervisorError`."""
        raise NotImplementedError

    async def find(self, name: str) -> VmT | None:
        """Return a VM if it runs: from the table while its process lives, otherwise after a survey."""
        vm = self._running.get(name)
        if vm is None or not vm.is_alive:
            await self.survey()
        return self._running.get(name)

    async def require(self, name: str) -> VmT:
        """Return a running VM. Raises `VmNotRunningError` or `VmNotFoundError`."""
        if vm := await self.find(name):
            return vm
        if await self._exists(name):
            raise VmNotRunningError(f"{name} does not run")
        raise VmNotFoundError(f"there is no VM named {name}")

    async def require_stopped(self, name: str) -> None:
        """Raise `HypervisorError` if a VM runs."""
        if vm := await self.find(name):
            raise still_runs(name, vm.pid)

    async def start(self, name: str, spawn: Callable[[], ProcessIdentity]) -> VmT:
        """Start a VM's process by calling `spawn` in a thread, and watch it. A cancel leaves it running and watched."""
        self._starting.add(name)
        try:
            process = await run_in_thread(spawn, if_cancelled=lambda process: self._add(name, process))
        finally:
            self._starting.discard(name)
        log.info("vm-process-started", vm=name, pid=process.pid)
        return self._add(name, process)

    async def end(self, vm: VmT) -> None:
        """Kill a VM's process, even one that is stopped or hangs, and return when it has ended.

        Raises `HypervisorError` if it does not end in `KILL_S`.
        """
        if vm.process is not None:
            kill(vm.process, signal.SIGKILL)
        await wait_until_killed(vm.exited, f"process {vm.pid} of {vm.name}")

    def close(self) -> None:
        """Stop watching. Every VM runs on."""
        self._watcher.close()
        for vm in self._running.values():
            self._release(vm)
        self._running.clear()
        self._listeners.clear()

    async def _exists(self, name: str) -> bool:
        """Whether the host has a VM of that name, running or not."""
        raise NotImplementedError

    def _new_vm(self, name: str, process: ProcessIdentity | None) -> VmT:
        """Return the table's entry for a VM that was started or adopted."""
        raise NotImplementedError

    def _exit_of(self, vm: VmT, code: int | None) -> VmExit:
        """Return how a VM ended, given its exit code."""
        return VmExit(vm.name, code)

    def _release(self, vm: VmT) -> None:
        """Free what this agent holds for a VM that ended or is no longer watched."""

    def _adopt(self, found: Iterable[VmProcess]) -> None:
        """Watch each VM of this agent among `found` that is neither in the table nor starting."""
        for vm in found:
            is_known = vm.name in self._running or vm.name in self._starting
            if not is_known and is_ours(vm.name, self._prefix) and is_alive(vm.process):
                self._add(vm.name, vm.process)
                log.info("vm-process-adopted", vm=vm.name, pid=vm.process.pid)

    def _add(self, name: str, process: ProcessIdentity | None) -> VmT:
        vm = self._running[name] = self._new_vm(name, process)
        if process is not None:
            self._watcher.watch(process, lambda code: self._record_exit(vm, code))
        return vm

    def _record_exit(self, vm: VmT, code: int | None) -> None:
        if vm.exited.is_set():
            return
        if self._running.get(vm.name) is vm:
            del self._running[vm.name]
        self._release(vm)
        vm.exit = self._last_exits[vm.name] = self._exit_of(vm, code)
        vm.exited.set()
        log.info("vm-process-ended", vm=vm.name, pid=vm.pid, code=code, detail=vm.exit.detail)
        self._notify(vm, vm.exit)

    def _notify(self, vm: VmT, ended: VmExit) -> None:
        for listener in self._listeners:
            listener(ended)


async def wait_until_killed(exited: asyncio.Event, process: str) -> None:
    """Wait for the exit of a killed process. Raises `HypervisorError` naming `process` if it lives after `KILL_S`."""
    if not await _is_set_within(exited, KILL_S):
        raise HypervisorError(
            f"{process} was killed but does not end",
            remedy="The kernel holds the process: look for a disk or network mount that hangs, else restart the host.",
        )


async def _is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
