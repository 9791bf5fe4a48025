"""The tart driver: macOS VMs on Macs. Puts its parts in order and holds no policy.

What Tart does that nobody would expect, and what is done about each, stands in docs/mac-contracts.md.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from typing import TYPE_CHECKING, Final

from agent.domain.model import Observed
from agent.domain.names import PREFIX
from agent.hypervisors.contract import (
    Address,
    Capabilities,
    ExecResult,
    FanOutUnsupportedError,
    ForeignVmError,
    GuestError,
    HealthFact,
    HypervisorError,
    HypervisorUnavailableError,
    VmNotFoundError,
    VmNotRunningError,
)
from agent.hypervisors.shell_session import ShellCommand
from agent.hypervisors.tart import guest
from agent.hypervisors.tart.clone import make_clone, remove_vm
from agent.hypervisors.tart.evidence import gather_evidence
from agent.hypervisors.tart.fleet import Fleet
from agent.hypervisors.tart.launch import SlotsLeakedError, explained, spawn, wait_until_up
from agent.hypervisors.tart.layout import LOG, Layout
from agent.hypervisors.tart.processes import is_suspendable
from agent.hypervisors.tart.tool import REMEDY, TartTool
from agent.processes.bounded_output import truncate_log
from agent.processes.command import CommandError, CommandRunner, CommandTimeoutError
from agent.processes.process import kill

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import TartConfig
    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.sessions import ExecSession
    from agent.hypervisors.tart.fleet import RunningVm
    from agent.hypervisors.tart.layout import Record

ASK_S: Final = 5.0
"""How long the guest may take over a request to shut down."""
CUT_S: Final = 3.0
"""How long Tart may take to cut a VM's power before it is killed."""
END_S: Final = 15.0
"""How long a killed `tart run` may take to vanish."""
SAVE_S: Final = 240.0
ADDRESS_S: Final = 5.0
"""How long a guest that has just been started is given to get an address before the question has failed."""
RETRY_S: Final = 0.2
LOG_LIMIT_BYTES: Final = 8 << 20
CONDITION: Final = "SlotsUsable"


