"""What facts about VMs change: planned actions, ends of effects, probes, process exits and adoptions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent.domain import facts
from agent.domain.breaker import Breaker, BreakerKey, Scope
from agent.domain.events import EventKind
from agent.domain.failure_attribution import breakers_to_trip, breakers_to_trip_for_leak, free_failures
from agent.domain.model import Cause, Failure, Lease, Vm
from agent.domain.rollout import Rollout, count_version_failure
from agent.domain.states import ALIVE, AWAITS_PROBES, RUNNING, VmEvent, VmState
from agent.domain.text import clip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain import actions
    from agent.domain.draft import Draft


# -- consequences that several facts share


def fail_vm(draft: Draft, vm: Vm, cause: Cause, reason: str) -> None:
    """Mark a VM failed, break its lease, and count the failure for its rollout and breakers."""
    failure = Failure(cause, clip(reason), draft.now_s)
    draft.move(vm, VmEvent.FAIL, failure=failure, lease_id=None)
    draft.vm_event(EventKind.VM_FAILED, vm, cause=cause, detail=reason)
    if vm.lease_id is not None:
        broken = draft.get(Lease, vm.lease_id)
        draft.drop(Lease, vm.lease_id)
        draft.event(
            EventKind.LEASE_BROKEN,
            lease=vm.lease_id, owner=broken and broken.owner, vm=vm.name, pool=vm.pool, cause=cause, detail=reason,
        )  # fmt: skip
    pool_rollout = draft.get(Rollout, vm.pool)
    if pool_rollout is not None:
        draft.put(count_version_failure(pool_rollout, vm, failure))
    serving = {rollout.serving for rollout in draft.all(Rollout) if rollout.serving}
    for key in breakers_to_trip(vm, failure, serving, draft.all(Breaker)):
        draft.trip(key, reason, free=free_failures(key))


def notify_holder(draft: Draft, vm: Vm, cause: Cause, reason: str) -> None:
    """Report a failure to the holder of a leased VM. The VM is not touched while its lease lives."""
    draft.put(replace(vm, reported_failure=Failure(cause, clip(reason), draft.now_s)))
    lease = draft.get(Lease, vm.lease_id) if vm.lease_id else None
    draft.event(
        EventKind.VM_UNHEALTHY_WHILE_LEASED,
        vm=vm.name, pool=vm.pool, lease=vm.lease_id, owner=lease and lease.owner, cause=cause, detail=reason,
    )  # fmt: skip


def count_leak(draft: Draft, vm: str, reason: str) -> None:
    for key in breakers_to_trip_for_leak(vm, draft.all(Breaker), draft.now_s):
        draft.trip(key, reason, free=free_failures(key))


# -- actions of a plan, recorded before they start


def mark_failed(draft: Draft, action: actions.MarkFailed) -> None:
    vm = draft.get(Vm, action.vm)
    if vm is not None:
        fail_vm(draft, vm, action.failure.cause, action.failure.reason)


def notify_of_failure(draft: Draft, action: actions.NotifyHolder) -> None:
    vm = draft.get(Vm, action.vm)
    if vm is not None:
        notify_holder(draft, vm, action.failure.cause, action.failure.reason)


def create_vm(draft: Draft, action: actions.CreateVm) -> None:
    pool = action.pool
    vm = Vm(
        action.vm, pool.name, action.image, VmState.CREATING, pool.size, draft.now_s, draft.now_s,
        stop_grace_s=pool.stop_grace_s, template=action.template,
    )  # fmt: skip
    draft.put(vm)
    draft.vm_event(EventKind.VM_CREATING, vm)
    for other in draft.all(Vm) if pool.standby else ():
        if other.pool == pool.name and other.replacement_due:  # this VM is the replacement
            draft.put(replace(other, replacement_due=False))


def suspend_vm(draft: Draft, action: actions.SuspendVm) -> None:
    vm = draft.get(Vm, action.vm)
    if vm is not None:
        draft.move(vm, VmEvent.SUSPEND, replacement_due=action.replacement_due)
        draft.vm_event(EventKind.VM_SUSPENDING, vm)


def resume_vm(draft: Draft, action: actions.ResumeVm) -> None:
    vm = draft.get(Vm, action.vm)
    if vm is not None:
        draft.move(vm, VmEvent.RESUME, replacement_due=False)
        draft.vm_event(EventKind.VM_RESUMING, vm)


def destroy_vm(draft: Draft, action: actions.DestroyVm) -> None:
    vm = draft.get(Vm, action.vm)
    if vm is not None and vm.state is not VmState.STOPPING:
        draft.move(vm, VmEvent.TEARDOWN)
        draft.vm_event(EventKind.VM_STOPPING, vm, detail=action.reason)


# -- ends of effects on VMs


def vm_cloned(draft: Draft, fact: facts.VmCloned) -> None:
    vm = draft.get(Vm, fact.vm)
    if vm is not None and vm.state is VmState.CREATING:
        draft.move(vm, VmEvent.CLONED)
        detail = {"boot": "by a boot", "template": "from a template"}[fact.method]
        draft.vm_event(EventKind.VM_STARTING, vm, detail=detail, duration_s=fact.duration_s)


FAILS_IN: Final[Mapping[type[facts.VmEffectFailed], frozenset[VmState]]] = {
    facts.CloneFailed: ALIVE,
    facts.StartFailed: ALIVE,
    facts.SuspendFailed: frozenset({VmState.SUSPENDING}),
    facts.ResumeFailed: frozenset({VmState.RESUMING}),
}
"""The states in which a failed effect fails its VM. In any other state the VM has moved on since."""


def vm_effect_failed(draft: Draft, fact: facts.VmEffectFailed) -> None:
    vm = draft.get(Vm, fact.vm)
    if vm is not None and vm.state in FAILS_IN[type(fact)]:
        fail_vm(draft, vm, fact.cause, fact.reason)


def template_start_failed(draft: Draft, fact: facts.TemplateStartFailed) -> None:
    draft.trip(BreakerKey(Scope.TEMPLATE, fact.template), fact.reason)
    vm = draft.get(Vm, fact.vm)
    if vm is not None:
        draft.put(replace(vm, template=None))
    draft.event(EventKind.VM_RESUME_FAILED, vm=fact.vm, pool=vm.pool if vm else None, detail=fact.reason)


def vm_suspended(draft: Draft, fact: facts.VmSuspended) -> None:
    vm = draft.get(Vm, fact.vm)
    if vm is not None and vm.state is VmState.SUSPENDING:
        draft.move(vm, VmEvent.SUSPENDED)
        draft.vm_event(EventKind.VM_STANDBY, vm, duration_s=fact.duration_s)


def vm_removed(draft: Draft, fact: facts.VmRemoved) -> None:
    vm = draft.get(Vm, fact.vm)
    if vm is not None:
        draft.drop(Vm, fact.vm)
        draft.vm_event(EventKind.VM_GONE, vm, duration_s=fact.duration_s)


def teardown_failed(draft: Draft, fact: facts.TeardownFailed) -> None:
    vm = draft.get(Vm, fact.vm)
    draft.event(EventKind.VM_TEARDOWN_FAILED, vm=fact.vm, pool=vm.pool if vm else None, detail=fact.reason)
    count_leak(draft, fact.vm, fact.reason)


def stray_removed(draft: Draft, fact: facts.StrayRemoved) -> None:
    draft.event(EventKind.STRAY_REMOVED, vm=fact.vm, detail="it was not in the journal")


def stray_removal_failed(draft: Draft, fact: facts.StrayRemovalFailed) -> None:
    draft.event(EventKind.STRAY_REMOVAL_FAILED, vm=fact.vm, detail=fact.reason)
    count_leak(draft, fact.vm, fact.reason)


def evidence_failed(draft: Draft, fact: facts.EvidenceFailed) -> None:
    vm = draft.get(Vm, fact.vm)
    draft.event(EventKind.VM_EVIDENCE_FAILED, vm=fact.vm, pool=vm.pool if vm else None, detail=fact.reason)


# -- reports about VMs


def startup_probes_passed(draft: Draft, fact: facts.StartupProbesPassed) -> None:
    vm = draft.get(Vm, fact.vm)
    if vm is not None and vm.state in AWAITS_PROBES:
        began_s = vm.created_at_s if vm.state is VmState.STARTING else vm.since_s
        draft.move(vm, VmEvent.PROBES_PASSED, ready_at_s=draft.now_s)
        draft.vm_event(EventKind.VM_READY, vm, duration_s=max(0.0, draft.now_s - began_s))


def probe_failed(draft: Draft, fact: facts.ProbeFailed) -> None:
    vm = draft.get(Vm, fact.vm)
    if vm is not None and vm.state is VmState.LEASED:
        notify_holder(draft, vm, fact.cause, fact.reason)
    elif vm is not None and vm.state in RUNNING:
        fail_vm(draft, vm, fact.cause, fact.reason)


def process_exited(draft: Draft, fact: facts.ProcessExited) -> None:
    vm = draft.get(Vm, fact.vm)
    if vm is not None and vm.state in RUNNING:
        code = "" if fact.code is None else f" with code {fact.code}"
        detail = f": {fact.detail}" if fact.detail else ""
        fail_vm(draft, vm, Cause.EXITED, f"its process ended{code}{detail}")


def vm_adopted(draft: Draft, fact: facts.VmAdopted) -> None:
    vm = draft.get(Vm, fact.vm)
    if vm is not None and vm.state in RUNNING:
        draft.vm_event(EventKind.VM_ADOPTED, vm, detail=f"{vm.state}, process {fact.pid}")
