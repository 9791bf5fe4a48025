"""Effects on saved memories: standby VMs, and the templates that new VMs are started from."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from agent.domain.breaker import Breaker
from agent.domain.errors import HearthError
from agent.domain.events import EventKind
from agent.domain.model import Cause, Vm
from agent.domain.states import VmEvent, VmState
from agent.engine.effect_context import bounded
from agent.engine.vm_effects import cause_of, fail
from agent.hypervisors.contract import VmSpec

if TYPE_CHECKING:
    from agent.domain.actions import ResumeVm, SaveTemplate
    from agent.engine.effect_context import EffectContext
    from agent.engine.state_store import Transaction

MEMORY_TIMEOUT_S: Final = 300.0
"""Memory is gigabytes, and the disk may be slow."""


async def suspend(context: EffectContext, name: str) -> None:
    """Put a VM on standby. One that cannot be suspended has failed: nobody can tell what state it is in."""
    began_s = time.monotonic()
    try:
        await bounded(context.hypervisor.suspend(name), MEMORY_TIMEOUT_S, "the suspension")
    except (HearthError, OSError) as error:
        await fail(context, name, Cause.SUSPEND_FAILED, error, only_in=VmState.SUSPENDING)
        return
    took_s = time.monotonic() - began_s

    def suspended(transaction: Transaction) -> None:
        vm = transaction.get(Vm, name)
        if vm is not None and vm.state is VmState.SUSPENDING:
            transaction.move(vm, VmEvent.SUSPENDED)
            transaction.event(EventKind.VM_STANDBY, vm=name, pool=vm.pool, image=vm.image, duration_s=took_s)

    await context.record(suspended)


async def resume(context: EffectContext, action: ResumeVm) -> None:
    """Bring a standby VM back; its startup probes prove it anew."""
    spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
    try:
        await bounded(context.hypervisor.resume(spec), MEMORY_TIMEOUT_S, "the resumption")
    except (HearthError, OSError) as error:
        await fail(context, action.vm, cause_of(error, Cause.RESUME_FAILED), error, only_in=VmState.RESUMING)


async def save_template(context: EffectContext, action: SaveTemplate) -> None:
    """Keep the memory of a ready VM. One that cannot be kept costs nothing but the boots it would have saved."""
    began_s = time.monotonic()
    try:
        saving = context.hypervisor.save_template(action.vm, action.template)
        await bounded(saving, MEMORY_TIMEOUT_S, "saving the memory")
    except (HearthError, OSError) as error:
        await context.record(partial(_template_failed, action.template, action.vm, str(error), 1.0))
        return
    took_s = time.monotonic() - began_s

    def saved(transaction: Transaction) -> None:
        transaction.event(EventKind.TEMPLATE_SAVED, vm=action.vm, detail=action.template, duration_s=took_s)

    await context.record(saved)


async def drop_template(context: EffectContext, template: str) -> None:
    """Remove a saved memory."""
    try:
        await bounded(context.hypervisor.drop_template(template), MEMORY_TIMEOUT_S, "removing the memory")
    except (HearthError, OSError) as error:
        await context.record(partial(_template_failed, template, None, str(error), context.jitter()))
        return

    def dropped(transaction: Transaction) -> None:
        transaction.drop(Breaker, template)
        transaction.event(EventKind.TEMPLATE_DROPPED, detail=template)

    await context.record(dropped)


def _template_failed(template: str, vm: str | None, reason: str, jitter: float, transaction: Transaction) -> None:
    transaction.trip(template, reason=reason, jitter=jitter)
    transaction.event(EventKind.TEMPLATE_FAILED, vm=vm, detail=reason)