class TartHypervisor:
    """Tart as a `Hypervisor`. `records_dir` holds what the agent keeps of each VM; the VMs are in Tart's own home."""

    name: Final = "tart"

    def __init__(
        self,
        config: TartConfig,
        *,
        records_dir: Path,
        prefix: str = PREFIX,
        runner: CommandRunner | None = None,
    ) -> None:
        self._config = config
        self._where = Layout(config.home_path, records_dir, prefix=prefix)
        self._tool = TartTool(config, runner or CommandRunner())
        self._fleet = Fleet(self._where, config.program)
        self._version = ""
        self._leak: SlotsLeakedError | None = None
        self.capabilities = Capabilities(
            execute=True, suspend=config.suspendable, templates=False, counts_foreign_slots=True
        )

    @property
    def version(self) -> str:
        """Tart's version, empty before `preflight`."""
        return self._version

    async def preflight(self) -> None:
        """See `Hypervisor`."""
        try:
            said = (await self._tool.run("--version")).stdout.decode(errors="replace").strip()
        except CommandError as error:
            raise HypervisorUnavailableError(f"Tart does not work here: {error.message}", remedy=REMEDY) from error
        if not re.fullmatch(r"\d+\.\d+\S*|SNAPSHOT", said):
            raise HypervisorUnavailableError(f"{self._tool.program} says its version is {said[:100]!r}", remedy=REMEDY)
        self._version = said

    async def health(self) -> tuple[HealthFact, ...]:
        """See `Hypervisor`: whether the Mac let go of every VM that ended, as its last refusal told."""
        return (HealthFact(CONDITION, "SlotsLeaked", str(self._leak)) if self._leak else HealthFact(CONDITION),)

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._fleet.on_exit(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`. Read from the disk and the process table: `tart list` fails whole for one damaged VM."""
        processes = {vm.name: vm.process.pid for vm in await self._fleet.survey()}
        try:
            return await asyncio.to_thread(self._list, processes)
        except OSError as error:
            raise HypervisorError(f"the VMs in {self._where.home} cannot be listed: {error}") from error

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """See `Hypervisor`."""
        self._only_ours(spec.name)
        if template is not None:
            raise HypervisorError("Tart starts no two VMs from one memory: there are no templates")
        await make_clone(spec, image, self._where, self._tool)

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting what runs succeeds; starting what is suspended boots it."""
        if await self._fleet.find(spec.name) is not None:
            return
        await self._whole(spec.name)
        if await asyncio.to_thread(self._where.suspended, spec.name):
            await self._tool.run("stop", spec.name)  # of a suspended VM: drops its memory
        await self._launch(spec.name)

    async def stop(self, name: str, *, grace_s: float) -> None:
        """See `Hypervisor`. Tart's own stop is a power cut, so the guest is asked first."""
        self._only_ours(name)
        while (vm := await self._fleet.find(name)) is not None:
            deadline_s = time.monotonic() + grace_s
            if grace_s > 0 and not await self._shut_down(vm, deadline_s, patience_s=min(ASK_S, grace_s / 2)):
                await self._cut_power(vm)
            await self._end(vm)

    async def delete(self, name: str) -> None:
        """See `Hypervisor`."""
        self._only_ours(name)
        if vm := await self._fleet.find(name):
            raise HypervisorError(f"{name} still runs as process {vm.process.pid}", remedy="stop it first")
        await remove_vm(name, self._where, self._tool)
        self._fleet.forget(name)

    async def suspend(self, name: str) -> None:
        """See `Hypervisor`. `tart suspend` only sends a signal, which kills a VM that was not made for it."""
        vm = await self._running(name)
        if not await asyncio.to_thread(is_suspendable, vm.process):
            raise HypervisorError(
                f"{name} was started without --suspendable and would not survive it",
                remedy="only macOS guests can be suspended, and only with hypervisor.tart.suspendable",
            )
        await self._tool.run("suspend", name)
        if not await vm.exited_within(SAVE_S):
            await self._end(vm)
            raise HypervisorError(f"{name} did not save its memory in {SAVE_S:g} s and was ended")
        if not await asyncio.to_thread(self._where.suspended, name):
            said = vm.outcome.words if vm.outcome else ""
            raise HypervisorError(f"{name} ended without saving its memory: {said or 'it said nothing'}")

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Tart goes on from the saved memory by itself, and removes it."""
        await self._whole(spec.name)
        if not await asyncio.to_thread(self._where.suspended, spec.name):
            raise HypervisorError(f"{spec.name} has no saved memory to resume from")
        await self.stop(spec.name, grace_s=0)  # a resume that was interrupted half-way
        await self._launch(spec.name)

    async def save_template(self, name: str, template: str) -> None:
        """See `Hypervisor`: never, since of two clones of one memory only the first may keep it."""
        self._only_ours(name)
        raise FanOutUnsupportedError(f"{name} cannot become a template: Tart starts no two VMs from one memory")

    async def templates(self) -> frozenset[str]:
        """See `Hypervisor`."""
        return frozenset()

    async def drop_template(self, template: str) -> None:
        """See `Hypervisor`."""

    async def address(self, name: str) -> Address:
        """See `Hypervisor`. The guest's ports are its own, at its own address."""
        vm = await self._running(name)
        record = await self._whole(name)
        try:
            async with asyncio.timeout(ADDRESS_S):
                while not vm.ip:
                    vm.ip = await guest.find_ip(self._tool, name) or ""
        except TimeoutError:
            raise GuestError(f"{name} has got no address yet") from None
        return Address(vm.ip, {port: port for port in record.ports})

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """See `Hypervisor`. A guest that cannot be reached yet is asked again until its time is up."""
        await self._running(name)
        deadline_s, said = time.monotonic() + timeout_s, ""
        while True:
            try:
                await guest.ping(self._tool, name, timeout_s=max(0.01, deadline_s - time.monotonic()))
            except GuestError as error:
                if not said or not isinstance(error.__cause__, CommandTimeoutError):
                    said = error.message
                if time.monotonic() + 2 * RETRY_S >= deadline_s:
                    raise GuestError(f"{name} did not answer within {timeout_s:g} s: {said}") from error
                await self._running(name)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """See `Hypervisor`."""
        await self._running(name)
        return await guest.execute(self._tool, name, argv, timeout_s=timeout_s)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """See `StreamsExec`."""
        await self._running(name)
        return await ShellCommand.open(guest.way(self._tool, name, stdin=stdin), argv, stdin=stdin)

    async def evidence(self, name: str, into: Path) -> None:
        """See `Hypervisor`."""
        vm = await self._fleet.find(name)
        await gather_evidence(name, self._where, vm, self._fleet.last_exit(name), into)

    async def close(self) -> None:
        """See `Hypervisor`."""
        self._fleet.close()

    def _only_ours(self, name: str) -> None:
        if not self._where.ours(name):
            raise ForeignVmError(f"{name} is not ours to touch")

    def _list(self, processes: dict[str, int]) -> tuple[Observed, ...]:
        names = self._where.names()
        for name in filter(self._where.ours, names):
            truncate_log(self._where.record(name) / LOG, limit_bytes=LOG_LIMIT_BYTES)
        return tuple(self._observed(name, processes.get(name)) for name in sorted(names | processes.keys()))

    def _observed(self, name: str, pid: int | None) -> Observed:
        ours = self._where.ours(name)
        record = self._where.read_record(name) if ours else None
        suspended = pid is None and self._where.suspended(name)
        alive = suspended or pid is not None
        return Observed(
            name,
            ours=ours,
            running=pid is not None,
            pid=pid,
            suspended=suspended,
            image=record.image if record else "",
            damaged=self._where.damage(name, alive=alive) if ours else "",
        )

    async def _whole(self, name: str) -> Record:
        """Return the record of a VM that was cloned to its end."""
        record = await asyncio.to_thread(self._where.read_record, name)
        if record is not None and await asyncio.to_thread(self._where.visible, name):
            return record
        if await asyncio.to_thread(self._where.exists, name):
            raise HypervisorError(f"{name} is only half made", remedy="delete it")
        raise VmNotFoundError(f"there is no VM named {name}")

    async def _running(self, name: str) -> RunningVm:
        if vm := await self._fleet.find(name):
            return vm
        if await asyncio.to_thread(self._where.exists, name):
            raise VmNotRunningError(f"{name} does not run")
        raise VmNotFoundError(f"there is no VM named {name}")

    async def _launch(self, name: str) -> None:
        """Start a VM and wait until Tart has; it goes on from a saved memory if there is one.

        One that ends instead is told by the error alone: as an exit it would be the guest's failure, not the host's.
        """
        try:
            flags = await asyncio.to_thread(self._flags, name)
            vm = await self._fleet.start(name, lambda: spawn(self._tool, name, self._where, flags))
        except OSError as error:
            raise HypervisorError(f"{name} cannot be started: {error}", remedy=REMEDY) from error
        try:
            await wait_until_up(vm, self._where, timeout_s=self._config.command_timeout_s)
        except HypervisorError as error:
            await self._end(vm)
            why = await explained(vm, error, len(await self._fleet.survey()))
            self._leak = why if isinstance(why, SlotsLeakedError) else self._leak
            raise why from error
        except asyncio.CancelledError:
            self._fleet.came_up(vm)
            raise
        self._fleet.came_up(vm)
        if self._leak and len(await self._fleet.survey()) > self._leak.running:
            self._leak = None  # the slot that was refused is there again

    def _flags(self, name: str) -> tuple[str, ...]:
        macos = self._where.config(name).get("os", "darwin") == "darwin"
        suspendable = ("--suspendable",) if self._config.suspendable and macos else ()
        return suspendable + self._config.run_arguments

    async def _shut_down(self, vm: RunningVm, deadline_s: float, *, patience_s: float) -> bool:
        """Ask the guest to shut down and wait for it; return whether it has."""
        asked = await guest.shut_down(self._tool, vm.name, timeout_s=patience_s)
        return await vm.exited_within(deadline_s - time.monotonic() if asked else 0)

    async def _cut_power(self, vm: RunningVm) -> None:
        """Let Tart end the VM; whatever it says, what counts is whether the process ends."""
        try:
            await self._tool.run("stop", f"--timeout={CUT_S:.0f}", vm.name, timeout_s=CUT_S + 2)
        except (HypervisorError, CommandError):
            return
        await vm.exited_within(ASK_S)

    async def _end(self, vm: RunningVm) -> None:
        """Kill `tart run` and return when it is gone; the framework's own process ends with it."""
        kill(vm.process, signal.SIGKILL)
        if not await vm.exited_within(END_S):
            raise HypervisorError(
                f"process {vm.process.pid} of {vm.name} was killed but does not end",
                remedy="the kernel holds it: restart the Mac when it stays",
            )
