"""Updates of a VM from probes, process exits and replacement requests.

Each piece of news is one transaction on the VM's row; the next turn of the loop draws the consequences.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Final

import structlog

from agent.domain.errors import ErrorOrigin, HearthError
from agent.domain.events import EventKind
from agent.domain.model import Cause, Failure, Vm
from agent.domain.states import RUNNING, UNPROVEN, VmEvent, VmState
from agent.engine.database import JournalError
from agent.engine.intents import fail_vm, tell_holder

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.health import Unhealthy
    from agent.engine.state_store import StateStore
    from agent.hypervisors.contract import VmExit

log = structlog.get_logger()

RETRY_S: Final = 1.0


class VmUnknownError(HearthError):
    """No VM of that name is ours."""

    code = "vm-not-found"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class VmLeasedError(HearthError):
    """A leased VM is never touched while its lease lives."""

    code = "vm-leased"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class VmUpdates:
    """Writes news about VMs into the store and wakes the loop."""

    def __init__(self, store: StateStore, *, jitter: Callable[[], float], awake: asyncio.Event) -> None:
        self._store = store
        self._jitter = jitter
        self._awake = awake
        self._exits: asyncio.Queue[VmExit] = asyncio.Queue()
        self._ended: set[str] = set()

    async def proven(self, vm: str) -> None:
        """All startup probes of a VM passed: it is ready."""
        async with self._store.transaction() as transaction:
            known = transaction.get(Vm, vm)
            if known is None or known.state not in UNPROVEN:
                return
            now_s = transaction.now_s
            began_s = known.created_at_s if known.state is VmState.STARTING else known.since_s
            transaction.move(known, VmEvent.PROVEN, ready_at_s=now_s)
            transaction.event(
                EventKind.VM_READY,
                vm=vm, pool=known.pool, image=known.image, duration_s=max(0.0, now_s - began_s),
            )  # fmt: skip
        self._awake.set()

    async def unhealthy(self, vm: str, unhealthy: Unhealthy) -> None:
        """Probes say that a VM must be replaced. While it is leased its holder is to judge that, and is only told."""
        async with self._store.transaction() as transaction:
            known = transaction.get(Vm, vm)
            if known is None:
                return
            failure = Failure(unhealthy.cause, unhealthy.reason, transaction.now_s)
            if known.state is VmState.LEASED:
                tell_holder(transaction, known, failure)
            elif known.state in RUNNING:
                fail_vm(transaction, known, failure, jitter=self._jitter())
        self._awake.set()

    async def replace(self, vm: str, *, reason: str) -> None:
        """Fail a VM on request, so that it is torn down and the pool refills.

        Raises `VmUnknownError`, or `VmLeasedError` while it is leased.
        """
        async with self._store.transaction() as transaction:
            known = transaction.get(Vm, vm)
            if known is None:
                raise VmUnknownError(f"there is no VM {vm!r} on this host", remedy="see `hearth vms` for its VMs")
            if known.state is VmState.LEASED:
                raise VmLeasedError(f"{vm} is leased as {known.lease_id}", remedy="release that lease instead")
            if known.alive:
                failure = Failure(Cause.REQUESTED, reason or "its replacement was requested", transaction.now_s)
                fail_vm(transaction, known, failure, jitter=self._jitter())
        self._awake.set()

    def note_exit(self, gone: VmExit) -> None:
        """Take note that a VM's process ended; called by the driver on the event loop."""
        self._ended.add(gone.name)
        self._exits.put_nowait(gone)

    @property
    def ended(self) -> frozenset[str]:
        """The VMs whose process ended, though that is not written down yet: nobody may get one of them."""
        return frozenset(self._ended)

    async def follow_exits(self) -> None:
        """Write down exits in the order they are noted, each until it is written, until cancelled."""
        while True:
            gone = await self._exits.get()
            while True:
                if await self._write_exit(gone):
                    break
                await asyncio.sleep(RETRY_S)
            self._ended.discard(gone.name)

    async def _write_exit(self, gone: VmExit) -> bool:
        try:
            await self._exited(gone)
        except JournalError as error:
            log.error("exit-not-written", vm=gone.name, error=str(error))  # noqa: TRY400 - the message says it all
            return False
        return True

    async def _exited(self, gone: VmExit) -> None:
        async with self._store.transaction() as transaction:
            known = transaction.get(Vm, gone.name)
            if known is None or known.state not in RUNNING:
                return
            code = "" if gone.code is None else f" with code {gone.code}"
            reason = f"its process ended{code}" + (f": {gone.detail}" if gone.detail else "")
            fail_vm(transaction, known, Failure(Cause.EXITED, reason, transaction.now_s), jitter=self._jitter())
        self._awake.set()
