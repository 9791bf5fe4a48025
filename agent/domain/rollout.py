"""Rollouts: how a new image version is pulled, tried on one canary VM, and promoted through its pool, or rolled back.

Pure: the planner advances the rollout record of each pool; the record is stored in the journal. The serving version
changes only after the new version has run on one VM for the soak time without a failure, so a bad version never
empties a pool. If the canary fails `canary_attempts` times, or the promoted version fails `rollback_after` times within
an hour, the version is quarantined and the last good one serves again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent.domain.failure_attribution import CAUSES, COUNTS_FOR_ROLLOUT, Attribution, is_young
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.domain.model import Failure, PoolSpec, Vm


class Phase(StrEnum):
    """The phase of a rollout."""

    PULLING = "pulling"
    CANARY = "canary"
    PROMOTING = "promoting"
    SERVING = "serving"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class Rollout:
    """The versions of one pool, as digests.

    `target` is the version the assignment names, `serving` the last one that passed, `previous` the one that served
    before it and is kept for a rollback. `quarantined` versions failed here and are not tried again. `soak_until_s` is
    when the soak of a canary ends; None until one is ready, and after each failure of the target. `short_since_s`
    belongs to `agent.domain.allocation`: since when the pool lacks VMs without being given one; None while it lacks
    none."""

    pool: str
    target: str | None
    serving: str | None
    phase: Phase
    since_s: float
    previous: str | None = None
    failures: int = 0  # VMs of the target that failed since the rollout began
    last_failure_at_s: float | None = None  # of the failures that count
    soak_until_s: float | None = None
    promoted_at_s: float | None = None
    reason: str = ""
    quarantined: tuple[str, ...] = ()
    short_since_s: float | None = None


TRIAL_PHASES: Final = frozenset({Phase.CANARY, Phase.PROMOTING})
"""Phases in which failed VMs of the target count against it."""

MIN_SOAK_S: Final = 60.0
"""The least default soak time."""

WATCH_S: Final = 3600.0
"""Time after its promotion in which a serving version that fails repeatedly is rolled back."""


def advance(
    rollout: Rollout | None,
    pool: PoolSpec,
    digest: str | None,
    *,
    vms: Iterable[Vm],
    has_image: Callable[[str], bool],
    now_s: float,
) -> Rollout:
    """Return the next record of a pool's rollout. `digest` is that of the pool's reference, if it is known."""
    if rollout is None:
        rollout = Rollout(pool.name, digest, None, Phase.PULLING, now_s)
    elif digest is not None and digest != rollout.target:
        rollout = _retarget(rollout, digest, now_s)
    if _has_failed(rollout, pool, now_s):
        return _roll_back(rollout, rollout.serving if rollout.phase is Phase.CANARY else rollout.previous, now_s)
    own_vms = (vm for vm in vms if vm.pool == pool.name)  # lazy: only two phases need them
    match rollout.phase:
        case Phase.PULLING if rollout.target and has_image(rollout.target):
            served_before = rollout.target in (rollout.serving, rollout.previous)
            return _enter(rollout, Phase.PROMOTING if served_before else Phase.CANARY, now_s)
        case Phase.CANARY if any(_passed(vm, rollout.target) for vm in own_vms):
            return _soak(rollout, pool, now_s)
        case Phase.PROMOTING if not any(_is_outdated(vm, rollout.target) for vm in own_vms):
            return _enter(rollout, Phase.SERVING, now_s)
    return rollout


def soak_time_s(pool: PoolSpec) -> float:
    """Return how long a canary must run without a failure: by default twice the time in which a probe notices one."""
    if pool.soak_s is not None:
        return pool.soak_s
    return max(MIN_SOAK_S, 2 * max((probe.period_s * probe.failures for probe in pool.probes), default=0.0))


def count_version_failure(rollout: Rollout, vm: Vm, failure: Failure) -> Rollout:
    """Return the rollout after `vm` failed. `vm` is its record before the failure.

    In a trial phase every failure of a target VM counts against the target. A serving version counts the failures that
    show a defect of the version, see `_repeats_on_version`.
    """
    if vm.image != rollout.target or CAUSES[failure.cause] not in COUNTS_FOR_ROLLOUT:
        return rollout
    if rollout.phase not in TRIAL_PHASES and not _repeats_on_version(rollout, vm, failure):
        return rollout
    return replace(
        rollout,
        failures=rollout.failures + 1,
        reason=f"{failure.cause}: {failure.reason}",
        last_failure_at_s=failure.at_s,
        soak_until_s=None,
    )


def _repeats_on_version(rollout: Rollout, vm: Vm, failure: Failure) -> bool:
    """Whether a failure of a watched serving version counts.

    Failures at the same time count once, because a restart of the host ends all VMs: a VM counts only if it was created
    after the last counted failure. A job can end its own VM: a leased VM counts only soon after it became ready.
    """
    if rollout.phase is not Phase.SERVING or not _is_watched(rollout, failure.at_s):
        return False
    if CAUSES[failure.cause] is not Attribution.IMAGE:
        return False
    is_replacement = rollout.last_failure_at_s is None or vm.created_at_s > rollout.last_failure_at_s
    return is_replacement and (vm.lease_id is None or is_young(vm, failure))


def _has_failed(rollout: Rollout, pool: PoolSpec, now_s: float) -> bool:
    """Whether the target failed often enough for a rollback.

    Without a previous version the image's breaker delays the retries instead: some VMs are better than none.
    """
    match rollout.phase:
        case Phase.CANARY:
            return rollout.failures >= pool.canary_attempts
        case Phase.PROMOTING:
            return rollout.failures >= pool.canary_attempts and rollout.previous is not None
        case Phase.SERVING:
            failed = rollout.failures >= pool.rollback_after and rollout.previous is not None
            return failed and _is_watched(rollout, now_s)
    return False


def _is_watched(rollout: Rollout, now_s: float) -> bool:
    return rollout.promoted_at_s is not None and now_s < rollout.promoted_at_s + WATCH_S


def retry(rollout: Rollout, now_s: float) -> Rollout:
    """Return the rollout with a new trial of its target: not quarantined, without failures."""
    if rollout.phase is Phase.SERVING:
        return rollout
    fresh = replace(rollout, failures=0, reason="", since_s=now_s, last_failure_at_s=None, soak_until_s=None)
    if rollout.phase is not Phase.ROLLED_BACK:
        return fresh
    quarantined = tuple(digest for digest in rollout.quarantined if digest != rollout.target)
    return replace(fresh, phase=Phase.PULLING, quarantined=quarantined)


def undo(rollout: Rollout, *, reason: str, now_s: float) -> Rollout | None:
    """Return the rollout with the version before the target serving, and the target quarantined.

    Before the target passed, that is the serving version; afterwards the previous one. None when there is no such
    version, or it serves already."""
    last_good = rollout.previous if rollout.serving == rollout.target else rollout.serving
    if last_good is None or rollout.phase is Phase.ROLLED_BACK:
        return None
    return replace(_roll_back(rollout, last_good, now_s), reason=reason)


def needed_images(rollout: Rollout) -> frozenset[str]:
    """Return the image versions that must stay on this host for this rollout, the one to roll back to included."""
    return frozenset(digest for digest in (rollout.target, rollout.serving, rollout.previous) if digest)


def _retarget(rollout: Rollout, digest: str, now_s: float) -> Rollout:
    fresh = replace(
        rollout,
        target=digest, failures=0, reason="", since_s=now_s,
        last_failure_at_s=None, soak_until_s=None, promoted_at_s=None,
    )  # fmt: skip
    if digest in rollout.quarantined:
        return replace(fresh, phase=Phase.ROLLED_BACK, reason="this version failed here before and is quarantined")
    return replace(fresh, phase=Phase.PULLING)


def _soak(rollout: Rollout, pool: PoolSpec, now_s: float) -> Rollout:
    """Return the rollout with a ready canary: promoted after the soak. A pool's first version needs no soak."""
    soak_until_s = now_s + soak_time_s(pool) if rollout.soak_until_s is None else rollout.soak_until_s
    if rollout.serving is None or now_s >= soak_until_s:
        return _enter(rollout, Phase.PROMOTING, now_s)
    return replace(rollout, soak_until_s=soak_until_s)


def _enter(rollout: Rollout, phase: Phase, now_s: float) -> Rollout:
    entered = replace(rollout, phase=phase, since_s=now_s, soak_until_s=None)
    if phase is not Phase.PROMOTING:
        return entered
    entered = replace(entered, promoted_at_s=now_s)
    if rollout.serving != rollout.target:
        return replace(entered, serving=rollout.target, previous=rollout.serving)
    return entered


def _roll_back(rollout: Rollout, last_good: str | None, now_s: float) -> Rollout:
    """Return to the last good version and quarantine the target."""
    return replace(
        rollout,
        phase=Phase.ROLLED_BACK,
        serving=last_good,
        previous=rollout.previous if rollout.previous != last_good else None,
        since_s=now_s,
        quarantined=(*rollout.quarantined, *filter(None, [rollout.target])),
    )


def _passed(vm: Vm, target: str | None) -> bool:
    return vm.image == target and vm.state in (VmState.READY, VmState.LEASED)


def _is_outdated(vm: Vm, target: str | None) -> bool:
    """Whether a VM of another version must still end. A leased one ends with its lease and delays nothing."""
    return vm.image != target and vm.holds_slot and vm.state is not VmState.LEASED
