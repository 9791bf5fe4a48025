"""What each planned action writes to the journal before anything is done. No I/O but the transaction."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.actions import CreateVm, DestroyVm, ExpireLease, MarkFailed, NotifyHolder, ResumeVm, SuspendVm
from agent.domain.breaker import Breaker
from agent.domain.events import EventKind
from agent.domain.failure_attribution import FREE_FAILURES, blamed_for_failure, blamed_for_leak, free_failures
from agent.domain.model import Lease, Vm
from agent.domain.rollout import Rollout, record_failure
from agent.domain.states import VmEvent, VmState
from agent.engine.leases import end_lease

if TYPE_CHECKING:
    from agent.domain.actions import Action
    from agent.domain.model import Failure
    from agent.engine.state_store import Transaction


def intend(transaction: Transaction, action: Action, *, jitter: float) -> None:
    """Write the intent of one action; `jitter` is 0 to 1."""
    match action:
        case CreateVm(name, pool, image, template):
            now_s, grace_s = transaction.now_s, pool.stop_grace_s
            transaction.put(
                Vm(
                    name, pool.name, image, VmState.CREATING, pool.size, created_at_s=now_s, since_s=now_s,
                    stop_grace_s=grace_s, template=template,
                )
            )  # fmt: skip
            transaction.event(EventKind.VM_CREATING, vm=name, pool=pool.name, image=image)
            if pool.standby:
                _pay_what_is_owed(transaction, pool.name)
        case SuspendVm() | ResumeVm():
            _intend_memory(transaction, action)
        case DestroyVm() | MarkFailed() | NotifyHolder():
            vm = transaction.get(Vm, action.vm)
            if vm is not None:
                _intend_with(transaction, vm, action, jitter=jitter)
        case ExpireLease(lease_id):
            lease = transaction.get(Lease, lease_id)
            if lease is not None:
                end_lease(transaction, lease, EventKind.LEASE_EXPIRED, detail=f"of {lease.holder}")


def _intend_with(
    transaction: Transaction, vm: Vm, action: DestroyVm | MarkFailed | NotifyHolder, *, jitter: float
) -> None:
    match action:
        case DestroyVm(_, reason) if vm.state is not VmState.STOPPING:
            intend_teardown(transaction, vm, reason)
        case MarkFailed(_, failure):
            fail_vm(transaction, vm, failure, jitter=jitter)
        case NotifyHolder(_, failure):
            tell_holder(transaction, vm, failure)


def _intend_memory(transaction: Transaction, action: SuspendVm | ResumeVm) -> None:
    vm = transaction.get(Vm, action.vm)
    if vm is None:
        return
    if isinstance(action, SuspendVm):
        transaction.move(vm, VmEvent.SUSPEND, replacement_due=action.replacement_due)
        kind = EventKind.VM_SUSPENDING
    else:
        transaction.move(vm, VmEvent.RESUME, replacement_due=False)
        kind = EventKind.VM_RESUMING
    transaction.event(kind, vm=vm.name, pool=vm.pool, image=vm.image)


def _pay_what_is_owed(transaction: Transaction, pool: str) -> None:
    """Write that the VM a pool is owed for one it suspended is being made: that one may be resumed at any time now."""
    for vm in transaction.all(Vm):
        if vm.pool == pool and vm.replacement_due:
            transaction.put(replace(vm, replacement_due=False))


def intend_teardown(transaction: Transaction, vm: Vm, reason: str) -> None:
    """Write that a VM is to be torn down, and why."""
    transaction.move(vm, VmEvent.TEARDOWN)
    transaction.event(EventKind.VM_STOPPING, vm=vm.name, pool=vm.pool, image=vm.image, detail=reason)


def tell_holder(transaction: Transaction, vm: Vm, failure: Failure) -> None:
    """Write that a leased VM is unhealthy: its holder is told, and judges."""
    transaction.put(replace(vm, reported_failure=failure))
    transaction.event(
        EventKind.VM_UNHEALTHY_WHILE_LEASED,
        vm=vm.name, pool=vm.pool, lease=vm.lease_id, cause=failure.cause, detail=failure.reason,
    )  # fmt: skip


def fail_vm(transaction: Transaction, vm: Vm, failure: Failure, *, jitter: float) -> None:
    """Write that a VM failed, and what follows: its lease breaks, its version or the host is held to account."""
    failed = transaction.move(vm, VmEvent.FAIL, failure=failure, lease_id=None)
    transaction.event(
        EventKind.VM_FAILED,
        vm=vm.name, pool=vm.pool, image=vm.image, cause=failure.cause, detail=failure.reason,
    )  # fmt: skip
    if vm.lease_id is not None:
        transaction.drop(Lease, vm.lease_id)
        transaction.event(
            EventKind.LEASE_BROKEN,
            lease=vm.lease_id, vm=vm.name, pool=vm.pool, cause=failure.cause, detail=failure.reason,
        )  # fmt: skip
    rollout = transaction.get(Rollout, vm.pool)
    if rollout is not None:
        transaction.put(record_failure(rollout, failed))
    blamed = blamed_for_failure(vm, failure, transaction.all(Rollout), transaction.all(Breaker))
    for key in blamed:
        transaction.trip(key, reason=failure.reason, jitter=jitter, free=free_failures(key, vm))


def note_leak(transaction: Transaction, vm: str, *, reason: str, jitter: float) -> None:
    """Write that a VM could not be torn down: it is left alone for a while, and so is a host that leaks several."""
    for key in blamed_for_leak(vm, transaction.all(Breaker), transaction.now_s):
        transaction.trip(key, reason=reason, jitter=jitter, free=0 if key == vm else FREE_FAILURES)
