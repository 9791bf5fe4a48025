"""The anka driver: asks `anka` and believes only what it can check. Holds no policy.

Numbers A1… are those of docs/mac-contracts.md. VMs are addressed by name: names carry identity, and `anka` takes them
wherever it takes UUIDs.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from agent.anka.command import ENVIRONMENT, Anka, AnkaError, AnkaNotFoundError, AnkaVm
from agent.domain.errors import HearthError
from agent.domain.model import Observed
from agent.domain.names import PREFIX, parse
from agent.hypervisors.anka.evidence import default_logs, gather_evidence
from agent.hypervisors.anka.fleet import Fleet, RunningVm
from agent.hypervisors.anka.guest import ping_guest, run_in_guest
from agent.hypervisors.anka.license import license_fact
from agent.hypervisors.anka.making import make_vm, port_rules
from agent.hypervisors.anka.records import VmRecord, VmRecords
from agent.hypervisors.contract import (
    Address,
    Capabilities,
    ExecResult,
    FanOutUnsupportedError,
    ForeignVmError,
    HealthFact,
    HypervisorError,
    HypervisorUnavailableError,
    SlotsTakenError,
    VmExistsError,
    VmNotFoundError,
    VmNotRunningError,
)
from agent.hypervisors.shell_session import SIGNAL_S, ShellCommand, Way
from agent.processes.command import CommandError, CommandRunner, CommandTimeoutError, ProgramMissingError
from agent.processes.process import identify, is_alive
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.config import AnkaConfig
    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmExit, VmSpec
    from agent.hypervisors.sessions import ExecSession

log = structlog.get_logger()

END_S: Final = 5.0
"""How long a hypervisor process may take to vanish after its end was asked for."""
POLL_S: Final = 5.0
LICENSE_PERIOD_S: Final = 60.0
MACOS_SLOTS: Final = 2
SLOTS: Final = "SlotsUsable"
OMISSIONS: Final = 3
"""Listings in a row that leave out a VM whose process runs before they are believed: its files are gone then."""


class AnkaHypervisor:
    """Anka as a `Hypervisor`. `records_dir` keeps what `anka list` cannot tell."""

    name: Final = "anka"
    capabilities: Final = Capabilities(execute=True, suspend=False, templates=False, counts_foreign_slots=True)

    def __init__(
        self, config: AnkaConfig, *, records_dir: Path, prefix: str = PREFIX, runner: CommandRunner | None = None
    ) -> None:
        self._config = config
        self._anka = Anka(config, runner)
        self._records = VmRecords(records_dir)
        self._prefix = prefix
        self._fleet = Fleet()
        self._logs = config.logs or default_logs()
        self._poll: asyncio.Task[None] | None = None
        self._license: tuple[HealthFact, ...] = ()
        self._license_at_s = float("-inf")
        self._leak: HealthFact | None = None
        self._recalled = False
        self._omitted: dict[str, int] = {}  # how many listings in a row left out a VM that runs
        self.version = ""

    async def preflight(self) -> None:
        """See `Hypervisor`. A license that is not valid is no reason to stay away: `health` tells of it."""
        try:
            body = (await self._anka.query("version")).body
        except ProgramMissingError as error:
            raise HypervisorUnavailableError(error.message, remedy=error.remedy) from error
        except CommandError as error:
            raise HypervisorUnavailableError(f"`anka version` does not work: {error}") from error
        self.version = str(body.get("version", "")) if isinstance(body, dict) else ""

    async def health(self) -> tuple[HealthFact, ...]:
        """See `Hypervisor`: the slots, and the license, asked for at a slow period since that may go far."""
        now_s = time.monotonic()
        if now_s - self._license_at_s >= LICENSE_PERIOD_S:
            shown = (await self._anka.query("license", "show")).body
            self._license = (license_fact(shown if isinstance(shown, dict) else {}, datetime.now(UTC)),)
            self._license_at_s = now_s if not self._license[0].reason else float("-inf")
        return (*self._license, self._leak or HealthFact(SLOTS))

    def on_exit(self, listener: Callable[[VmExit], None]) -> None:
        """See `Hypervisor`."""
        self._fleet.on_exit(listener)

    async def inventory(self) -> tuple[Observed, ...]:
        """See `Hypervisor`. Templates are images and not listed, unless they run."""
        listed = await self._list()
        records = await self._records_now()
        seen = []
        for vm in listed:
            ours = self._ours(vm.name)
            if not ours and not vm.running and vm.version:
                continue
            running = self._fleet.get(vm.name)
            pid = running.process.pid if running and running.process else None
            record = records.get(vm.name)
            runs = vm.running or running is not None  # whatever is told: its process holds a slot
            seen.append(Observed(vm.name, ours=ours, running=runs, pid=pid, image=record.image if record else ""))
        for name in self._omitted.keys() & self._fleet.names:
            running, record = self._fleet.get(name), records.get(name)
            pid = running.process.pid if running and running.process else None
            image = record.image if record else ""
            seen.append(
                Observed(name, ours=True, running=True, pid=pid, image=image, damaged="all that Anka keeps of it")
            )
        return tuple(sorted(seen, key=lambda one: one.name))

    async def clone(self, spec: VmSpec, image: LocalImage, *, template: str | None = None) -> None:
        """See `Hypervisor`. A clone shares the layers of its template's tag."""
        self._only_ours(spec.name)
        if template is not None:
            raise HypervisorError(f"there is no template named {template}: Anka cannot start VMs from a memory")
        if await self._find(spec.name) is not None:
            raise VmExistsError(f"a VM named {spec.name} exists")
        try:
            await run_in_thread(lambda: self._records.create(spec.name, image.digest))
            await make_vm(self._anka, spec, image)
            await run_in_thread(lambda: self._records.complete(spec.name))
        except OSError as error:
            raise HypervisorError(f"{spec.name} cannot be written down: {error}") from error

    async def start(self, spec: VmSpec) -> None:
        """See `Hypervisor`. Starting what runs succeeds."""
        self._only_ours(spec.name)
        vm = await self._known(spec.name)
        if vm.running:
            return
        record = (await self._records_now()).get(spec.name)
        if record is None or not record.made:
            raise HypervisorError(f"{spec.name} cannot be started: it is only half made", remedy="delete it")
        try:
            await self._anka.query("start", spec.name, timeout_s=self._config.start_timeout_s)
        except AnkaError as error:
            raise await self._refused(spec.name, error) from error
        self._leak = None
        await self._adopt(spec.name)
        if self._fleet.get(spec.name) is None:
            raise HypervisorError(f"`anka start` said that {spec.name} is started, but it does not run")

    async def stop(self, name: str, *, grace_s: float) -> None:
        """See `Hypervisor`. A hypervisor process that `anka stop --force` does not end is killed."""
        self._only_ours(name)
        if not await self._stands(name):
            return
        if grace_s > 0:
            with suppress(AnkaError, CommandTimeoutError):  # it has not stopped then: by force
                await self._anka.query("stop", name, timeout_s=grace_s)
        if await self._stands(name):
            await self._force(name)

    async def delete(self, name: str) -> None:
        """See `Hypervisor`."""
        self._only_ours(name)
        vm = await self._find(name)
        if vm is not None and vm.running:
            raise HypervisorError(f"{name} still runs", remedy="stop it first")
        if vm is not None:
            with suppress(AnkaNotFoundError):
                await self._anka.query("delete", "--yes", name)
            if await self._find(name) is not None:
                raise HypervisorError(f"`anka delete` said that {name} is deleted, but it is still listed")
        await run_in_thread(lambda: self._records.remove(name))
        self._fleet.last_exits.pop(name, None)

    async def suspend(self, name: str) -> None:
        """See `Hypervisor`. Refused: on Apple silicon `anka suspend` stops the VM and loses its memory (A13)."""
        await self._running(name)
        raise HypervisorError(f"{name} cannot be suspended: `anka suspend` only stops VMs on Apple silicon")

    async def resume(self, spec: VmSpec) -> None:
        """See `Hypervisor`. There never is a memory to resume from."""
        raise HypervisorError(f"{spec.name} has no saved memory to resume from")

    async def save_template(self, name: str, template: str) -> None:
        """See `Hypervisor`."""
        raise FanOutUnsupportedError(f"no template {template} can be made of {name}: Anka cannot keep memories")

    async def templates(self) -> frozenset[str]:
        """See `Hypervisor`."""
        return frozenset()

    async def drop_template(self, template: str) -> None:
        """See `Hypervisor`."""

    async def address(self, name: str) -> Address:
        """See `Hypervisor`: the forwarded ports of this host."""
        vm = await self._running(name)
        if vm.ports is None:
            rules = await port_rules(self._anka, name)
            ports = {rule["guest_port"]: rule["host_port"] for rule in rules if rule.get("host_port")}
            if not ports:
                raise HypervisorError(f"`anka show {name} network` tells no host port yet")
            vm.ports = ports
        return Address(vm.host, dict(vm.ports))

    async def ping(self, name: str, *, timeout_s: float) -> None:
        """See `Hypervisor`."""
        vm = await self._running(name)
        await ping_guest(self._anka, vm, timeout_s=timeout_s)

    async def execute(self, name: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """See `Hypervisor`."""
        await self._running(name)
        return await run_in_guest(self._anka, name, argv, timeout_s=timeout_s)

    async def open_exec(self, name: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """See `StreamsExec`. Signals too go only to a VM that runs (A16)."""
        await self._running(name)
        way = Way(
            name, self._anka.exec_prefix(name), ENVIRONMENT, lambda short: self.execute(name, short, timeout_s=SIGNAL_S)
        )
        return await ShellCommand.open(way, argv, stdin=stdin)

    async def evidence(self, name: str, into: Path) -> None:
        """See `Hypervisor`."""
        await gather_evidence(self._anka, self._logs, name, self._fleet.last_exits.get(name), into)

    async def close(self) -> None:
        """See `Hypervisor`."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)
        self._fleet.close()

    def _ours(self, name: str) -> bool:
        return parse(name, prefix=self._prefix) is not None

    def _only_ours(self, name: str) -> None:
        if not self._ours(name):
            raise ForeignVmError(f"{name} is not ours to touch")

    async def _refused(self, name: str, error: AnkaError) -> HypervisorError:
        """Return what it means that a VM was not started. Slots can stay taken after their VMs ended (A8)."""
        message, said = f"{name} cannot be started: {error}", str(error)
        if "maximum number of running instances" not in said:
            remedy = "it is torn down by `anka stop --force`" if "failed state" in said else ""
            return HypervisorError(message, remedy=remedy)
        running = sum(vm.running for vm in await self._list())
        if running >= MACOS_SLOTS:
            return SlotsTakenError(message, remedy="end VMs of other users of this Mac")
        remedy = "a slot leaked: it comes back by itself with time, else by a restart of the Mac"
        self._leak = HealthFact(SLOTS, "SlotsLeaked", f"Anka starts no VM though only {running} of 2 run: {remedy}")
        return SlotsTakenError(message, remedy=remedy)

    async def _stands(self, name: str) -> bool:
        """Whether a VM has to be stopped: it runs, or failed and keeps what it holds until it is stopped (A9)."""
        vm = await self._find(name)
        running = self._fleet.get(name)
        if running is not None and vm is not None and not vm.running and await running.exited_within(END_S):
            running = None  # it was about to end
        return running is not None or (vm is not None and vm.status not in ("stopped", "suspended"))

    async def _force(self, name: str) -> None:
        """End a VM whatever it takes, and return when it does not run."""
        refusal = await self._ask_to_force(name)
        running = self._fleet.get(name)
        if running is not None and running.process is not None and not await running.exited_within(1.0):
            await asyncio.to_thread(running.kill)
            if not await running.exited_within(END_S):
                remedy = "the kernel holds it: restart the host"
                raise HypervisorError(f"process {running.process.pid} of {name} does not end", remedy=remedy)
            refusal = await self._ask_to_force(name)  # Anka takes it for failed, and keeps its slot
        vm = await self._find(name)
        if vm is not None and vm.running:
            raise HypervisorError(f"{name} cannot be stopped: {refusal or 'anka says it is, but it runs'}")

    async def _ask_to_force(self, name: str) -> str:
        """Ask for a stop by force; return why it was refused, if it was."""
        try:
            await self._anka.query("stop", "--force", name)
        except (AnkaError, CommandTimeoutError) as error:
            return str(error)
        return ""

    async def _records_now(self) -> dict[str, VmRecord]:
        try:
            return await asyncio.to_thread(self._records.all)
        except OSError as error:
            raise HypervisorError(f"what is written down of VMs cannot be read: {error}") from error

    async def _list(self) -> tuple[AnkaVm, ...]:
        """List all VMs, adopting and letting go of what runs. Raises when the listing cannot be true."""
        await self._recall()
        began_with = self._fleet.names
        listed = await self._anka.list()
        by_name = {vm.name: vm for vm in listed}
        for name in began_with:
            vm = by_name.get(name)
            if vm is None or not vm.running:
                self._fleet.note_stopped(name)
            if vm is not None or self._fleet.get(name) is None:
                self._omitted.pop(name, None)
                continue
            self._omitted[name] = self._omitted.get(name, 0) + 1
            if self._omitted[name] < OMISSIONS:
                raise HypervisorError(f"`anka list` leaves out {name}, whose process runs: it cannot be believed")
        for vm in listed:
            if vm.running and self._ours(vm.name) and self._fleet.get(vm.name) is None:
                await self._adopt(vm.name)
        return listed

    async def _adopt(self, name: str) -> None:
        """Watch a VM that runs. Raises `HypervisorError` when it does not."""
        try:
            shown = (await self._anka.query("show", name)).body
        except AnkaNotFoundError:
            return  # deleted since it was listed
        if not isinstance(shown, dict) or shown.get("status") != "running":
            return
        pid = shown.get("pid")
        process = await asyncio.to_thread(identify, pid) if isinstance(pid, int) and pid > 0 else None
        self._fleet.add(name, process)
        log.info("vm-process-adopted", vm=name, pid=pid)
        if process is not None:
            try:
                await run_in_thread(lambda: self._records.note_process(name, process))
            except OSError as error:  # only missed if Anka loses the VM and the agent ends, both
                log.warning("vm-process-not-noted", vm=name, error=str(error))
        if process is None and (self._poll is None or self._poll.done()):
            self._poll = asyncio.create_task(self._watch_by_listing(), name="anka-poll")

    async def _recall(self) -> None:
        """Watch, before the first listing, what ran when the agent ended: a listing may have lost it since."""
        if self._recalled:
            return
        for name, record in (await self._records_now()).items():
            process = record.process
            if process is not None and await asyncio.to_thread(is_alive, process):
                self._fleet.add(name, process)
        self._recalled = True

    async def _watch_by_listing(self) -> None:
        """Notice the end of VMs whose process is not known."""
        while self._fleet.unwatched:
            await asyncio.sleep(POLL_S)
            with suppress(HearthError):  # the engine's own looks tell of it
                await self._list()

    async def _find(self, name: str) -> AnkaVm | None:
        return next((vm for vm in await self._list() if vm.name == name), None)

    async def _known(self, name: str) -> AnkaVm:
        vm = await self._find(name)
        if vm is None:
            raise VmNotFoundError(f"there is no VM named {name}")
        return vm

    async def _running(self, name: str) -> RunningVm:
        """Return a VM that runs. `anka run` would start one that does not (A16), so that is made sure of first."""
        running = self._fleet.get(name)
        if running is not None and running.process is not None and is_alive(running.process):
            return running
        await self._known(name)
        running = self._fleet.get(name)
        if running is None:
            raise VmNotRunningError(f"{name} does not run")
        return running
