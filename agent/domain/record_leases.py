"""What grants, renewals, releases and expiries of leases change."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.errors import LeaseNotFoundError
from agent.domain.events import EventKind
from agent.domain.model import Lease, Vm
from agent.domain.states import VmEvent, VmState

if TYPE_CHECKING:
    from agent.domain import actions, facts
    from agent.domain.draft import Draft


def end_lease(draft: Draft, lease: Lease, kind: EventKind, *, detail: str = "") -> None:
    """End a lease and tear down its VM: a VM is leased once."""
    draft.drop(Lease, lease.id)
    draft.event(kind, lease=lease.id, owner=lease.owner, vm=lease.vm, pool=lease.pool, detail=detail)
    vm = draft.get(Vm, lease.vm)
    if vm is not None and vm.state is VmState.LEASED:
        draft.move(vm, VmEvent.TEARDOWN, lease_id=None)
        draft.vm_event(EventKind.VM_STOPPING, vm, detail="its lease ended")


def grant_lease(draft: Draft, fact: actions.GrantLease | facts.VmGranted) -> None:
    """Lease a ready VM to a request. The VM is not granted if it is not ready any more."""
    vm, request = draft.get(Vm, fact.vm), fact.request
    if vm is None or vm.state is not VmState.READY:
        return
    lease = Lease(
        id=request.id, pool=request.pool, vm=vm.name, holder=request.holder, ttl_s=request.ttl_s,
        created_at_s=draft.now_s, expires_at_s=draft.now_s + request.ttl_s, idempotency_key=request.idempotency_key,
        max_ttl_s=request.max_ttl_s, probes=request.probes, owner=request.owner,
    )  # fmt: skip
    draft.put(lease)
    draft.move(vm, VmEvent.LEASE, lease_id=lease.id)
    waited_s = max(0.0, draft.now_s - request.since_s)
    draft.event(
        EventKind.LEASE_GRANTED,
        lease=lease.id, owner=lease.owner, vm=vm.name, pool=lease.pool,
        detail=f"to {lease.holder}", duration_s=waited_s,
    )  # fmt: skip


def expire_lease(draft: Draft, action: actions.ExpireLease) -> None:
    lease = draft.get(Lease, action.lease)
    if lease is not None:
        end_lease(draft, lease, EventKind.LEASE_EXPIRED, detail=f"of {lease.holder}")


def renew_lease(draft: Draft, fact: facts.LeaseRenewed) -> None:
    lease = _living_lease(draft, fact.lease)
    draft.put(replace(lease, ttl_s=fact.ttl_s, expires_at_s=draft.now_s + fact.ttl_s))
    draft.event(EventKind.LEASE_RENEWED, lease=lease.id, owner=lease.owner, vm=lease.vm, pool=lease.pool)


def release_lease(draft: Draft, fact: facts.LeaseReleased) -> None:
    end_lease(draft, _living_lease(draft, fact.lease), EventKind.LEASE_RELEASED)


def _living_lease(draft: Draft, lease_id: str) -> Lease:
    lease = draft.get(Lease, lease_id)
    if lease is None:
        raise LeaseNotFoundError(f"there is no lease {lease_id!r} on this host", remedy="request a new lease")
    return lease
