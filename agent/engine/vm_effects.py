"""Effects on VMs: creating them, by a boot or from a template, and tearing them down until they are proven gone."""

from __future__ import annotations

import time
from dataclasses import replace
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
    from pathlib import Path

    from agent.domain.actions import CreateVm
    from agent.engine.outside import Outside

CLONE_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 120.0
EVIDENCE_TIMEOUT_S: Final = 20.0
TEARDOWN_MARGIN_S: Final = 60.0


class NotGoneError(HearthError):
    """A VM is still listed after its teardown: a leak until it is gone."""

    code = "not-gone"


async def create(outside: Outside, action: CreateVm) -> None:
    """Clone and start a VM: from its template where there is one, and by a boot when that fails."""
    if action.template is not None:
        try:
            await _clone_and_start(outside, action, action.template)
        except (HearthError, OSError) as error:
            await _give_up_template(outside, action, error)
        else:
            return
    try:
        await _clone_and_start(outside, action, None)
    except (HearthError, OSError) as error:
        vm = outside.ledger.vms.get(action.vm)
        cloned = vm is not None and vm.state is VmState.STARTING
        await fail(outside, action.vm, Cause.START_FAILED if cloned else Cause.CLONE_FAILED, error)


async def destroy(outside: Outside, name: str, *, evidence: bool) -> None:
    """Tear a VM down; its row goes only when it is proven gone."""
    vm = outside.ledger.vms.get(name)
    if vm is None:
        return
    began_s = time.monotonic()
    try:
        if evidence:
            await _keep_evidence(outside, vm)
        await _end(outside, name, grace_s=0.0 if vm.failure else vm.stop_grace_s)
    except (HearthError, OSError) as error:
        async with outside.ledger.transaction() as transaction:
            transaction.event(EventKind.VM_TEARDOWN_FAILED, vm=name, pool=vm.pool, detail=str(error))
            transaction.trip(name, reason=str(error), jitter=outside.jitter())
        return
    async with outside.ledger.transaction() as transaction:
        transaction.drop(Vm, name)
        transaction.drop(Breaker, name)
        transaction.event(
            EventKind.VM_GONE, vm=name, pool=vm.pool, image=vm.image, duration_s=time.monotonic() - began_s
        )


async def reap(outside: Outside, name: str) -> None:
    """Remove a VM that carries our name but is in no journal."""
    try:
        await _end(outside, name, grace_s=0.0)
    except (HearthError, OSError) as error:
        async with outside.ledger.transaction() as transaction:
            transaction.event(EventKind.STRAY_REAP_FAILED, vm=name, detail=str(error))
            transaction.trip(name, reason=str(error), jitter=outside.jitter())
        return
    async with outside.ledger.transaction() as transaction:
        transaction.drop(Breaker, name)
        transaction.event(EventKind.STRAY_REAPED, vm=name, detail="it was not in the journal")


async def fail(outside: Outside, name: str, cause: Cause, error: Exception) -> None:
    """Write that a living VM failed."""
    async with outside.ledger.transaction() as transaction:
        vm = transaction.get(Vm, name)
        if vm is not None and vm.alive:
            fail_vm(transaction, vm, Failure(cause, str(error), transaction.now_s), jitter=outside.jitter())


async def _clone_and_start(outside: Outside, action: CreateVm, template: str | None) -> None:
    spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
    began_s = time.monotonic()
    image = await bounded(outside.images.local(action.image), CLONE_TIMEOUT_S, "finding the image")
    await bounded(outside.hypervisor.clone(spec, image, template=template), CLONE_TIMEOUT_S, "the clone")
    async with outside.ledger.transaction() as transaction:
        vm = transaction.get(Vm, action.vm)
        if vm is None or not vm.alive:
            return
        if vm.state is VmState.CREATING:
            transaction.move(vm, VmEvent.CLONED)
            transaction.event(
                EventKind.VM_STARTING,
                vm=vm.name, pool=vm.pool, image=vm.image, detail="from a template" if template else "by a boot",
                duration_s=time.monotonic() - began_s,
            )  # fmt: skip
    await bounded(outside.hypervisor.start(spec), START_TIMEOUT_S, "the start")


async def _give_up_template(outside: Outside, action: CreateVm, error: Exception) -> None:
    """Undo a start from a template, so that the same VM can boot instead; leave the template alone for a while."""
    assert action.template is not None
    async with outside.ledger.transaction() as transaction:
        transaction.trip(action.template, reason=str(error), jitter=outside.jitter())
        transaction.event(EventKind.VM_RESUME_FAILED, vm=action.vm, pool=action.pool.name, detail=str(error))
        vm = transaction.get(Vm, action.vm)
        if vm is not None and vm.alive:
            transaction.put(replace(vm, template=None))
    try:
        await _end(outside, action.vm, grace_s=0.0)
    except (HearthError, OSError) as undoing:
        await fail(outside, action.vm, Cause.START_FAILED, undoing)


async def _end(outside: Outside, name: str, *, grace_s: float) -> None:
    """End a VM and prove it: stopped by the hypervisor's word, its files deleted, and listed no more."""
    hypervisor = outside.hypervisor
    await bounded(hypervisor.stop(name, grace_s=grace_s), grace_s + TEARDOWN_MARGIN_S, "the stop")
    await bounded(hypervisor.delete(name), TEARDOWN_MARGIN_S, "the deletion")
    listed = await bounded(hypervisor.inventory(), TEARDOWN_MARGIN_S, "the inventory")
    if any(seen.name == name for seen in listed):
        raise NotGoneError(f"{name} is still listed after its deletion", remedy="it is retried; see its processes")


async def _keep_evidence(outside: Outside, vm: Vm) -> None:
    """Keep what explains a failure. A VM that cannot be explained is torn down all the same."""

    async def collect(into: Path) -> None:
        await bounded(outside.hypervisor.evidence(vm.name, into), EVIDENCE_TIMEOUT_S, "collecting evidence")

    try:
        await outside.evidence.keep(vm, collect)
    except (HearthError, OSError) as error:
        async with outside.ledger.transaction() as transaction:
            transaction.event(EventKind.VM_EVIDENCE_FAILED, vm=vm.name, pool=vm.pool, detail=str(error))
