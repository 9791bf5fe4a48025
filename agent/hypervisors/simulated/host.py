"""A simulated host. Its VMs run independently of the drivers that observe them.

Tests and demos change a VM without the driver's knowledge by `crash`, `hang`, `damage` and `vanish`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import Capabilities, SlotsTakenError, VmExit
from agent.hypervisors.simulated.behaviour import Behaviour, Distribution
from agent.hypervisors.simulated.guest import GuestState, SimulatedGuest
from agent.hypervisors.simulated.vm import SimulatedProcess, SimulatedTemplate, SimulatedVm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agent.hypervisors.contract import VmSpec

SIGKILL: Final = 9
HOOK: Final = "/etc/hearth/on-resume"
"""A guest with this file can reinitialise its identity."""
ALL_CAPABILITIES: Final = Capabilities(execute=True, suspend=True, templates=True, counts_foreign_slots=False)


@dataclass(frozen=True, slots=True)
class Clock:
    """The simulation's time, which can run faster than real time. `now` returns seconds."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(slots=True)
class SimulatedHost:
    """The host. `behaviours` has exceptions by image digest; with `serve`, guests listen on real loopback ports."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    behaviours: Mapping[str, Behaviour] = field(default_factory=dict)
    rng: random.Random = field(default_factory=random.Random)
    clock: Clock = Clock()
    serve: bool = False
    capabilities: Capabilities = ALL_CAPABILITIES
    max_running: int | None = None  # how many VMs the host runs at most, foreign ones included; None: no limit
    vms: dict[str, SimulatedVm] = field(default_factory=dict)
    templates: dict[str, SimulatedTemplate] = field(default_factory=dict)
    foreign: dict[str, bool] = field(default_factory=dict)  # whether each foreign VM runs
    exit_listeners: list[Callable[[VmExit], None]] = field(default_factory=list)
    _pids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _ports: itertools.count[int] = field(default_factory=lambda: itertools.count(20000))

    def draws(self, probability: float) -> bool:
        """Draw whether an event of this probability happens."""
        return self.rng.random() < probability

    async def wait(self, duration: Distribution) -> None:
        """Wait for a drawn duration."""
        await self.clock.sleep(duration(self.rng))

    def add(self, spec: VmSpec, image: str) -> SimulatedVm:
        """Add a VM whose clone is not complete yet."""
        vm = SimulatedVm(spec, image, self.behaviours.get(image, self.behaviour))
        self.vms[spec.name] = vm
        return vm

    async def boot(self, vm: SimulatedVm) -> None:
        """Start a VM's process and schedule its boot, and its drawn failures. Raises `SlotsTakenError`."""
        hook = set() if self.draws(vm.behaviour.lacks_hook) else {HOOK}
        process = await self._start_process(vm, GuestState("guest", hook))
        if not self.draws(vm.behaviour.never_boots):
            self._schedule(process, vm.behaviour.boot_s, lambda: self._finish_boot(vm, process))

    async def resume(self, vm: SimulatedVm, snapshot: GuestState) -> None:
        """Start a VM's process from a snapshot: its guest is up immediately. Raises `SlotsTakenError`."""
        process = await self._start_process(vm, snapshot)
        process.guest.up.set()

    @property
    def running(self) -> int:
        """How many VMs run, foreign ones included."""
        return sum(vm.process is not None for vm in self.vms.values()) + sum(self.foreign.values())

    async def _start_process(self, vm: SimulatedVm, state: GuestState) -> SimulatedProcess:
        if self.max_running is not None and self.running >= self.max_running:
            raise SlotsTakenError(f"{vm.spec.name} cannot run: {self.running} VMs run, which is this host's limit")
        process = vm.process = SimulatedProcess(next(self._pids), SimulatedGuest(vm.image, state))
        if self.serve:
            await process.guest.serve(vm.spec)
        else:
            process.guest.ports.update(zip(vm.spec.ports, self._ports, strict=False))
        name, behaviour = vm.spec.name, vm.behaviour
        vm.console.append(f"process {process.pid} runs {vm.image}")
        if self.draws(behaviour.hangs):
            self._schedule(process, behaviour.hangs_after_s, lambda: self.hang(name))
        if self.draws(behaviour.dies):
            self._schedule(process, behaviour.dies_after_s, lambda: self.crash(name, code=1))
        return process

    def end_process(self, vm: SimulatedVm, code: int) -> None:
        """End a VM's process, if it runs, and notify the listeners."""
        process, vm.process = vm.process, None
        if process is None:
            return
        for event in process.scheduled:
            event.cancel()
        process.guest.close()
        process.ended.set()
        vm.console.append(f"process {process.pid} ended with {code}")
        for listener in tuple(self.exit_listeners):
            listener(VmExit(vm.spec.name, code, vm.console[-1]))

    def crash(self, name: str, *, code: int = -SIGKILL) -> None:
        """Kill a VM's process."""
        self.end_process(self.vms[name], code)

    def hang(self, name: str) -> None:
        """Stop a guest's answers while its process runs on."""
        vm = self.vms[name]
        if vm.process is not None:
            for event in vm.process.scheduled:
                event.cancel()
            vm.process.guest.up.clear()
            vm.console.append("the guest hangs")

    def damage(self, name: str) -> None:
        """Remove a VM's files; its process runs on."""
        self.vms[name].is_complete = False

    def vanish(self, name: str) -> None:
        """Kill a VM and remove its files."""
        self.end_process(self.vms[name], -SIGKILL)
        del self.vms[name]

    def _finish_boot(self, vm: SimulatedVm, process: SimulatedProcess) -> None:
        process.guest.up.set()
        vm.console.append("the guest is up")

    def _schedule(self, process: SimulatedProcess, after: Distribution, event: Callable[[], None]) -> None:
        delay_s = after(self.rng)

        async def happen() -> None:
            await self.clock.sleep(delay_s)
            event()

        process.scheduled.append(asyncio.get_running_loop().create_task(happen()))
