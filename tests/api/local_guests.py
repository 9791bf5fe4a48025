"""A simulated hypervisor with guests that run commands as processes of this machine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.hypervisors.contract import Address, Capabilities, ExecResult, GuestError, HypervisorError, VmSpec
from agent.hypervisors.simulated import SimulatedHost, SimulatedHypervisor
from tests.api.local_command import LocalCommand

if TYPE_CHECKING:
    from agent.domain.model import Observed, Vm

PORTS = {22: 40022, 8080: 48080}


class LocalGuests(SimulatedHypervisor):
    """The driver. Set `address_hangs`, `exec_delay` or `inventory_error` to make it fail."""

    def __init__(self) -> None:
        capabilities = Capabilities(execute=True, suspend=False, templates=False, counts_foreign_slots=True)
        self.host = SimulatedHost(capabilities=capabilities)
        super().__init__(self.host)
        self.inventory_error = ""
        self.address_hangs = False
        self.address_requested = asyncio.Event()
        self.exec_delay: asyncio.Event | None = None  # commands start when it is set
        self.exec_requested = asyncio.Event()
        self.executed: list[tuple[str, tuple[str, ...]]] = []
        self.sessions: list[LocalCommand] = []
        self.session_closed = asyncio.Event()

    async def run_vm(self, vm: Vm) -> None:
        """Run the guest of a VM that a test wrote to the journal."""
        if vm.name not in self.host.vms:
            self.host.add(VmSpec(vm.name, vm.size, tuple(PORTS)), vm.image).is_complete = True
        simulated = self.host.vms[vm.name]
        if simulated.process is None:
            await self.host.boot(simulated)
            _, process = self._require_running(vm.name)
            process.guest.ports = PORTS
            process.guest.up.set()

    async def inventory(self) -> tuple[Observed, ...]:
        if self.inventory_error:
            raise HypervisorError(self.inventory_error)
        return await super().inventory()

    async def address(self, name: str) -> Address:
        self.address_requested.set()
        if self.address_hangs:
            await asyncio.Event().wait()
        return await super().address(name)

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        await self._note_exec(name, argv)
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(timeout_s):
                stdout, stderr = await process.communicate()
        except TimeoutError:
            raise GuestError(f"{name} did not end `{argv[0]}` within {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return ExecResult(process.returncode or 0, stdout, stderr)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> LocalCommand:
        await self._note_exec(name, argv)
        self.sessions.append(await LocalCommand.start(argv, stdin=stdin, closed=self.session_closed))
        return self.sessions[-1]

    async def _note_exec(self, name: str, argv: tuple[str, ...]) -> None:
        self._require_running(name)
        self.executed.append((name, argv))
        self.exec_requested.set()
        if self.exec_delay is not None:
            await self.exec_delay.wait()
