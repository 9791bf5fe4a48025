"""What commands of operators, assignments and advanced rollouts change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.breaker import Breaker, BreakerKey, Scope
from agent.domain.errors import (
    NothingToRetryError,
    NothingToUndoError,
    PoolUnknownError,
    VmLeasedError,
    VmUnknownError,
)
from agent.domain.events import EventKind
from agent.domain.model import Cause, HostMode, Vm
from agent.domain.record_vms import fail_vm
from agent.domain.rollout import Phase, Rollout, retry, undo
from agent.domain.states import VmState

if TYPE_CHECKING:
    from agent.domain import facts
    from agent.domain.draft import Draft


def set_mode(draft: Draft, fact: facts.ModeSet) -> None:
    """Change the mode of the host. The same mode with another reason keeps its start; the same of both changes
    nothing."""
    before = draft.state.mode
    if (before.mode, before.reason) == (fact.mode, fact.reason):
        return
    draft.put(HostMode(fact.mode, before.since_s if before.mode is fact.mode else draft.now_s, fact.reason))
    draft.event(EventKind.HOST_MODE, detail=f"{fact.mode}: {fact.reason}" if fact.reason else str(fact.mode))


def replace_vm(draft: Draft, fact: facts.ReplacementRequested) -> None:
    """Fail a VM on request, so that it is torn down and its pool refilled."""
    vm = draft.get(Vm, fact.vm)
    if vm is None:
        raise VmUnknownError(f"there is no VM {fact.vm!r} on this host", remedy="list its VMs with `hearth vms`")
    if vm.state is VmState.LEASED:
        raise VmLeasedError(f"{vm.name} is leased as {vm.lease_id}", remedy="release that lease instead")
    if vm.is_alive:
        fail_vm(draft, vm, Cause.REQUESTED, fact.reason or "its replacement was requested")


def retry_rollout(draft: Draft, fact: facts.RolloutRetried) -> None:
    """Start another trial of a pool's target: its quarantine and its failures are reset, and its breaker (`RESETS`)."""
    before = _rollout_of(draft, fact.pool)
    breaker = BreakerKey(Scope.IMAGE, before.target) if before.target else None
    if before.phase is Phase.SERVING and (breaker is None or draft.get(Breaker, breaker) is None):
        raise NothingToRetryError(
            f"pool {fact.pool!r} serves {before.target} and nothing delays it",
            remedy="push a new version, or name it in the assignment",
        )
    after = retry(before, draft.now_s)
    draft.put(after)
    draft.event(EventKind.ROLLOUT, pool=fact.pool, image=after.target, detail=f"{after.phase}: retried")


def undo_rollout(draft: Draft, fact: facts.RolloutUndone) -> None:
    """Return a pool to the version before its target, and quarantine the target."""
    before = _rollout_of(draft, fact.pool)
    after = undo(before, reason=f"undone: {fact.reason}" if fact.reason else "undone", now_s=draft.now_s)
    if after is None:
        raise NothingToUndoError(
            f"pool {fact.pool!r} is {before.phase} and has no version to return to",
            remedy="name the version to serve in the assignment",
        )
    draft.put(after)
    draft.event(EventKind.ROLLOUT, pool=fact.pool, image=after.target, detail=f"{after.phase}: {after.reason}")


def accept_assignment(draft: Draft, fact: facts.AssignmentAccepted) -> None:
    """Store a valid assignment."""
    if draft.state.assignment != fact.stored:
        draft.put(fact.stored)
        draft.event(EventKind.ASSIGNMENT_CHANGED, detail=", ".join(sorted(fact.pools)) or "no pools")


def refuse_assignment(draft: Draft, fact: facts.AssignmentRefused) -> None:
    draft.event(EventKind.ASSIGNMENT_REFUSED, detail=fact.reason)


def advance_rollouts(draft: Draft, fact: facts.RolloutsAdvanced) -> None:
    """Store the rollouts of all assigned pools, and drop those of pools that are not assigned any more."""
    before = draft.state.rollouts
    for removed in before.keys() - {rollout.pool for rollout in fact.rollouts}:
        draft.drop(Rollout, removed)
    for after in fact.rollouts:
        old = before.get(after.pool)
        if old == after:
            continue
        draft.put(after)
        if old is None or (old.phase, old.target) != (after.phase, after.target):
            detail = f"{after.phase}: {after.reason}" if after.reason else str(after.phase)
            draft.event(EventKind.ROLLOUT, pool=after.pool, image=after.target, detail=detail)


def _rollout_of(draft: Draft, pool: str) -> Rollout:
    rollout = draft.get(Rollout, pool)
    if rollout is None:
        raise PoolUnknownError(f"there is no pool {pool!r} on this host", remedy="list its pools with `hearth status`")
    return rollout
