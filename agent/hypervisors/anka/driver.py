"""The anka driver: runs `anka` and checks what it reports. Holds no policy.

Numbers A1… are those of docs/mac-contracts.md. VMs are addressed by name: the name carries the VM's identity, and
`anka` accepts it wherever it accepts a UUID.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from agent.anka.command import ENVIRONMENT, Anka, AnkaError, AnkaNotFoundError, AnkaVm
from agent.domain.model import Observed
from agent.domain.names import PREFIX
from agent.hypervisors.anka.clone import make_clone, port_rules
from agent.hypervisors.anka.evidence import default_logs, gather_evidence
from agent.hypervisors.anka.guest import ping_guest, run_in_guest
from agent.hypervisors.anka.license import license_fact
from agent.hypervisors.anka.running import AnkaRunningVms
from agent.hypervisors.anka.vm_records import AnkaVmRecords
from agent.hypervisors.captured_command import capture
from agent.hypervisors.contract import (
    Address,
    Capabilities,
    ExecResult,
    HealthFact,
    HypervisorError,
    HypervisorUnavailableError,
    SlotsTakenError,
    VmExistsError,
    VmNotFoundError,
    WithoutTemplates,
)
from agent.hypervisors.running import is_ours, require_ours, still_runs
from agent.hypervisors.shell_session import SIGNAL_S, GuestTransport, ShellExecSession
from agent.processes.command import CommandError, CommandRunner, CommandTimeoutError, ProgramMissingError
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import AnkaConfig
    from agent.domain.model import LocalImage
    from agent.hypervisors.anka.vm_records import AnkaVmRecord
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.sessions import ExecSession

FORCED_STOP_S: Final = 1.0
"""How long a hypervisor process may run on after `anka stop --force` before it is killed."""
ENDING_S: Final = 5.0
"""How long a hypervisor process may run on after `anka list` reports its VM as stopped."""
LICENSE_PERIOD_S: Final = 60.0
MACOS_SLOTS: Final = 2
SLOTS: Final = "SlotsUsable"


class AnkaHypervisor(WithoutTemplates):
    """Anka as a `Hypervisor`. `records_dir` holds what `anka list` does not report about a VM."""

    name: Final = "anka"
    capabilities: Final = Capabilities(execute=True, suspend=False, templates=False, counts_foreign_slots=True)

    def __init__(
        self, config: AnkaConfig, *, records_dir: Path, prefix: str = PREFIX, runner: CommandRunner | None = None
    ) -> None:
        self._config = config
        self._anka = Anka(config, runner)
        self._records = AnkaVmRecords(records_dir)
        self._prefix = prefix
        self._vms = AnkaRunningVms(self._anka, self._records, prefix=prefix)
        self._logs = config.logs or default_logs()
        self._license: tuple[HealthFact, ...] = ()
        self._license_at_s = float("-inf")
        self._leak: HealthFact | None = None
        self.version = ""

    async def preflight(self) -> None:
        """See `Hypervisor`. Accepts an invalid license, which `health` reports."""
        try:
            body = (await self._anka.query("version")).body
        except ProgramMissingError as error:
            raise HypervisorUnavailableError(error.message, remedy=error.remedy) from error
        except CommandError as error:
            raise HypervisorUnavailableError(f"`anka version` does not work: {error}") from error
        self.version = str(body.get("version", "")) if isinstance(body, dict) else ""

    async def health(self) -> tuple[HealthFact, ...]:
        """See `Hypervisor`. Reports the slots, and the license as read at most `LICENSE_PERIOD_S` ago.

        `anka license show` may contact a server. A problem is read again each time.
        """
        now_s = time.monotonic()
        if now_s - self._license_at_s >= LICENSE_PERIOD_S:
            shown = (await self._anka.query("license", "show")).body
            self._license = (license_fact(shown if isinstance(shown, dict) else {}, datetime.now(UTC)),)
            self._license_at_s = now_s if not self._license[0].reason else float("-inf")
        return (*self._license, self._leak or HealthFact(SLOTS))

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._vms.on_exit(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`. A template that does not run is an image, and not listed."""
        listed = await self._vms.survey()
        records = await self._vms.records()
        observed = [
            self._observed(vm, records)
            for vm in listed
            if is_ours(vm.name, self._prefix) or vm.running or not vm.version
        ]
        observed += [self._observed_omitted(name, records) for name in self._vms.omitted]
        return tuple(sorted(observed, key=lambda vm: vm.name))

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """See `Hypervisor`. A clone shares the layers of its template's tag."""
        require_ours(spec.name, self._prefix)
        if template is not None:
            raise HypervisorError(f"there is no template named {template}: Anka cannot start VMs from a snapshot")
        if await self._find(spec.name) is not None:
            raise VmExistsError(f"a VM named {spec.name} exists")
        try:
            await run_in_thread(lambda: self._records.create(spec.name, image.digest))
            await make_clone(self._anka, spec, image)
            await run_in_thread(lambda: self._records.complete(spec.name))
        except OSError as error:
            raise HypervisorError(f"the record of {spec.name} cannot be written: {error}") from error

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting a running VM succeeds."""
        require_ours(spec.name, self._prefix)
        vm = await self._require(spec.name)
        if vm.running:
            return
        record = (await self._vms.records()).get(spec.name)
        if record is None or not record.made:
            raise HypervisorError(f"{spec.name} cannot be started: its clone is incomplete", remedy="delete it")
        try:
            await self._anka.query("start", spec.name, timeout_s=self._config.start_timeout_s)
        except AnkaError as error:
            raise await self._start_error(spec.name, error) from error
        self._leak = None
        await self._vms.adopt(spec.name)
        if self._vms.get(spec.name) is None:
            raise HypervisorError(f"`anka start` reported that {spec.name} is started, but it does not run")

    async def stop(self, name: str, *, grace_s: float) -> None:
        """See `Hypervisor`. Kills a hypervisor process that `anka stop --force` does not end."""
        require_ours(name, self._prefix)
        if not await self._needs_stop(name):
            return
        if grace_s > 0:
            with suppress(AnkaError, CommandTimeoutError):  # a VM that did not stop is stopped by force below
                await self._anka.query("stop", name, timeout_s=grace_s)
        if await self._needs_stop(name):
            await self._stop_by_force(name)

    async def delete(self, name: str) -> None:
        """See `Hypervisor`."""
        require_ours(name, self._prefix)
        vm = await self._find(name)
        if vm is not None and vm.running:
            raise still_runs(name)
        if vm is not None:
            with suppress(AnkaNotFoundError):
                await self._anka.query("delete", "--yes", name)
            if await self._find(name) is not None:
                raise HypervisorError(f"`anka delete` reported that {name} is deleted, but it is still listed")
        await run_in_thread(lambda: self._records.remove(name))
        self._vms.forget(name)

    async def suspend(self, name: str) -> None:
        """See `Hypervisor`. Refuses: on Apple silicon `anka suspend` stops the VM and loses its memory (A13)."""
        await self._vms.require(name)
        raise HypervisorError(f"{name} cannot be suspended: `anka suspend` only stops VMs on Apple silicon")

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Always raises: there is no snapshot to resume from."""
        raise HypervisorError(f"{spec.name} has no snapshot to resume from")

    async def address(self, name: str) -> Address:
        """See `Hypervisor`. Returns the forwarded ports of this host."""
        vm = await self._vms.require(name)
        if vm.ports is None:
            rules = await port_rules(self._anka, name)
            ports = {rule["guest_port"]: rule["host_port"] for rule in rules if rule.get("host_port")}
            if not ports:
                raise HypervisorError(f"`anka show {name} network` reports no host port yet")
            vm.ports = ports
        return Address(vm.host, dict(vm.ports))

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """See `Hypervisor`."""
        vm = await self._vms.require(name)
        await ping_guest(self._anka, vm, timeout_s=timeout_s)

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """See `Hypervisor`. `anka run` would start a VM that does not run (A16), so that is checked first."""
        await self._vms.require(name)
        return await run_in_guest(self._anka, name, capture(argv), timeout_s=timeout_s)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """See `SupportsExecSessions`. Signals too go only to a VM that runs (A16)."""
        await self._vms.require(name)
        transport = GuestTransport(
            name,
            self._anka.exec_prefix(name),
            ENVIRONMENT,
            lambda command: self.execute(name, command, timeout_s=SIGNAL_S),
        )
        return await ShellExecSession.open(transport, argv, stdin=stdin)

    async def evidence(self, name: str, into: Path) -> None:
        """See `Hypervisor`."""
        await gather_evidence(self._anka, self._logs, name, self._vms.last_exit(name), into)

    async def close(self) -> None:
        """See `Hypervisor`."""
        await self._vms.stop_polling()
        self._vms.close()

    def _observed(self, vm: AnkaVm, records: dict[str, AnkaVmRecord]) -> Observed:
        running = self._vms.get(vm.name)
        return Observed(
            vm.name,
            ours=is_ours(vm.name, self._prefix) and vm.name in records,
            running=vm.running or running is not None,  # whatever the listing reports, its process holds a slot
            pid=running.pid if running else None,
            image=_image_of(vm.name, records),
        )

    def _observed_omitted(self, name: str, records: dict[str, AnkaVmRecord]) -> Observed:
        running = self._vms.get(name)
        return Observed(
            name,
            ours=True,
            running=True,
            pid=running.pid if running else None,
            image=_image_of(name, records),
            damaged="all of its files in Anka's library",
        )

    async def _start_error(self, name: str, error: AnkaError) -> HypervisorError:
        """Return the reason why a VM was not started. Slots can stay taken after their VMs ended (A8)."""
        message, reported = f"{name} cannot be started: {error}", str(error)
        if "maximum number of running instances" not in reported:
            remedy = "it is torn down by `anka stop --force`" if "failed state" in reported else ""
            return HypervisorError(message, remedy=remedy)
        running = sum(vm.running for vm in await self._vms.survey())
        if running >= MACOS_SLOTS:
            return SlotsTakenError(message, remedy="end VMs of other users of this Mac")
        remedy = "a slot leaked: wait until macOS frees it, else restart the Mac"
        message_for_condition = f"Anka starts no VM though only {running} of {MACOS_SLOTS} run: {remedy}"
        self._leak = HealthFact(SLOTS, "SlotsLeaked", message_for_condition)
        return SlotsTakenError(message, remedy=remedy)

    async def _needs_stop(self, name: str) -> bool:
        """Whether a VM runs, or failed: a failed VM keeps its slot until it is stopped (A9)."""
        vm = await self._find(name)
        running = self._vms.get(name)
        if running is not None and vm is not None and not vm.running and await running.exited_within(ENDING_S):
            running = None
        return running is not None or (vm is not None and vm.status not in ("stopped", "suspended"))

    async def _stop_by_force(self, name: str) -> None:
        refusal = await self._run_forced_stop(name)
        running = self._vms.get(name)
        if running is not None and running.process is not None and not await running.exited_within(FORCED_STOP_S):
            await self._vms.end(running)
            refusal = await self._run_forced_stop(name)  # Anka now regards it as failed, and keeps its slot
        vm = await self._find(name)
        if vm is not None and vm.running:
            raise HypervisorError(f"{name} cannot be stopped: {refusal or 'anka reports success, but it runs'}")

    async def _run_forced_stop(self, name: str) -> str:
        """Return why `anka stop --force` failed, empty if it succeeded."""
        try:
            await self._anka.query("stop", "--force", name)
        except (AnkaError, CommandTimeoutError) as error:
            return str(error)
        return ""

    async def _find(self, name: str) -> AnkaVm | None:
        return next((vm for vm in await self._vms.survey() if vm.name == name), None)

    async def _require(self, name: str) -> AnkaVm:
        vm = await self._find(name)
        if vm is None:
            raise VmNotFoundError(f"there is no VM named {name}")
        return vm


def _image_of(name: str, records: dict[str, AnkaVmRecord]) -> str:
    record = records.get(name)
    return record.image if record else ""
