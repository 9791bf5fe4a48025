"""Updates of VMs from probes, process exits and replacement requests.

Each update is one transaction; the next reconcile pass acts on it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.facts import ProbeFailed, ProcessExited, ReplacementRequested, StartupProbesPassed
from agent.engine.schema import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.facts import Fact
    from agent.domain.health import Unhealthy
    from agent.engine.state_store import StateStore
    from agent.hypervisors.contract import VmExit

log = structlog.get_logger()

RETRY_S: Final = 1.0


class VmUpdates:
    """Records what is reported about VMs and wakes the reconciler."""

    def __init__(self, store: StateStore, *, wake: Callable[[], None]) -> None:
        self._store = store
        self._wake = wake
        self._exits: asyncio.Queue[VmExit] = asyncio.Queue()
        self._exited: set[str] = set()

    async def startup_passed(self, vm: str) -> None:
        """Record that all startup probes of a VM passed: it is ready."""
        await self._record(StartupProbesPassed(vm))

    async def unhealthy(self, vm: str, unhealthy: Unhealthy) -> None:
        """Record that probes found a VM unhealthy: it fails, or the holder of its lease is notified."""
        await self._record(ProbeFailed(vm, unhealthy.cause, unhealthy.reason))

    async def replace(self, vm: str, *, reason: str) -> None:
        """Fail a VM on request, so that it is torn down and its pool refilled.

        Raises `VmUnknownError`, and `VmLeasedError` while it is leased.
        """
        await self._record(ReplacementRequested(vm, reason))

    def queue_exit(self, vm_exit: VmExit) -> None:
        """Queue the end of a VM's process for `follow_exits`. The driver calls it on the event loop."""
        self._exited.add(vm_exit.name)
        self._exits.put_nowait(vm_exit)

    @property
    def exited(self) -> frozenset[str]:
        """The VMs with an ended process that the journal does not record yet: none of them may be leased."""
        return frozenset(self._exited)

    async def follow_exits(self) -> None:
        """Record queued exits in order, each until the journal accepts it. Runs until cancelled."""
        while True:
            vm_exit = await self._exits.get()
            await self._record_exit(vm_exit)
            self._exited.discard(vm_exit.name)

    async def _record_exit(self, vm_exit: VmExit) -> None:
        while True:
            try:
                return await self._record(ProcessExited(vm_exit.name, vm_exit.code, vm_exit.detail))
            except JournalError as error:
                log.error("exit-not-written", vm=vm_exit.name, error=str(error))  # noqa: TRY400 - it is complete
            await asyncio.sleep(RETRY_S)

    async def _record(self, fact: Fact) -> None:
        await self._store.record(fact)
        self._wake()
