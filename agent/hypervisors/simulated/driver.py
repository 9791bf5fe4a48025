"""The simulated driver: implements the contract over a simulated host."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

from agent.domain.model import Observed
from agent.domain.names import PREFIX
from agent.hypervisors.contract import (
    Address,
    Capabilities,
    ExecResult,
    GuestError,
    HealthFact,
    HypervisorError,
    TemplatesUnsupportedError,
    VmExistsError,
    VmNotFoundError,
    VmNotRunningError,
)
from agent.hypervisors.running import require_ours, still_runs
from agent.hypervisors.sessions import OPEN_S
from agent.hypervisors.simulated.exec_session import SimulatedExecSession
from agent.hypervisors.simulated.host import HOOK, SIGKILL, SimulatedHost
from agent.hypervisors.simulated.vm import SimulatedTemplate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.sessions import ExecSession
    from agent.hypervisors.simulated.vm import SimulatedProcess, SimulatedVm


ANSWER_S: Final = 20.0
"""How long a guest may take to answer whether it can become a template."""


class SimulatedHypervisor:
    """VMs of a simulated host as a `Hypervisor`. Drivers may use the same host one after another.

    Without `host`, it simulates a host of its own, whose guests serve their ports.
    """

    name: Final = "simulated"
    version: Final = ""

    def __init__(self, host: SimulatedHost | None = None, *, prefix: str = PREFIX) -> None:
        self._host = host or SimulatedHost(serve=True)
        self._prefix = prefix
        self._listeners: list[Callable[[VmExit], None]] = []

    @property
    def capabilities(self) -> Capabilities:
        """See `Hypervisor`. Those of the simulated host."""
        return self._host.capabilities

    async def preflight(self) -> None:
        """See `Hypervisor`. Always succeeds."""

    async def health(self) -> tuple[HealthFact, ...]:
        """See `Hypervisor`. Reports nothing."""
        return ()

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._listeners.append(listener)
        self._host.exit_listeners.append(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`."""
        ours = (
            Observed(
                name,
                ours=True,
                running=vm.process is not None,
                pid=vm.process.pid if vm.process else None,
                suspended=vm.process is None and vm.snapshot is not None,
                image=vm.image,
                damaged="" if vm.is_complete or not (vm.process or vm.snapshot) else "its files are gone",
            )
            for name, vm in self._host.vms.items()
        )
        foreign = (Observed(name, ours=False, running=running) for name, running in self._host.foreign.items())
        return tuple(sorted((*ours, *foreign), key=lambda vm: vm.name))

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """See `Hypervisor`."""
        host = self._host
        require_ours(spec.name, self._prefix)
        if spec.name in host.vms:
            raise VmExistsError(f"a VM named {spec.name} exists")
        saved = host.templates.get(template) if template else None
        if template and (saved is None or (saved.image, saved.size) != (image.digest, spec.size)):
            raise HypervisorError(f"there is no template named {template} that fits {spec.name}")
        vm = host.add(spec, image.digest)
        await host.wait(vm.behaviour.clone_s)
        if host.draws(vm.behaviour.clone_fails):
            del host.vms[spec.name]
            raise HypervisorError(f"{spec.name} cannot be cloned: simulated failure")
        if host.draws(vm.behaviour.clone_breaks):
            raise HypervisorError(f"{spec.name} was cloned incompletely: simulated failure")
        if saved is not None:
            vm.template, vm.snapshot, vm.is_identity_pending = template, saved.snapshot.copy(), True
        vm.is_complete = True

    async def save_template(self, name: str, template: str) -> None:
        """See `Hypervisor`. Refuses a VM that started from a template."""
        require_ours(name, self._prefix)
        vm, process = self._require_running(name)
        if vm.template is not None:
            raise HypervisorError(f"{name} started from a template; only a VM that booted can become one")
        await self._wait_for_answer(name, process, ANSWER_S)
        if not self.capabilities.templates or HOOK not in process.guest.state.files:
            raise TemplatesUnsupportedError(f"no other VM can start from a snapshot of {name}")
        await self._host.wait(vm.behaviour.save_s)
        if vm.process is not process or self._host.draws(vm.behaviour.save_fails):
            raise HypervisorError(f"no template can be made of {name}: simulated failure")
        self._host.templates[template] = SimulatedTemplate(vm.image, vm.spec.size, process.guest.state.copy())

    async def templates(self) -> frozenset[str]:
        """See `Hypervisor`."""
        return frozenset(self._host.templates)

    async def drop_template(self, template: str) -> None:
        """See `Hypervisor`."""
        self._host.templates.pop(template, None)

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting a running VM succeeds; starting a suspended VM boots it."""
        vm = self._require(spec.name)
        if vm.process is not None:
            return
        if vm.is_identity_pending:
            await self._resume(vm)
            return
        await self._host.wait(vm.behaviour.start_s)
        if not vm.is_complete or self._host.draws(vm.behaviour.start_fails):
            raise HypervisorError(f"{spec.name} cannot be started: simulated failure")
        vm.snapshot = None
        await self._host.boot(vm)

    async def stop(self, name: str, *, grace_s: float) -> None:
        """See `Hypervisor`."""
        require_ours(name, self._prefix)
        vm = self._host.vms.get(name)
        if vm is None or vm.process is None:
            return
        behaviour, process = vm.behaviour, vm.process
        if self._host.draws(behaviour.stop_fails):
            raise HypervisorError(f"{name} cannot be stopped: simulated failure")
        obeys = process.guest.up.is_set() and not self._host.draws(behaviour.ignores_shutdown)
        if grace_s > 0:
            needs_s = behaviour.shutdown_s(self._host.rng) if obeys else grace_s
            await self._wait_for_any(min(needs_s, grace_s), process.ended)
            if needs_s < grace_s:
                self._host.end_process(vm, 0)
        self._host.end_process(vm, -SIGKILL)

    async def delete(self, name: str) -> None:
        """See `Hypervisor`."""
        require_ours(name, self._prefix)
        vm = self._host.vms.get(name)
        if vm is None:
            return
        if vm.process is not None:
            raise still_runs(name)
        if self._host.draws(vm.behaviour.delete_fails):
            raise HypervisorError(f"{name} cannot be deleted: simulated failure")
        del self._host.vms[name]

    async def suspend(self, name: str) -> None:
        """See `Hypervisor`."""
        vm, process = self._require_running(name)
        if not self.capabilities.suspend:
            raise HypervisorError(f"{name} cannot be suspended: this host does not support it")
        await self._host.wait(vm.behaviour.suspend_s)
        if vm.process is not process:
            raise HypervisorError(f"{name} ended while it was suspended")
        self._host.end_process(vm, 0)
        vm.snapshot = process.guest.state

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`."""
        vm = self._require(spec.name)
        await self._resume(vm)

    async def address(self, name: str) -> Address:
        """See `Hypervisor`. The ports answer only on a host with `serve`."""
        _, process = self._require_running(name)
        return Address("127.0.0.1", dict(process.guest.ports))

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """See `Hypervisor`."""
        _, process = self._require_running(name)
        await self._wait_for_answer(name, process, timeout_s)

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """See `Hypervisor`, and `SimulatedGuest.execute` for the simulated commands."""
        _, process = self._require_running(name)
        await self._wait_for_answer(name, process, timeout_s)
        return process.guest.execute(argv)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """See `SupportsExecSessions`, and `SimulatedExecSession` for the simulated commands."""
        _, process = self._require_running(name)
        await self._wait_for_answer(name, process, OPEN_S)
        return SimulatedExecSession(name, process, self._host.clock, argv, stdin=stdin)

    async def evidence(self, name: str, into: Path) -> None:
        """See `Hypervisor`."""
        vm = self._host.vms.get(name)
        state = {"running": vm is not None and vm.process is not None, "image": vm.image if vm else None}
        console = "\n".join(vm.console) if vm else ""
        await asyncio.to_thread(_write, into, json.dumps(state), console)

    async def close(self) -> None:
        """See `Hypervisor`."""
        for listener in self._listeners:
            self._host.exit_listeners.remove(listener)
        self._listeners.clear()

    def _require(self, name: str) -> SimulatedVm:
        vm = self._host.vms.get(name)
        if vm is None:
            raise VmNotFoundError(f"there is no VM named {name}")
        return vm

    def _require_running(self, name: str) -> tuple[SimulatedVm, SimulatedProcess]:
        vm = self._require(name)
        if vm.process is None:
            raise VmNotRunningError(f"{name} does not run")
        return vm, vm.process

    async def _resume(self, vm: SimulatedVm) -> None:
        """Start a VM from its snapshot; one from a template gets its own identity."""
        name, snapshot = vm.spec.name, vm.snapshot
        if snapshot is None:
            raise HypervisorError(f"{name} has no snapshot to resume from")
        vm.snapshot = None
        await self._host.wait(vm.behaviour.resume_s)
        if self._host.draws(vm.behaviour.resume_fails):
            raise HypervisorError(f"{name} cannot resume from its snapshot: simulated failure")
        if vm.is_identity_pending:
            vm.is_identity_pending, snapshot.hostname = False, name
        await self._host.resume(vm, snapshot)

    async def _wait_for_answer(self, name: str, process: SimulatedProcess, timeout_s: float) -> None:
        """Wait until the guest is up. Raises `GuestError` after `timeout_s`."""
        await self._wait_for_any(timeout_s, process.ended, process.guest.up)
        if not process.guest.up.is_set():
            raise GuestError(f"the guest agent of {name} did not answer in {timeout_s:g} s")

    async def _wait_for_any(self, seconds: float, *events: asyncio.Event) -> None:
        """Wait for one of the events, at most `seconds`."""
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
