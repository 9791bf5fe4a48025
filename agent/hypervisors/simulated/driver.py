"""The simulated driver: the contract on top of a simulated host."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

from agent.domain.model import Observed
from agent.domain.names import PREFIX, parse
from agent.hypervisors.contract import (
    Address,
    Capabilities,
    ExecResult,
    FanOutUnsupportedError,
    ForeignVmError,
    GuestError,
    HealthFact,
    HypervisorError,
    VmExistsError,
    VmNotFoundError,
    VmNotRunningError,
)
from agent.hypervisors.sessions import OPEN_S
from agent.hypervisors.simulated.host import HOOK, SIGKILL, SimulatedHost
from agent.hypervisors.simulated.session import SimulatedCommand
from agent.hypervisors.simulated.vm import Template

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.sessions import ExecSession
    from agent.hypervisors.simulated.vm import Life, SimulatedVm


ANSWER_S: Final = 20.0
"""How long a guest may take to tell whether it can become another."""


class SimulatedHypervisor:
    """VMs of a simulated host as a `Hypervisor`. Several drivers, one after another, may serve the same host.

    Without one it simulates a host of its own, whose guests serve their ports.
    """

    name: Final = "simulated"
    version: Final = ""

    def __init__(self, host: SimulatedHost | None = None, *, prefix: str = PREFIX) -> None:
        self._host = host or SimulatedHost(serve=True)
        self._prefix = prefix
        self._listeners: list[Callable[[VmExit], None]] = []

    @property
    def capabilities(self) -> Capabilities:
        """What the simulated host allows."""
        return self._host.capabilities

    async def preflight(self) -> None:
        """See `Hypervisor`. Simulations run anywhere."""

    async def health(self) -> tuple[HealthFact, ...]:
        """See `Hypervisor`. Nothing beyond listings."""
        return ()

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._listeners.append(listener)
        self._host.watchers.append(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`."""
        ours = (
            Observed(
                name,
                ours=True,
                running=vm.life is not None,
                pid=vm.life.pid if vm.life else None,
                suspended=vm.life is None and vm.memory is not None,
                image=vm.image,
                damaged="" if vm.whole or not (vm.life or vm.memory) else "its files are gone",
            )
            for name, vm in self._host.vms.items()
        )
        foreign = (Observed(name, ours=False, running=running) for name, running in self._host.foreign.items())
        return tuple(sorted((*ours, *foreign), key=lambda vm: vm.name))

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """See `Hypervisor`."""
        host = self._host
        self._only_ours(spec.name)
        if spec.name in host.vms:
            raise VmExistsError(f"a VM named {spec.name} exists")
        kept = host.templates.get(template) if template else None
        if template and (kept is None or (kept.image, kept.size) != (image.digest, spec.size)):
            raise HypervisorError(f"there is no template named {template} that fits {spec.name}")
        vm = host.add(spec, image.digest)
        await host.spend(vm.behaviour.clone_s)
        if host.chance(vm.behaviour.clone_fails):
            del host.vms[spec.name]
            raise HypervisorError(f"{spec.name} cannot be cloned: the simulation says so")
        if host.chance(vm.behaviour.clone_breaks):
            raise HypervisorError(f"{spec.name} was only half cloned: the simulation says so")
        if kept is not None:
            vm.template, vm.memory, vm.twin = template, kept.memory.copy(), True
        vm.whole = True

    async def save_template(self, name: str, template: str) -> None:
        """See `Hypervisor`. A VM that came from a template itself is refused."""
        self._only_ours(name)
        vm, life = self._running(name)
        if vm.template is not None:
            raise HypervisorError(f"{name} came from a template; only a VM that booted can become one")
        await self._answer(name, life, ANSWER_S)
        if not self.capabilities.templates or HOOK not in life.guest.memory.files:
            raise FanOutUnsupportedError(f"no other VM can start from the memory of {name}")
        await self._host.spend(vm.behaviour.save_s)
        if vm.life is not life or self._host.chance(vm.behaviour.save_fails):
            raise HypervisorError(f"no template can be made of {name}: the simulation says so")
        self._host.templates[template] = Template(vm.image, vm.spec.size, life.guest.memory.copy())

    async def templates(self) -> frozenset[str]:
        """See `Hypervisor`."""
        return frozenset(self._host.templates)

    async def drop_template(self, template: str) -> None:
        """See `Hypervisor`."""
        self._host.templates.pop(template, None)

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting what runs succeeds; starting what is suspended boots it."""
        vm = self._known(spec.name)
        if vm.life is not None:
            return
        if vm.twin:
            await self._go_on(vm)
            return
        await self._host.spend(vm.behaviour.start_s)
        if not vm.whole or self._host.chance(vm.behaviour.start_fails):
            raise HypervisorError(f"{spec.name} cannot be started: the simulation says so")
        vm.memory = None
        await self._host.boot(vm)

    async def stop(self, name: str, *, grace_s: float) -> None:
        """See `Hypervisor`."""
        self._only_ours(name)
        vm = self._host.vms.get(name)
        if vm is None or vm.life is None:
            return
        behaviour, life = vm.behaviour, vm.life
        if self._host.chance(behaviour.stop_fails):
            raise HypervisorError(f"{name} cannot be stopped: the simulation says so")
        listens = life.guest.up.is_set() and not self._host.chance(behaviour.ignores_shutdown)
        if grace_s > 0:
            needs_s = behaviour.shutdown_s(self._host.rng) if listens else grace_s
            await self._sooner_of(min(needs_s, grace_s), life.ended)
            if needs_s < grace_s:
                self._host.end(vm, 0)
        self._host.end(vm, -SIGKILL)

    async def delete(self, name: str) -> None:
        """See `Hypervisor`."""
        self._only_ours(name)
        vm = self._host.vms.get(name)
        if vm is None:
            return
        if vm.life is not None:
            raise HypervisorError(f"{name} still runs", remedy="stop it first")
        if self._host.chance(vm.behaviour.delete_fails):
            raise HypervisorError(f"{name} cannot be deleted: the simulation says so")
        del self._host.vms[name]

    async def suspend(self, name: str) -> None:
        """See `Hypervisor`."""
        vm, life = self._running(name)
        if not self.capabilities.suspend:
            raise HypervisorError(f"{name} cannot be suspended: this host cannot do that")
        await self._host.spend(vm.behaviour.suspend_s)
        if vm.life is not life:
            raise HypervisorError(f"{name} ended while it was suspended")
        self._host.end(vm, 0)
        vm.memory = life.guest.memory

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`."""
        vm = self._known(spec.name)
        await self._go_on(vm)

    async def address(self, name: str) -> Address:
        """See `Hypervisor`. The ports only answer on a host that serves."""
        _, life = self._running(name)
        return Address("127.0.0.1", dict(life.guest.ports))

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """See `Hypervisor`."""
        _, life = self._running(name)
        await self._answer(name, life, timeout_s)

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """See `Hypervisor`, and `Guest.execute` for what commands do."""
        _, life = self._running(name)
        await self._answer(name, life, timeout_s)
        return life.guest.execute(argv)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """See `StreamsExec`, and `SimulatedCommand` for what commands do."""
        _, life = self._running(name)
        await self._answer(name, life, OPEN_S)
        return SimulatedCommand(name, life, self._host.clock, argv, stdin=stdin)

    async def evidence(self, name: str, into: Path) -> None:
        """See `Hypervisor`."""
        vm = self._host.vms.get(name)
        state = {"running": vm is not None and vm.life is not None, "image": vm.image if vm else None}
        console = "\n".join(vm.console) if vm else ""
        await asyncio.to_thread(_write, into, json.dumps(state), console)

    async def close(self) -> None:
        """See `Hypervisor`."""
        for listener in self._listeners:
            self._host.watchers.remove(listener)
        self._listeners.clear()

    def _only_ours(self, name: str) -> None:
        if parse(name, prefix=self._prefix) is None:
            raise ForeignVmError(f"{name} is not ours to touch")

    def _known(self, name: str) -> SimulatedVm:
        vm = self._host.vms.get(name)
        if vm is None:
            raise VmNotFoundError(f"there is no VM named {name}")
        return vm

    def _running(self, name: str) -> tuple[SimulatedVm, Life]:
        vm = self._known(name)
        if vm.life is None:
            raise VmNotRunningError(f"{name} does not run")
        return vm, vm.life

    async def _go_on(self, vm: SimulatedVm) -> None:
        """Start a VM from its saved memory; one that is another's becomes its own."""
        name, memory = vm.spec.name, vm.memory
        if memory is None:
            raise HypervisorError(f"{name} has no saved memory to resume from")
        vm.memory = None
        await self._host.spend(vm.behaviour.resume_s)
        if self._host.chance(vm.behaviour.resume_fails):
            raise HypervisorError(f"{name} cannot go on from its saved memory: the simulation says so")
        if vm.twin:
            vm.twin, memory.hostname = False, name
        await self._host.wake(vm, memory)

    async def _answer(self, name: str, life: Life, timeout_s: float) -> None:
        """Wait until the guest is up, as long as a patient caller would."""
        await self._sooner_of(timeout_s, life.ended, life.guest.up)
        if not life.guest.up.is_set():
            raise GuestError(f"the guest agent of {name} did not answer in {timeout_s:g} s")

    async def _sooner_of(self, seconds: float, *events: asyncio.Event) -> None:
        """Let time pass, but no longer than until one of the events."""
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(event.wait()) for event in events]
        waits.append(asyncio.ensure_future(self._host.clock.sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _write(into: Path, state: str, console: str) -> None:
    into.mkdir(parents=True, exist_ok=True)
    into.joinpath("state.json").write_text(state)
    into.joinpath("console.log").write_text(console)
