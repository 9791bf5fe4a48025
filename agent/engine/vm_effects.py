"""Effects on VMs: creating them, by a boot or from a template, and tearing them down until they are proven gone."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from agent.domain.breaker import Breaker
from agent.domain.errors import ErrorOrigin, HearthError
from agent.domain.events import EventKind
from agent.domain.model import Cause, Failure, Vm
from agent.domain.states import VmEvent, VmState
from agent.engine.effect_context import bounded
from agent.engine.intents import fail_vm, note_leak
from agent.hypervisors.contract import SlotsTakenError, VmSpec

if TYPE_CHECKING:
    from pathlib import Path

    from agent.domain.actions import CreateVm
    from agent.engine.effect_context import EffectContext
    from agent.engine.state_store import Transaction

CLONE_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 120.0
EVIDENCE_TIMEOUT_S: Final = 20.0
TEARDOWN_MARGIN_S: Final = 60.0


class NotGoneError(HearthError):
    """A VM is still listed after its teardown: a leak until it is gone."""

    code = "not-gone"


async def create(context: EffectContext, action: CreateVm) -> None:
    """Clone and start a VM: from its template where there is one, and by a boot when that fails."""
    if action.template is not None and await _from_template(context, action, action.template):
        return
    spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
    began_s = time.monotonic()
    try:
        await _clone(context, spec, action.image, None)
    except (HearthError, OSError) as error:
        unfit = isinstance(error, HearthError) and error.origin is ErrorOrigin.IMAGE
        await fail(context, action.vm, Cause.IMAGE_UNFIT if unfit else Cause.CLONE_FAILED, error)
        return
    cloned = partial(_cloned, name=action.vm, how="by a boot", took_s=time.monotonic() - began_s)
    if not await context.record(cloned):
        return
    try:
        await bounded(context.hypervisor.start(spec), START_TIMEOUT_S, "the start")
    except (HearthError, OSError) as error:
        await fail(context, action.vm, cause_of(error, Cause.START_FAILED), error)


async def destroy(context: EffectContext, name: str, *, evidence: bool) -> None:
    """Tear a VM down; its row goes only when it is proven gone."""
    vm = context.store.vms.get(name)
    if vm is None:
        return
    began_s = time.monotonic()
    try:
        if evidence:
            await _keep_evidence(context, vm)
        await _end(context, name, grace_s=0.0 if vm.failure else vm.stop_grace_s)
    except (HearthError, OSError) as error:
        await context.record(partial(_leaked, context, EventKind.VM_TEARDOWN_FAILED, name, vm.pool, str(error)))
        return
    took_s = time.monotonic() - began_s

    def gone(transaction: Transaction) -> None:
        transaction.drop(Vm, name)
        transaction.drop(Breaker, name)
        transaction.event(EventKind.VM_GONE, vm=name, pool=vm.pool, image=vm.image, duration_s=took_s)

    await context.record(gone)


async def reap(context: EffectContext, name: str) -> None:
    """Remove a VM that carries our name but is in no journal."""
    try:
        await _end(context, name, grace_s=0.0)
    except (HearthError, OSError) as error:
        await context.record(partial(_leaked, context, EventKind.STRAY_REMOVAL_FAILED, name, None, str(error)))
        return

    def reaped(transaction: Transaction) -> None:
        transaction.drop(Breaker, name)
        transaction.event(EventKind.STRAY_REMOVED, vm=name, detail="it was not in the journal")

    await context.record(reaped)


async def fail(
    context: EffectContext, name: str, cause: Cause, error: Exception, *, only_in: VmState | None = None
) -> None:
    """Write that a living VM failed; `only_in` spares it in any other state."""

    def failed(transaction: Transaction) -> None:
        vm = transaction.get(Vm, name)
        if vm is not None and vm.alive and only_in in (None, vm.state):
            fail_vm(transaction, vm, Failure(cause, str(error), transaction.now_s), jitter=context.jitter())

    await context.record(failed)


def cause_of(error: Exception, otherwise: Cause) -> Cause:
    """Return why a VM could not run: somebody else's VMs where the host says so."""
    return Cause.SLOTS_TAKEN if isinstance(error, SlotsTakenError) else otherwise


