"""The running VMs of the anka driver, observed by `anka list`. Numbers A1… are those of docs/mac-contracts.md.

`anka show` of some releases reports the process of a VM (A6). That process is not a child of the agent: its exit code
is not available, but its exit is an event. If the process is not reported, the driver notices exits by polling.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil
import structlog

from agent.anka.command import AnkaNotFoundError
from agent.domain.errors import HearthError
from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.running import RunningVm, RunningVms, is_ours, wait_until_killed
from agent.processes.process import identify, is_alive, kill
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from agent.anka.command import Anka, AnkaVm
    from agent.hypervisors.anka.vm_records import AnkaVmRecord, AnkaVmRecords
    from agent.processes.process import ProcessIdentity

log = structlog.get_logger()

POLL_S: Final = 5.0
OMISSIONS: Final = 3
"""Consecutive listings that must omit a VM whose process runs before the driver accepts that its files are gone."""


@dataclass(slots=True)
class AnkaRunningVm(RunningVm):
    """A running VM. `process` is None if `anka show` does not report it."""

    ports: dict[int, int] | None = None  # host port by guest port, once queried
    host: str = "127.0.0.1"


class AnkaRunningVms(RunningVms[AnkaRunningVm]):
    """All running VMs of this user that this agent made."""

    def __init__(self, anka: Anka, records: AnkaVmRecords, *, prefix: str) -> None:
        super().__init__(prefix=prefix)
        self._anka = anka
        self._records = records
        self._poll: asyncio.Task[None] | None = None
        self._has_restored = False
        self._listed: frozenset[str] = frozenset()
        self._omissions: dict[str, int] = {}  # consecutive listings that omitted a VM that runs

    def get(self, name: str) -> AnkaRunningVm | None:
        """Return a VM that was running at the last survey, without another survey."""
        return self._running.get(name)

    @property
    def omitted(self) -> frozenset[str]:
        """The VMs that run although `anka list` omits them."""
        return frozenset(self._omissions.keys() & self._running.keys())

    async def records(self) -> dict[str, AnkaVmRecord]:
        """Return the records of all VMs by name. Raises `HypervisorError`."""
        try:
            return await asyncio.to_thread(self._records.all)
        except OSError as error:
            raise HypervisorError(f"the records of VMs cannot be read: {error}") from error

    async def survey(self) -> tuple[AnkaVm, ...]:
        """See `RunningVms`. Returns all VMs and templates. Raises if the listing omits a VM whose process runs."""
        await self._restore()
        known = tuple(self._running)
        listed = await self._anka.list()
        by_name = {vm.name: vm for vm in listed}
        self._listed = frozenset(by_name)
        for name in known:
            self._check_listed(name, by_name.get(name))
        for vm in listed:
            if vm.running and is_ours(vm.name, self._prefix) and vm.name not in self._running:
                await self.adopt(vm.name)
        return listed

    async def adopt(self, name: str) -> None:
        """Watch a VM if `anka show` reports that it runs. Raises `AnkaError`."""
        try:
            shown = (await self._anka.query("show", name)).body
        except AnkaNotFoundError:
            return  # deleted since it was listed
        if not isinstance(shown, dict) or shown.get("status") != "running":
            return
        pid = shown.get("pid")
        process = await asyncio.to_thread(identify, pid) if isinstance(pid, int) and pid > 0 else None
        self._track(name, process)
        log.info("vm-process-adopted", vm=name, pid=pid)
        if process is not None:
            await self._record_process(name, process)
        elif self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._poll_listings(), name="anka-poll")

    async def end(self, vm: AnkaRunningVm) -> None:
        """See `RunningVms`. Kills only a process of Anka: the pid is nothing but a number that `anka show` printed."""
        if vm.process is not None and await asyncio.to_thread(_is_anka_process, vm.process.pid):
            kill(vm.process, signal.SIGKILL)
        await wait_until_killed(vm.exited, f"process {vm.pid} of {vm.name}")

    async def stop_polling(self) -> None:
        """Cancel the polling of listings. Call before `close`."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)

    async def _exists(self, name: str) -> bool:
        return name in self._listed

    def _new_vm(self, name: str, process: ProcessIdentity | None) -> AnkaRunningVm:
        return AnkaRunningVm(name, process)

    def _track(self, name: str, process: ProcessIdentity | None) -> None:
        vm = self._running.get(name)
        if vm is None or (process is not None and vm.process != process):
            self._add(name, process)

    def _check_listed(self, name: str, listed: AnkaVm | None) -> None:
        """Compare a VM of the table with the listing: it may have exited, or be omitted."""
        vm = self._running.get(name)
        if vm is not None and (listed is None or not listed.running) and not vm.is_alive:
            self._record_exit(vm, None)
        if listed is not None or name not in self._running:
            self._omissions.pop(name, None)
            return
        self._omissions[name] = self._omissions.get(name, 0) + 1
        if self._omissions[name] < OMISSIONS:
            raise HypervisorError(f"`anka list` omits {name}, whose process runs: the listing is not trusted")

    async def _record_process(self, name: str, process: ProcessIdentity) -> None:
        try:
            await run_in_thread(lambda: self._records.set_process(name, process))
        except OSError as error:  # matters only if Anka loses the VM and the agent restarts too
            log.warning("vm-process-not-recorded", vm=name, error=str(error))

    async def _restore(self) -> None:
        """Before the first listing, watch the processes an earlier agent recorded: the listing may have lost them."""
        if self._has_restored:
            return
        for name, record in (await self.records()).items():
            process = record.process
            if process is not None and await asyncio.to_thread(is_alive, process):
                self._track(name, process)
        self._has_restored = True

    async def _poll_listings(self) -> None:
        """Notice the exit of VMs whose process is not known."""
        while any(vm.process is None for vm in self._running.values()):
            await asyncio.sleep(POLL_S)
            with suppress(HearthError):  # the engine's own observations report it
                await self.survey()


def _is_anka_process(pid: int) -> bool:
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return any("anka" in os.path.basename(argument) for argument in command)
