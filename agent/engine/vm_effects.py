"""Effects on VMs: create them, by a boot or from a template, and tear them down until they are confirmed gone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from agent.domain.errors import ErrorOrigin, HearthError
from agent.domain.facts import (
    CloneFailed,
    EvidenceFailed,
    StartFailed,
    StrayRemovalFailed,
    StrayRemoved,
    TeardownFailed,
    TemplateStartFailed,
    VmCloned,
    VmRemoved,
)
from agent.domain.model import Cause
from agent.domain.states import VmState
from agent.engine.effect_context import bounded
from agent.hypervisors.contract import SlotsTakenError, VmSpec

if TYPE_CHECKING:
    from pathlib import Path

    from agent.domain.actions import CreateVm, DestroyVm, RemoveStray
    from agent.domain.model import Vm
    from agent.engine.effect_context import EffectContext

CLONE_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 120.0
EVIDENCE_TIMEOUT_S: Final = 20.0
TEARDOWN_MARGIN_S: Final = 60.0


class NotGoneError(HearthError):
    """A VM is still listed after its teardown: it leaks its slot."""

    code = "not-gone"


async def create(context: EffectContext, action: CreateVm) -> None:
    """Clone and start a VM: from its template if it has one, and by a boot if that fails."""
    if action.template is not None and await _start_from_template(context, action, action.template):
        return
    spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
    began_s = time.monotonic()
    try:
        await _clone(context, spec, action.image, None)
    except (HearthError, OSError) as error:
        is_unfit = isinstance(error, HearthError) and error.origin is ErrorOrigin.IMAGE
        cause = Cause.IMAGE_UNFIT if is_unfit else Cause.CLONE_FAILED
        await context.record(CloneFailed(action.vm, cause, str(error)))
        return
    state = await context.record(VmCloned(action.vm, "boot", time.monotonic() - began_s))
    vm = state.vms.get(action.vm)
    if vm is None or vm.state is not VmState.STARTING:
        return  # its teardown was recorded during the clone
    try:
        await bounded(context.hypervisor.start(spec), START_TIMEOUT_S, "the start")
    except (HearthError, OSError) as error:
        await context.record(StartFailed(action.vm, start_cause(error, Cause.START_FAILED), str(error)))


async def destroy(context: EffectContext, action: DestroyVm) -> None:
    """Tear a VM down; its record stays until it is confirmed gone."""
    vm = context.store.state.vms.get(action.vm)
    if vm is None:
        return
    began_s = time.monotonic()
    try:
        if action.evidence:
            await _collect_evidence(context, vm)
        await _remove(context, vm.name, grace_s=0.0 if vm.failure else vm.stop_grace_s)
    except (HearthError, OSError) as error:
        await context.record(TeardownFailed(vm.name, str(error)))
        return
    await context.record(VmRemoved(vm.name, time.monotonic() - began_s))


async def remove_stray(context: EffectContext, action: RemoveStray) -> None:
    """Remove a VM with a name of ours that is not in the journal."""
    try:
        await _remove(context, action.vm, grace_s=0.0)
    except (HearthError, OSError) as error:
        await context.record(StrayRemovalFailed(action.vm, str(error)))
        return
    await context.record(StrayRemoved(action.vm))


def start_cause(error: Exception, otherwise: Cause) -> Cause:
    """Return why a VM could not run: `SLOTS_TAKEN` if VMs of other owners hold the slots, else `otherwise`."""
    return Cause.SLOTS_TAKEN if isinstance(error, SlotsTakenError) else otherwise


async def _clone(context: EffectContext, spec: VmSpec, image: str, template: str | None) -> None:
    local = await bounded(context.images.local(image), CLONE_TIMEOUT_S, "the image lookup")
    await bounded(context.hypervisor.clone(spec, local, template=template), CLONE_TIMEOUT_S, "the clone")


async def _start_from_template(context: EffectContext, action: CreateVm, template: str) -> bool:
    """Start a VM from a template; return False if it must boot instead.

    Its record stays in `creating` until it runs, so that the exit of its process on a failed attempt does not fail it.
    """
    spec = VmSpec(action.vm, action.pool.size, action.pool.ports)
    began_s = time.monotonic()
    try:
        await _clone(context, spec, action.image, template)
        await bounded(context.hypervisor.start(spec), START_TIMEOUT_S, "the start from a template")
    except (HearthError, OSError) as error:
        return not await _undo_template_start(context, action, template, error)
    await context.record(VmCloned(action.vm, "template", time.monotonic() - began_s))
    return True


async def _undo_template_start(context: EffectContext, action: CreateVm, template: str, error: Exception) -> bool:
    """Remove a VM that did not start from its template; return whether it can boot now."""
    await context.record(TemplateStartFailed(action.vm, template, str(error)))
    try:
        await _remove(context, action.vm, grace_s=0.0)
    except (HearthError, OSError) as undo_error:
        await context.record(CloneFailed(action.vm, Cause.CLONE_FAILED, str(undo_error)))
        return False
    return True


async def _remove(context: EffectContext, name: str, *, grace_s: float) -> None:
    """Stop and delete a VM, and confirm that the hypervisor does not list it any more. Raises `NotGoneError`."""
    hypervisor = context.hypervisor
    await bounded(hypervisor.stop(name, grace_s=grace_s), grace_s + TEARDOWN_MARGIN_S, "the stop")
    await bounded(hypervisor.delete(name), TEARDOWN_MARGIN_S, "the deletion")
    listed = await bounded(hypervisor.inventory(), TEARDOWN_MARGIN_S, "the inventory")
    if any(seen.name == name for seen in listed):
        raise NotGoneError(
            f"{name} is still listed after its deletion",
            remedy="the agent retries automatically; check the VM's processes if it stays",
        )


async def _collect_evidence(context: EffectContext, vm: Vm) -> None:
    """Collect the evidence of a failed VM. If that fails, the VM is torn down nevertheless."""

    async def collect(into: Path) -> None:
        await bounded(context.hypervisor.evidence(vm.name, into), EVIDENCE_TIMEOUT_S, "the collection of evidence")

    try:
        await bounded(context.evidence.keep(vm, collect), 2 * EVIDENCE_TIMEOUT_S, "the storage of evidence")
    except (HearthError, OSError) as error:
        await context.record(EvidenceFailed(vm.name, str(error)))