async def _clone(context: EffectContext, spec: VmSpec, image: str, template: str | None) -> None:
    local = await bounded(context.images.local(image), CLONE_TIMEOUT_S, "finding the image")
    await bounded(context.hypervisor.clone(spec, local, template=template), CLONE_TIMEOUT_S, "the clone")


def _cloned(transaction: Transaction, *, name: str, how: str, took_s: float) -> bool:
    """Write that a VM is made; return whether it is still wanted."""
    vm = transaction.get(Vm, name)
    if vm is None or vm.state is not VmState.CREATING:
        return False
    transaction.move(vm, VmEvent.CLONED)
    transaction.event(EventKind.VM_STARTING, vm=name, pool=vm.pool, image=vm.image, detail=how, duration_s=took_s)
    return True


def _leaked(
    context: EffectContext, kind: EventKind, name: str, pool: str | None, reason: str, transaction: Transaction
) -> None:
    """Write that a VM could not be torn down."""
    transaction.event(kind, vm=name, pool=pool, detail=reason)
    note_leak(transaction, name, reason=reason, jitter=context.jitter())


async def _from_template(context: EffectContext, action: CreateVm, template: str) -> bool:
    """Start a VM from a memory; return whether it is done with, one way or the other.

    It counts as being created until it runs, so that the end of its process on a failed try is no failure of the VM.
    """
    spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
    began_s = time.monotonic()
    try:
        await _clone(context, spec, action.image, template)
        await bounded(context.hypervisor.start(spec), START_TIMEOUT_S, "the start from a template")
    except (HearthError, OSError) as error:
        return not await _give_up_template(context, action, template, error)
    took_s = time.monotonic() - began_s
    await context.record(partial(_cloned, name=action.vm, how="from a template", took_s=took_s))
    return True


async def _give_up_template(context: EffectContext, action: CreateVm, template: str, error: Exception) -> bool:
    """Undo a start from a template and leave the template alone for a while; return whether the VM can boot now."""

    def given_up(transaction: Transaction) -> None:
        transaction.trip(template, reason=str(error), jitter=context.jitter())
        transaction.event(EventKind.VM_RESUME_FAILED, vm=action.vm, pool=action.pool.name, detail=str(error))
        vm = transaction.get(Vm, action.vm)
        if vm is not None:
            transaction.put(replace(vm, template=None))

    await context.record(given_up)
    try:
        await _end(context, action.vm, grace_s=0.0)
    except (HearthError, OSError) as undoing:
        await fail(context, action.vm, Cause.CLONE_FAILED, undoing)
        return False
    return True


async def _end(context: EffectContext, name: str, *, grace_s: float) -> None:
    """End a VM and prove it: stopped by the hypervisor's word, its files deleted, and listed no more."""
    hypervisor = context.hypervisor
    await bounded(hypervisor.stop(name, grace_s=grace_s), grace_s + TEARDOWN_MARGIN_S, "the stop")
    await bounded(hypervisor.delete(name), TEARDOWN_MARGIN_S, "the deletion")
    listed = await bounded(hypervisor.inventory(), TEARDOWN_MARGIN_S, "the inventory")
    if any(seen.name == name for seen in listed):
        raise NotGoneError(f"{name} is still listed after its deletion", remedy="it is retried; see its processes")


async def _keep_evidence(context: EffectContext, vm: Vm) -> None:
    """Keep what explains a failure. A VM that cannot be explained is torn down all the same."""

    async def collect(into: Path) -> None:
        await bounded(context.hypervisor.evidence(vm.name, into), EVIDENCE_TIMEOUT_S, "collecting evidence")

    try:
        await context.evidence.keep(vm, collect)
    except (HearthError, OSError) as error:
        reason = str(error)

        def unexplained(transaction: Transaction) -> None:
            transaction.event(EventKind.VM_EVIDENCE_FAILED, vm=vm.name, pool=vm.pool, detail=reason)

        await context.record(unexplained)
