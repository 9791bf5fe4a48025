"""Whose fault a failure is: the image's, the memory's it was started from, or the host's own. Pure.

One version that fails is that version's fault. Proven versions of different images that fail within the same minutes,
clones that cannot be made, and VMs that cannot be torn down one after the other, are the host's: its disk, its memory,
its hypervisor. The difference decides which breaker opens, and what the operator is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.domain import names
from agent.domain.breaker import HOST_BREAKER, STABLE_S
from agent.domain.model import Cause

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.domain.breaker import Breaker
    from agent.domain.model import Failure, Vm
    from agent.domain.rollout import Rollout

YOUNG_S: Final = 60.0
"""A VM that fails sooner than this after it was proven counts against its image, as one that was never proven does."""
FREE_FAILURES: Final = 2
"""Failures of one image, or of the host, that are answered at once before the breaker slows the retries."""
_NOT_THE_IMAGES_FAULT: Final = frozenset(
    {
        Cause.REQUESTED,
        Cause.INTERRUPTED,
        Cause.CLONE_FAILED,
        Cause.SUSPEND_FAILED,
        Cause.RESUME_FAILED,
        Cause.LOST,
        Cause.DAMAGED,
        Cause.SLOTS_TAKEN,
    }
)
_THE_HOSTS_FAULT: Final = frozenset({Cause.CLONE_FAILED, Cause.SLOTS_TAKEN})


def blamed_for_failure(
    vm: Vm, failure: Failure, rollouts: Iterable[Rollout], breakers: Iterable[Breaker]
) -> tuple[str, ...]:
    """Return the keys of the breakers that the failure of `vm` counts against."""
    if vm.template is not None and vm.ready_at_s is None:
        # It never got to be healthy from a memory that was: the memory is the first suspect, and the next VM boots.
        return (vm.template,)
    if failure.cause in _THE_HOSTS_FAULT:
        return (HOST_BREAKER,)
    young = vm.ready_at_s is None or failure.at_s - vm.ready_at_s < YOUNG_S
    if not young or failure.cause in _NOT_THE_IMAGES_FAULT:
        return ()
    proven = {rollout.serving for rollout in rollouts}
    failing = {breaker.key for breaker in breakers if _failed_lately(breaker, failure.at_s)}
    if vm.image in proven and failing & proven - {vm.image}:
        return (vm.image, HOST_BREAKER)
    return (vm.image,)


def blamed_for_leak(vm: str, breakers: Iterable[Breaker], now_s: float) -> tuple[str, ...]:
    """Return the keys of the breakers that count a teardown of `vm` that failed: the host's from the second VM on."""
    stuck = {breaker.key for breaker in breakers if names.parse(breaker.key) and _failed_lately(breaker, now_s)}
    return (vm, HOST_BREAKER) if stuck - {vm} else (vm,)


def free_failures(key: str, vm: Vm) -> int:
    """Return how many failures of what is blamed are answered at once: none of a memory, since a boot is at hand."""
    return 0 if key == vm.template else FREE_FAILURES


def is_failing(breaker: Breaker, vms: Iterable[Vm], now_s: float) -> bool:
    """Whether what a breaker counts still fails: more often than is free, and no VM was proven since."""
    if breaker.failures <= FREE_FAILURES or not _failed_lately(breaker, now_s):
        return False
    proven = (vm.ready_at_s for vm in vms if breaker.key in (HOST_BREAKER, vm.image))
    return not any(at_s is not None and at_s > breaker.last_failure_at_s for at_s in proven)


def _failed_lately(breaker: Breaker, now_s: float) -> bool:
    return breaker.failures > 0 and now_s - breaker.last_failure_at_s <= STABLE_S
