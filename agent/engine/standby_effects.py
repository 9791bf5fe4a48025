"""Effects on saved memories: standby VMs, and the templates that new VMs are started from."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from agent.domain.breaker import Breaker
from agent.domain.errors import HearthError
from agent.domain.events import EventKind
from agent.domain.model import Cause, Failure, Vm
from agent.domain.states import VmEvent, VmState
from agent.engine.intents import fail_vm
from agent.engine.outside import bounded
from agent.hypervisors.contract import VmSpec

if TYPE_CHECKING:
    from agent.domain.actions import ResumeVm, SaveTemplate
    from agent.engine.outside import Outside

MEMORY_TIMEOUT_S: Final = 300.0
"""Memory is gigabytes, and the disk may be slow."""


async def suspend(outside: Outside, name: str) -> None:
    """Put a VM on standby. One that cannot be suspended has failed: nobody can tell what state it is in."""
    began_s = time.monotonic()
    try:
        await bounded(outside.hypervisor.suspend(name), MEMORY_TIMEOUT_S, "the suspension")
    except (HearthError, OSError) as error:
        await _fail(outside, name, VmState.SUSPENDING, Cause.SUSPEND_FAILED, error)
        return
    async with outside.ledger.transaction() as transaction:
        vm = transaction.get(Vm, name)
        if vm is not None and vm.state is VmState.SUSPENDING:
            transaction.move(vm, VmEvent.SUSPENDED)
            transaction.event(
                EventKind.VM_STANDBY, vm=name, pool=vm.pool, image=vm.image, duration_s=time.monotonic() - began_s
            )


async def resume(outside: Outside, action: ResumeVm) -> None:
    """Bring a standby VM back; its startup probes prove it anew."""
    spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
    try:
        await bounded(outside.hypervisor.resume(spec), MEMORY_TIMEOUT_S, "the resumption")
    except (HearthError, OSError) as error:
        await _fail(outside, action.vm, VmState.RESUMING, Cause.RESUME_FAILED, error)


async def save_template(outside: Outside, action: SaveTemplate) -> None:
    """Keep the memory of a ready VM. One that cannot be kept costs nothing but the boots it would have saved."""
    began_s = time.monotonic()
    try:
        saving = outside.hypervisor.save_template(action.vm, action.template)
        await bounded(saving, MEMORY_TIMEOUT_S, "saving the memory")
    except (HearthError, OSError) as error:
        async with outside.ledger.transaction() as transaction:
            transaction.trip(action.template, reason=str(error), jitter=1.0)
            transaction.event(EventKind.TEMPLATE_FAILED, vm=action.vm, detail=str(error))
        return
    async with outside.ledger.transaction() as transaction:
        transaction.event(
            EventKind.TEMPLATE_SAVED, vm=action.vm, detail=action.template, duration_s=time.monotonic() - began_s
        )


async def drop_template(outside: Outside, template: str) -> None:
    """Remove a saved memory."""
    try:
        await bounded(outside.hypervisor.drop_template(template), MEMORY_TIMEOUT_S, "removing the memory")
    except (HearthError, OSError) as error:
        async with outside.ledger.transaction() as transaction:
            transaction.trip(template, reason=str(error), jitter=outside.jitter())
            transaction.event(EventKind.TEMPLATE_FAILED, detail=str(error))
        return
    async with outside.ledger.transaction() as transaction:
        transaction.drop(Breaker, template)
        transaction.event(EventKind.TEMPLATE_DROPPED, detail=template)


async def _fail(outside: Outside, name: str, state: VmState, cause: Cause, error: Exception) -> None:
    async with outside.ledger.transaction() as transaction:
        vm = transaction.get(Vm, name)
        if vm is not None and vm.state is state:
            fail_vm(transaction, vm, Failure(cause, str(error), transaction.now_s), jitter=outside.jitter())
