"""How a new image version takes over a pool: pulled, proven on one VM, then rolled through, or rolled back.

Pure: the planner advances the rollout record from what it sees; the record is kept in the journal. The version that
serves changes only once one VM of the new version is proven, so a bad version can never empty a pool.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent.domain.model import Cause
from agent.domain.states import VmState

if TYPE_CHECKING:
    from agent.domain.model import PoolSpec, Vm, World


class Phase(StrEnum):
    """Where a rollout is."""

    PULLING = "pulling"
    CANARY = "canary"
    PROMOTING = "promoting"
    SERVING = "serving"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class Rollout:
    """The versions of one pool, as digests.

    `target` is what the assignment asks for, `serving` the last proven version, `previous` the one that served before
    it and is kept for rolling back. `quarantined` versions failed here and are not tried again. `without_since_s` is
    `fairness`'s: since when the pool lacks VMs it wants without being given one; None while it does not.
    """

    pool: str
    target: str | None
    serving: str | None
    phase: Phase
    since_s: float
    previous: str | None = None
    failures: int = 0  # VMs of the target that failed since the rollout began
    reason: str = ""
    quarantined: tuple[str, ...] = ()
    without_since_s: float | None = None


JUDGED_PHASES: Final = frozenset({Phase.CANARY, Phase.PROMOTING})
_BLAMELESS: Final = frozenset(
    {
        Cause.REQUESTED,
        Cause.INTERRUPTED,
        Cause.CLONE_FAILED,
        Cause.SUSPEND_FAILED,
        Cause.RESUME_FAILED,
        Cause.DAMAGED,
        Cause.SLOTS_TAKEN,
    }
)
"""Causes that say nothing about the image."""


def advance(rollout: Rollout | None, pool: PoolSpec, wanted: str | None, world: World) -> Rollout:
    """Return the rollout of `pool` after one look. `wanted` is the digest its reference means, if that is known."""
    if rollout is None:
        rollout = Rollout(pool.name, wanted, None, Phase.PULLING, world.now_s)
    elif wanted is not None and wanted != rollout.target:
        rollout = _retarget(rollout, wanted, world.now_s)
    vms = (vm for vm in world.vms if vm.pool == pool.name)  # looked at in few phases only
    match rollout.phase:
        case Phase.PULLING if rollout.target and world.has_image(rollout.target):
            proven_before = rollout.target in (rollout.serving, rollout.previous)
            return _enter(rollout, Phase.PROMOTING if proven_before else Phase.CANARY, world.now_s)
        case Phase.CANARY if rollout.failures >= pool.canary_attempts:
            return _roll_back(rollout, rollout.serving, world.now_s)
        case Phase.PROMOTING if rollout.failures >= pool.canary_attempts and rollout.previous:
            # With nothing to go back to, the breaker slows the retries instead: some VMs beat none.
            return _roll_back(rollout, rollout.previous, world.now_s)
        case Phase.CANARY if any(_proven(vm, rollout.target) for vm in vms):
            return _enter(rollout, Phase.PROMOTING, world.now_s)
        case Phase.PROMOTING if not any(_outdated(vm, rollout.target) for vm in vms):
            return _enter(rollout, Phase.SERVING, world.now_s)
    return rollout


def record_failure(rollout: Rollout, vm: Vm) -> Rollout:
    """Return the rollout after `vm` failed: a failure of the version on trial counts against it."""
    on_trial = rollout.phase in JUDGED_PHASES and vm.image == rollout.target
    if not on_trial or vm.failure is None or vm.failure.cause in _BLAMELESS:
        return rollout
    return replace(rollout, failures=rollout.failures + 1, reason=f"{vm.failure.cause}: {vm.failure.reason}")


def retry(rollout: Rollout, now_s: float) -> Rollout:
    """Return the rollout with its target on trial anew: no longer quarantined, its failures forgotten."""
    if rollout.phase is Phase.SERVING:
        return rollout
    fresh = replace(rollout, failures=0, reason="", since_s=now_s)
    if rollout.phase is not Phase.ROLLED_BACK:
        return fresh
    quarantined = tuple(digest for digest in rollout.quarantined if digest != rollout.target)
    return replace(fresh, phase=Phase.PULLING, quarantined=quarantined)


def undo(rollout: Rollout, *, reason: str, now_s: float) -> Rollout | None:
    """Return the rollout with the version before the target serving again and the target quarantined.

    That is the one that still serves while the target is not proven, and the previous one after. None when there is
    no such version, or it serves already.
    """
    last_good = rollout.previous if rollout.serving == rollout.target else rollout.serving
    if last_good is None or rollout.phase is Phase.ROLLED_BACK:
        return None
    return replace(_roll_back(rollout, last_good, now_s), reason=reason)


def needed_images(rollout: Rollout) -> frozenset[str]:
    """Return the image versions that must stay on this host for this rollout, the one to roll back to included."""
    return frozenset(digest for digest in (rollout.target, rollout.serving, rollout.previous) if digest)


def _retarget(rollout: Rollout, wanted: str, now_s: float) -> Rollout:
    fresh = replace(rollout, target=wanted, failures=0, reason="", since_s=now_s)
    if wanted in rollout.quarantined:
        return replace(fresh, phase=Phase.ROLLED_BACK, reason="this version failed here before and is quarantined")
    return replace(fresh, phase=Phase.PULLING)


def _enter(rollout: Rollout, phase: Phase, now_s: float) -> Rollout:
    entered = replace(rollout, phase=phase, since_s=now_s)
    if phase is Phase.PROMOTING and rollout.serving != rollout.target:
        return replace(entered, serving=rollout.target, previous=rollout.serving)
    return entered


def _roll_back(rollout: Rollout, last_good: str | None, now_s: float) -> Rollout:
    """Serve the last good version again and quarantine the target."""
    return replace(
        rollout,
        phase=Phase.ROLLED_BACK,
        serving=last_good,
        previous=rollout.previous if rollout.previous != last_good else None,
        since_s=now_s,
        quarantined=(*rollout.quarantined, *filter(None, [rollout.target])),
    )


def _proven(vm: Vm, target: str | None) -> bool:
    return vm.image == target and vm.state in (VmState.READY, VmState.LEASED)


def _outdated(vm: Vm, target: str | None) -> bool:
    """Whether a VM of another version still has to make way. A leased one ends with its lease, in its own time."""
    return vm.image != target and vm.holds_slot and vm.state is not VmState.LEASED
