"""The tart driver: macOS VMs on Macs. Holds no policy.

docs/mac-contracts.md lists Tart's unexpected behaviour, and what this driver does about each.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final

from agent.domain.model import Observed
from agent.domain.names import PREFIX
from agent.hypervisors.captured_command import capture
from agent.hypervisors.contract import (
    Address,
    Capabilities,
    ExecResult,
    GuestError,
    HealthFact,
    HypervisorError,
    HypervisorUnavailableError,
    VmNotFoundError,
    WithoutTemplates,
)
from agent.hypervisors.running import require_ours
from agent.hypervisors.shell_session import ShellExecSession
from agent.hypervisors.tart import guest
from agent.hypervisors.tart.clone import make_clone, remove_vm
from agent.hypervisors.tart.evidence import gather_evidence
from agent.hypervisors.tart.layout import LOG, TartLayout
from agent.hypervisors.tart.processes import is_suspendable
from agent.hypervisors.tart.running import TartRunningVms
from agent.hypervisors.tart.startup import SlotsLeakedError, explain_start_failure, start_process, wait_until_started
from agent.hypervisors.tart.tool import REMEDY, TartTool
from agent.processes.bounded_output import truncate_log
from agent.processes.command import CommandError, CommandRunner, CommandTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import TartConfig
    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.sessions import ExecSession
    from agent.hypervisors.tart.layout import TartVmRecord
    from agent.hypervisors.tart.running import TartRunningVm

SHUTDOWN_REQUEST_S: Final = 5.0
"""How long the guest may take to accept a shutdown request, and a VM to exit after `tart stop`."""
POWER_CUT_S: Final = 3.0
"""How long `tart stop` may take to end a VM before the driver kills it."""
SAVE_S: Final = 240.0
ADDRESS_S: Final = 5.0
"""How long a guest that was just started may take to get an address before `address` fails."""
RETRY_S: Final = 0.2
LOG_LIMIT_BYTES: Final = 8 << 20
CONDITION: Final = "SlotsUsable"


class TartHypervisor(WithoutTemplates):
    """Tart as a `Hypervisor`. `records_dir` holds the agent's record of each VM; the VMs are in Tart's own home."""

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
        self._where = TartLayout(config.home_path, records_dir, prefix=prefix)
        self._tool = TartTool(config, runner or CommandRunner())
        self._vms = TartRunningVms(self._where, config.program)
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
            version = (await self._tool.run("--version")).stdout.decode(errors="replace").strip()
        except CommandError as error:
            raise HypervisorUnavailableError(f"Tart does not work here: {error.message}", remedy=REMEDY) from error
        if not re.fullmatch(r"\d+\.\d+\S*|SNAPSHOT", version):
            message = f"{self._tool.program} reports an unknown version: {version[:100]!r}"
            raise HypervisorUnavailableError(message, remedy=REMEDY)
        self._version = version

    async def health(self) -> tuple[HealthFact, ...]:
        """See `Hypervisor`. Reports whether the Mac's last refusal to start a VM showed a leaked slot."""
        return (HealthFact(CONDITION, "SlotsLeaked", str(self._leak)) if self._leak else HealthFact(CONDITION),)

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._vms.on_exit(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`. Reads the disk and the process table: one damaged VM makes `tart list` fail as a whole."""
        processes = {vm.name: vm.process.pid for vm in await self._vms.survey()}
        try:
            return await asyncio.to_thread(self._list, processes)
        except OSError as error:
            raise HypervisorError(f"the VMs in {self._where.home} cannot be listed: {error}") from error

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """See `Hypervisor`."""
        require_ours(spec.name, self._where.prefix)
        if template is not None:
            raise HypervisorError(f"there is no template named {template}: Tart cannot start two VMs from one snapshot")
        await make_clone(spec, image, self._where, self._tool)

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting a running VM succeeds; starting a suspended VM boots it."""
        if await self._vms.find(spec.name) is not None:
            return
        await self._require_record(spec.name)
        if await asyncio.to_thread(self._where.is_suspended, spec.name):
            await self._tool.run("stop", spec.name)  # of a suspended VM: deletes its snapshot
        await self._launch(spec.name)

    async def stop(self, name: str, *, grace_s: float) -> None:
        """See `Hypervisor`. `tart stop` cuts the power, so the driver requests a shutdown of the guest first."""
        require_ours(name, self._where.prefix)
        while (vm := await self._vms.find(name)) is not None:
            deadline_s = time.monotonic() + grace_s
            request_s = min(SHUTDOWN_REQUEST_S, grace_s / 2)
            if grace_s > 0 and not await self._shut_down(vm, deadline_s, timeout_s=request_s):
                await self._cut_power(vm)
            await self._vms.end(vm)

    async def delete(self, name: str) -> None:
        """See `Hypervisor`."""
        require_ours(name, self._where.prefix)
        await self._vms.require_stopped(name)
        await remove_vm(name, self._where, self._tool)
        self._vms.forget(name)

    async def suspend(self, name: str) -> None:
        """See `Hypervisor`. `tart suspend` only sends a signal, which kills a VM started without --suspendable."""
        vm = await self._vms.require(name)
        if not await asyncio.to_thread(is_suspendable, vm.process):
            raise HypervisorError(
                f"{name} was started without --suspendable, and a suspend would kill it",
                remedy="only macOS guests can be suspended, and only with hypervisor.tart.suspendable",
            )
        await self._tool.run("suspend", name)
        if not await vm.exited_within(SAVE_S):
            await self._vms.end(vm)
            raise HypervisorError(f"{name} did not save its snapshot in {SAVE_S:g} s and was killed")
        if not await asyncio.to_thread(self._where.is_suspended, name):
            raise HypervisorError(f"{name} ended without saving its snapshot: {vm.last_output}")

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`. `tart run` resumes from the snapshot by itself, and removes it."""
        await self._require_record(spec.name)
        if not await asyncio.to_thread(self._where.is_suspended, spec.name):
            raise HypervisorError(f"{spec.name} has no snapshot to resume from")
        await self.stop(spec.name, grace_s=0)  # ends a resume that was interrupted
        await self._launch(spec.name)

    async def address(self, name: str) -> Address:
        """See `Hypervisor`. Each guest port is the same port at the guest's own address."""
        vm = await self._vms.require(name)
        record = await self._require_record(name)
        try:
            async with asyncio.timeout(ADDRESS_S):
                while not vm.ip:
                    vm.ip = await guest.find_ip(self._tool, name) or ""
        except TimeoutError:
            raise GuestError(f"{name} has no address yet") from None
        return Address(vm.ip, {port: port for port in record.ports})

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """See `Hypervisor`. Retries until the timeout while the guest cannot be reached."""
        await self._vms.require(name)
        deadline_s, reason = time.monotonic() + timeout_s, ""
        while True:
            try:
                await guest.ping(self._tool, name, timeout_s=max(0.01, deadline_s - time.monotonic()))
            except GuestError as error:
                if not reason or not isinstance(error.__cause__, CommandTimeoutError):
                    reason = error.message
                if time.monotonic() + 2 * RETRY_S >= deadline_s:
                    raise GuestError(f"{name} did not answer within {timeout_s:g} s: {reason}") from error
                await self._vms.require(name)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """See `Hypervisor`."""
        await self._vms.require(name)
        return await guest.execute(self._tool, name, capture(argv), timeout_s=timeout_s)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """See `SupportsExecSessions`."""
        await self._vms.require(name)
        return await ShellExecSession.open(guest.exec_transport(self._tool, name, stdin=stdin), argv, stdin=stdin)

    async def evidence(self, name: str, into: Path) -> None:
        """See `Hypervisor`."""
        vm = await self._vms.find(name)
        await gather_evidence(name, self._where, vm, self._vms.last_exit(name), into)

    async def close(self) -> None:
        """See `Hypervisor`."""
        self._vms.close()

    def _list(self, processes: dict[str, int]) -> tuple[Observed, ...]:
        names = self._where.names()
        for name in filter(self._where.is_ours, names):
            truncate_log(self._where.record(name) / LOG, limit_bytes=LOG_LIMIT_BYTES)
        return tuple(self._observed(name, processes.get(name)) for name in sorted(names | processes.keys()))

    def _observed(self, name: str, pid: int | None) -> Observed:
        ours = self._where.is_ours(name) and self._where.has_record(name)
        record = self._where.read_record(name) if ours else None
        suspended = pid is None and self._where.is_suspended(name)
        alive = suspended or pid is not None
        return Observed(
            name,
            ours=ours,
            running=pid is not None,
            pid=pid,
            suspended=suspended,
            image=record.image if record else "",
            damaged=self._where.damage(name, alive=alive) if self._where.is_ours(name) else "",
        )

    async def _require_record(self, name: str) -> TartVmRecord:
        """Return the record of a completely cloned VM. Raises `HypervisorError`."""
        record = await asyncio.to_thread(self._where.read_record, name)
        if record is not None and await asyncio.to_thread(self._where.is_visible, name):
            return record
        if await asyncio.to_thread(self._where.exists, name):
            raise HypervisorError(f"the clone {name} is incomplete", remedy="delete it")
        raise VmNotFoundError(f"there is no VM named {name}")

    async def _launch(self, name: str) -> None:
        """Start a VM, resuming from its snapshot if there is one, and return once `tart run` has started it.

        A VM that ends instead is reported by the error alone: listeners would attribute its exit to the guest.
        """
        try:
            flags = await asyncio.to_thread(self._flags, name)
            vm = await self._vms.start(name, lambda: start_process(self._tool, name, self._where, flags))
        except OSError as error:
            raise HypervisorError(f"{name} cannot be started: {error}", remedy=REMEDY) from error
        try:
            await wait_until_started(vm, self._where, timeout_s=self._config.command_timeout_s)
        except HypervisorError as error:
            await self._vms.end(vm)
            raise await self._start_error(vm, error) from error
        except asyncio.CancelledError:
            self._vms.mark_started(vm)
            raise
        self._vms.mark_started(vm)
        if self._leak and len(await self._vms.survey()) > self._leak.running:
            self._leak = None  # the leaked slot was freed

    async def _start_error(self, vm: TartRunningVm, error: HypervisorError) -> HypervisorError:
        reason = await explain_start_failure(vm, error, len(await self._vms.survey()))
        if isinstance(reason, SlotsLeakedError):
            self._leak = reason
        return reason

    def _flags(self, name: str) -> tuple[str, ...]:
        is_macos = self._where.config(name).get("os", "darwin") == "darwin"
        suspendable = ("--suspendable",) if self._config.suspendable and is_macos else ()
        return suspendable + self._config.run_arguments

    async def _shut_down(self, vm: TartRunningVm, deadline_s: float, *, timeout_s: float) -> bool:
        """Request a shutdown of the guest and wait for the exit. Returns whether the VM exited."""
        is_accepted = await guest.shut_down(self._tool, vm.name, timeout_s=timeout_s)
        return await vm.exited_within(deadline_s - time.monotonic() if is_accepted else 0)

    async def _cut_power(self, vm: TartRunningVm) -> None:
        """Run `tart stop`. Its result is ignored: what counts is whether the process ends."""
        try:
            await self._tool.run("stop", f"--timeout={POWER_CUT_S:.0f}", vm.name, timeout_s=POWER_CUT_S + 2)
        except (HypervisorError, CommandError):
            return
        await vm.exited_within(SHUTDOWN_REQUEST_S)
