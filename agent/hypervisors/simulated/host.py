"""A simulated host: the VMs on it live their own lives, whichever driver looks at them, and none when none does.

What a test or a demo does to a VM behind the driver's back (`crash`, `hang`, `vanish`) is done here.
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
from agent.hypervisors.simulated.guest import Guest
from agent.hypervisors.simulated.vm import Life, Memory, SimulatedVm, Template

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agent.hypervisors.contract import VmSpec

SIGKILL: Final = 9
HOOK: Final = "/etc/hearth/on-resume"
"""The file by which a guest shows that it can become another."""
EVERYTHING: Final = Capabilities(execute=True, suspend=True, templates=True, counts_foreign_slots=False)


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, so that a simulation can run faster than the world. `now` is in seconds."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(slots=True)
class SimulatedHost:
    """The machine. `behaviours` holds what differs by image digest; `serve` gives guests real loopback ports."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    behaviours: Mapping[str, Behaviour] = field(default_factory=dict)
    rng: random.Random = field(default_factory=random.Random)
    clock: Clock = Clock()
    serve: bool = False
    capabilities: Capabilities = EVERYTHING
    most_running: int | None = None  # VMs the host lets run at once, somebody else's included; None: any number
    vms: dict[str, SimulatedVm] = field(default_factory=dict)
    templates: dict[str, Template] = field(default_factory=dict)
    foreign: dict[str, bool] = field(default_factory=dict)  # whether each VM of somebody else runs
    watchers: list[Callable[[VmExit], None]] = field(default_factory=list)
    _pids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _ports: itertools.count[int] = field(default_factory=lambda: itertools.count(20000))

    def chance(self, likelihood: float) -> bool:
        """Draw whether something happens."""
        return self.rng.random() < likelihood

    async def spend(self, duration: Distribution) -> None:
        """Let a drawn time pass."""
        await self.clock.sleep(duration(self.rng))

    def add(self, spec: VmSpec, image: str) -> SimulatedVm:
        """Put the beginnings of a VM on the host."""
        vm = SimulatedVm(spec, image, self.behaviours.get(image, self.behaviour))
        self.vms[spec.name] = vm
        return vm

    async def boot(self, vm: SimulatedVm) -> None:
        """Begin a life from nothing: the guest boots by itself, and what is to go wrong with it will."""
        hook = set() if self.chance(vm.behaviour.lacks_hook) else {HOOK}
        life = await self._begin(vm, Memory("guest", hook))
        if not self.chance(vm.behaviour.never_boots):
            self._later(life, vm.behaviour.boot_s, lambda: self._boot(vm, life))

    async def wake(self, vm: SimulatedVm, memory: Memory) -> None:
        """Begin a life that goes on from a memory."""
        life = await self._begin(vm, memory)
        life.guest.up.set()

    @property
    def running(self) -> int:
        """How many VMs run, ours and foreign."""
        return sum(vm.life is not None for vm in self.vms.values()) + sum(self.foreign.values())

    async def _begin(self, vm: SimulatedVm, memory: Memory) -> Life:
        if self.most_running is not None and self.running >= self.most_running:
            raise SlotsTakenError(f"{vm.spec.name} cannot run: {self.running} VMs do, and no more may on this host")
        life = vm.life = Life(next(self._pids), Guest(vm.image, memory))
        if self.serve:
            await life.guest.serve(vm.spec)
        else:
            life.guest.ports.update(zip(vm.spec.ports, self._ports, strict=False))
        name, behaviour = vm.spec.name, vm.behaviour
        vm.console.append(f"process {life.pid} runs {vm.image}")
        if self.chance(behaviour.hangs):
            self._later(life, behaviour.hangs_after_s, lambda: self.hang(name))
        if self.chance(behaviour.dies):
            self._later(life, behaviour.dies_after_s, lambda: self.crash(name, code=1))
        return life

    def end(self, vm: SimulatedVm, code: int) -> None:
        """End a VM's life, if it has one, and tell whoever watches."""
        life, vm.life = vm.life, None
        if life is None:
            return
        for fate in life.fates:
            fate.cancel()
        life.guest.close()
        life.ended.set()
        vm.console.append(f"process {life.pid} ended with {code}")
        for watcher in tuple(self.watchers):
            watcher(VmExit(vm.spec.name, code, vm.console[-1]))

    def crash(self, name: str, *, code: int = -SIGKILL) -> None:
        """Kill a VM's process."""
        self.end(self.vms[name], code)

    def hang(self, name: str) -> None:
        """Let a guest stop answering while its process runs on."""
        vm = self.vms[name]
        if vm.life is not None:
            for fate in vm.life.fates:
                fate.cancel()
            vm.life.guest.up.clear()
            vm.console.append("the guest hangs")

    def damage(self, name: str) -> None:
        """Remove the files of a VM behind the driver's back; what runs of it runs on."""
        self.vms[name].whole = False

    def vanish(self, name: str) -> None:
        """Kill a VM and remove its files behind the driver's back."""
        self.end(self.vms[name], -SIGKILL)
        del self.vms[name]

    def _boot(self, vm: SimulatedVm, life: Life) -> None:
        life.guest.up.set()
        vm.console.append("the guest is up")

    def _later(self, life: Life, after: Distribution, happen: Callable[[], None]) -> None:
        delay_s = after(self.rng)

        async def fate() -> None:
            await self.clock.sleep(delay_s)
            happen()

        life.fates.append(asyncio.get_running_loop().create_task(fate()))
