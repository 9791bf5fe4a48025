"""What each planned action writes to the journal before anything is done. No I/O but the transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.domain.actions import CreateVm, DestroyVm, ExpireLease, MarkFailed, ResumeVm, SuspendVm
from agent.domain.breaker import HOST_BREAKER
from agent.domain.events import EventKind
from agent.domain.model import Cause, Lease, Vm
from agent.domain.rollout import Rollout, record_failure
from agent.domain.states import VmEvent, VmState
from agent.engine.leases import end_lease

if TYPE_CHECKING:
    from agent.domain.actions import Action
    from agent.domain.model import Failure
    from agent.engine.ledger import Transaction

YOUNG_S: Final = 60.0
"""A VM that fails sooner than this after it was proven counts against its image, as one that was never proven does."""
_FREE_FAILURES: Final = 2
"""Failures of one image, or of the host, that are answered at once before the breaker slows the retries."""
_NOT_THE_IMAGES_FAULT: Final = frozenset(
    {
        Cause.REQUESTED,
        Cause.INTERRUPTED,
        Cause.CLONE_FAILED,
        Cause.SUSPEND_FAILED,
        Cause.RESUME_FAILED,
        Cause.LOST,
    }
)


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
        case SuspendVm(name) | ResumeVm(name):
            _intend_memory(transaction, name, suspends=isinstance(action, SuspendVm))
        case DestroyVm(name, reason):
            vm = transaction.get(Vm, name)
            if vm is not None and vm.state is not VmState.STOPPING:
                intend_teardown(transaction, vm, reason)
        case MarkFailed(name, failure):
            vm = transaction.get(Vm, name)
            if vm is not None:
                fail_vm(transaction, vm, failure, jitter=jitter)
        case ExpireLease(lease_id):
            lease = transaction.get(Lease, lease_id)
            if lease is not None:
                end_lease(transaction, lease, EventKind.LEASE_EXPIRED, detail=f"of {lease.holder}")


def _intend_memory(transaction: Transaction, name: str, *, suspends: bool) -> None:
    vm = transaction.get(Vm, name)
    if vm is not None:
        transaction.move(vm, VmEvent.SUSPEND if suspends else VmEvent.RESUME)
        kind = EventKind.VM_SUSPENDING if suspends else EventKind.VM_RESUMING
        transaction.event(kind, vm=name, pool=vm.pool, image=vm.image)


def intend_teardown(transaction: Transaction, vm: Vm, reason: str) -> None:
    """Write that a VM is to be torn down, and why."""
    transaction.move(vm, VmEvent.TEARDOWN)
    transaction.event(EventKind.VM_STOPPING, vm=vm.name, pool=vm.pool, image=vm.image, detail=reason)


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
    if vm.template is not None and vm.ready_at_s is None:
        # It never got to be healthy from a memory that was: the memory is the first suspect, and the next VM boots.
        transaction.trip(vm.template, reason=failure.reason, jitter=jitter)
    elif failure.cause is Cause.CLONE_FAILED:
        transaction.trip(HOST_BREAKER, reason=failure.reason, jitter=jitter, free=_FREE_FAILURES)
    elif _counts_against_image(vm, failure):
        transaction.trip(vm.image, reason=failure.reason, jitter=jitter, free=_FREE_FAILURES)


def _counts_against_image(vm: Vm, failure: Failure) -> bool:
    young = vm.ready_at_s is None or failure.at_s - vm.ready_at_s < YOUNG_S
    return young and failure.cause not in _NOT_THE_IMAGES_FAULT
