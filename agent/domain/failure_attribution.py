"""Attribution of failures: to an image version, to a template, or to this host. It decides which breaker counts them.

Failures of VMs of one version are attributed to that version. When serving versions of different images fail within the
same minutes, the cause is this host: its disk, its memory, its hypervisor. The same holds for clones that cannot be
made and for several VMs that cannot be torn down."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent.domain.breaker import HOST_KEY, BreakerKey, Scope, registry_key
from agent.domain.model import Cause

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agent.domain.breaker import Breaker
    from agent.domain.model import Failure, Vm

YOUNG_S: Final = 60.0
"""A VM that fails sooner than this after it became ready counts against its image, as one that never became ready."""
FREE_FAILURES: Final = 2
"""Failures of one image, or of the host, that are retried without a delay."""


class Attribution(StrEnum):
    """What the failure of a VM counts against."""

    IMAGE = "image"  # its image version: counts for the version's breaker and its rollout
    ROLLOUT = "rollout"  # counts for the rollout of its version only: the true cause was not observed
    HOST = "host"  # this host
    NONE = "none"  # neither


CAUSES: Final[dict[Cause, Attribution]] = {
    Cause.CLONE_FAILED: Attribution.HOST,
    Cause.IMAGE_UNFIT: Attribution.IMAGE,
    Cause.START_FAILED: Attribution.IMAGE,
    Cause.SUSPEND_FAILED: Attribution.NONE,
    Cause.RESUME_FAILED: Attribution.NONE,
    Cause.STARTUP_DEADLINE: Attribution.IMAGE,
    Cause.EXITED: Attribution.IMAGE,
    Cause.PROBE_FAILED: Attribution.IMAGE,
    Cause.PROBE_ERROR: Attribution.IMAGE,
    Cause.LOST: Attribution.ROLLOUT,
    Cause.DAMAGED: Attribution.NONE,
    Cause.SLOTS_TAKEN: Attribution.HOST,
    Cause.INTERRUPTED: Attribution.NONE,
    Cause.REQUESTED: Attribution.NONE,
}
COUNTS_FOR_ROLLOUT: Final = frozenset({Attribution.IMAGE, Attribution.ROLLOUT})


def breakers_to_trip(
    vm: Vm, failure: Failure, serving: Collection[str], breakers: Iterable[Breaker]
) -> tuple[BreakerKey, ...]:
    """Return the keys of the breakers that count the failure of `vm`. `serving` are the digests that pools serve."""
    if vm.template is not None and vm.ready_at_s is None:
        # A VM that never became ready from a template: suspect the template first. The next VM boots instead.
        return (BreakerKey(Scope.TEMPLATE, vm.template),)
    attribution = CAUSES[failure.cause]
    if attribution is Attribution.HOST:
        return (HOST_KEY,)
    if not is_young(vm, failure) or attribution is not Attribution.IMAGE:
        return ()
    image = BreakerKey(Scope.IMAGE, vm.image)
    other_versions = {BreakerKey(Scope.IMAGE, digest) for digest in serving} - {image}
    failing = {breaker.key for breaker in breakers if breaker.failed_recently(failure.at_s)}
    if vm.image in serving and failing & other_versions:
        return (image, HOST_KEY)
    return (image,)


def is_young(vm: Vm, failure: Failure) -> bool:
    """Whether a VM failed before or soon after it became ready: then its version is the likely cause."""
    return vm.ready_at_s is None or failure.at_s - vm.ready_at_s < YOUNG_S


def breakers_to_trip_for_leak(vm: str, breakers: Iterable[Breaker], now_s: float) -> tuple[BreakerKey, ...]:
    """Return the keys of the breakers that count a failed teardown of `vm`: from the second VM on also the host's."""
    key = BreakerKey(Scope.VM, vm)
    leaked = {breaker.key for breaker in breakers if breaker.key.scope is Scope.VM and breaker.failed_recently(now_s)}
    return (key, HOST_KEY) if leaked - {key} else (key,)


def is_registry_failing(reference: str, breakers: Iterable[Breaker], now_s: float) -> bool:
    """Whether the query of another reference in the same registry failed recently: then the cause is the registry."""
    registry = registry_key(reference)
    return any(
        breaker.key.scope is Scope.REFERENCE
        and breaker.key.name != reference
        and registry_key(breaker.key.name) == registry
        and breaker.failed_recently(now_s)
        for breaker in breakers
    )


def free_failures(key: BreakerKey) -> int:
    """Return how many failures cause no delay. None of a template: a boot replaces it."""
    return FREE_FAILURES if key.scope in (Scope.IMAGE, Scope.HOST) else 0


def is_failing(breaker: Breaker, vms: Iterable[Vm], now_s: float) -> bool:
    """Whether a thing failed more often than is free, and no VM of it became ready after its last failure."""
    if breaker.failures <= FREE_FAILURES or not breaker.failed_recently(now_s):
        return False
    ready_at = (vm.ready_at_s for vm in vms if breaker.key in (HOST_KEY, BreakerKey(Scope.IMAGE, vm.image)))
    return not any(at_s is not None and at_s > breaker.last_failure_at_s for at_s in ready_at)
