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
    ForeignVmError,
    GuestError,
    HypervisorError,
    VmExistsError,
    VmNotFoundError,
    VmNotRunningError,
)
from agent.hypervisors.simulated.host import SIGKILL, SimulatedHost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.simulated.vm import Life, SimulatedVm


class SimulatedHypervisor:
    """VMs of a simulated host as a `Hypervisor`. Several drivers, one after another, may serve the same host.

    Without one it simulates a host of its own, whose guests serve their ports.
    """

    name: Final = "simulated"
    version: Final = ""
    capabilities: Final = Capabilities(execute=True, suspend=True, fan_out=False, counts_foreign_slots=False)

    def __init__(self, host: SimulatedHost | None = None, *, prefix: str = PREFIX) -> None:
        self._host = host or SimulatedHost(serve=True)
        self._prefix = prefix
        self._listeners: list[Callable[[VmExit], None]] = []

    async def preflight(self) -> None:
        """See `Hypervisor`. Simulations run anywhere."""

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._listeners.append(listener)
        self._host.watchers.append(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`."""
        ours = (
            Observed(name, ours=True, running=vm.life is not None, pid=vm.life.pid if vm.life else None)
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
        vm = host.add(spec, image.digest)
        await host.spend(vm.behaviour.clone_s)
        if host.chance(vm.behaviour.clone_fails):
            del host.vms[spec.name]
            raise HypervisorError(f"{spec.name} cannot be cloned: the simulation says so")
        if host.chance(vm.behaviour.clone_breaks):
            raise HypervisorError(f"{spec.name} was only half cloned: the simulation says so")
        vm.whole = True

    async def save_template(self, name: str, template: str) -> None:
        """See `Hypervisor`."""
        raise HypervisorError(f"{name} cannot be kept as the template {template}: this driver does not fan out")

    async def templates(self) -> frozenset[str]:
        """See `Hypervisor`."""
        return frozenset()

    async def drop_template(self, template: str) -> None:
        """See `Hypervisor`."""

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting what runs succeeds; starting what is suspended boots it."""
        vm = self._known(spec.name)
        if vm.life is not None:
            return
        await self._host.spend(vm.behaviour.start_s)
        if not vm.whole or self._host.chance(vm.behaviour.start_fails):
            raise HypervisorError(f"{spec.name} cannot be started: the simulation says so")
        vm.suspended = False
        await self._host.run(vm, vm.behaviour.boot_s)

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
        vm, _ = self._running(name)
        await self._host.spend(vm.behaviour.suspend_s)
        self._host.end(vm, 0)
        vm.suspended = True

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`."""
        vm = self._known(spec.name)
        if not vm.suspended:
            raise HypervisorError(f"{spec.name} has no saved memory to resume from")
        vm.suspended = False
        await self._host.run(vm, vm.behaviour.resume_s)

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
