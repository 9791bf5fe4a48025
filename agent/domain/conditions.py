"""The conditions of the host, derived from the world: each with a reason, a message and the remedy. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from agent.domain import capacity
from agent.domain.breaker import HOST_KEY, BreakerKey, Scope
from agent.domain.failure_attribution import is_failing
from agent.domain.model import Condition, ConditionStatus, Mode
from agent.domain.pool_view import pool_views
from agent.domain.rollout import Phase
from agent.domain.states import VmState

if TYPE_CHECKING:
    from agent.domain.world import World

_SHOWN: Final = 10
"""How many pools, images or errors a message names."""
_TRUE, _FALSE = ConditionStatus.TRUE, ConditionStatus.FALSE


def conditions(world: World) -> tuple[Condition, ...]:
    """Return every condition. `since_s` is now: the engine keeps the older moment while status and reason stay the
    same."""
    return (
        _ready(world),
        _images_available(world),
        _disk_pressure(world),
        _rolled_back(world),
        _over_assigned(world),
        _cordoned(world),
        _draining(world),
        _host_healthy(world),
        _images_failing(world),
        _slots_leaked(world),
        _unknown_vms(world),
    )


def _problem_if(world: World, kind: str, *, problem: bool, reason: str, message: str) -> Condition:
    """Return a condition that is true if there is a problem, and false without a message otherwise."""
    if problem:
        return Condition(kind, _TRUE, reason, message, world.now_s, problem=True)
    return Condition(kind, _FALSE, "AsExpected", "", world.now_s)


def _ready(world: World) -> Condition:
    short = [view for view in pool_views(world) if len(view.ready) < view.spec.warm]
    if len(world.pools) > len(world.rollouts):
        message = "the first observation of the host is under way"
        return Condition("Ready", _FALSE, "Starting", message, world.now_s, problem=True)
    if not world.mode.takes_leases:
        message = f"this host is {world.mode.mode}: {world.mode.reason or 'requested by an operator'}"
        return Condition("Ready", _FALSE, "NoLeases", message, world.now_s, problem=True)
    if short:
        counts = [f"{view.spec.name} has {len(view.ready)} of {view.spec.warm} warm VMs" for view in short]
        message = _join(counts, ", ")
        # A host with all slots leased works as it should: it is short of warm VMs, but no operator has to act.
        is_full = any(vm.state is VmState.LEASED for vm in world.vms) and all(
            capacity.free(world).lacking_for(view.spec.size) for view in short
        )
        reason = "FullOfLeases" if is_full else "PoolsNotWarm"
        return Condition("Ready", _FALSE, reason, message, world.now_s, problem=not is_full)
    return Condition("Ready", _TRUE, "PoolsWarm", "", world.now_s)


def _images_available(world: World) -> Condition:
    assigned = {pool.image for pool in world.pools}
    errors = [known.error for name, known in sorted(world.resolutions.items()) if known.error and name in assigned]
    errors += [breaker.reason for key, breaker in sorted(world.breakers.items()) if _is_pull_failing(world, key)]
    if errors:
        return Condition("ImagesAvailable", _FALSE, "ResolveOrPullFailed", _join(errors), world.now_s, problem=True)
    return Condition("ImagesAvailable", _TRUE, "AsExpected", "", world.now_s)


def _is_pull_failing(world: World, key: BreakerKey) -> bool:
    targets = {BreakerKey(Scope.IMAGE, rollout.target) for rollout in world.rollouts.values() if rollout.target}
    return key in targets and not world.has_image(key.name) and world.breakers[key].failures > 0


def _cordoned(world: World) -> Condition:
    message = f"{_operator_reason(world)}no leases are granted, the pools stay warm; run `hearth uncordon` to end it"
    is_cordoned = world.mode.mode is Mode.CORDONED
    return _problem_if(world, "Cordoned", problem=is_cordoned, reason="CordonRequested", message=message)


def _draining(world: World) -> Condition:
    count = len(world.leases)
    leased = f"{count} leased {'VM' if count == 1 else 'VMs'} to end" if count else "no VM is leased"
    message = f"{_operator_reason(world)}{leased}; no new VMs or leases until `hearth uncordon`"
    reason = "Draining" if world.vms else "Drained"
    return _problem_if(world, "Draining", problem=world.is_draining, reason=reason, message=message)


def _host_healthy(world: World) -> Condition:
    breaker = world.breakers.get(HOST_KEY)
    if breaker is None or not is_failing(breaker, world.vms, world.now_s):
        return Condition("HostHealthy", _TRUE, "AsExpected", "", world.now_s)
    message = (
        f"{breaker.reason}. The cause is this host, not one image: check its disk, memory and hypervisor. "
        f"No VM is created before {_clock(breaker.open_until_s)}; then the agent retries automatically"
    )
    return Condition("HostHealthy", _FALSE, "RepeatedFailures", message, world.now_s, problem=True)


def _images_failing(world: World) -> Condition:
    failing = [
        breaker
        for key, breaker in sorted(world.breakers.items())
        if key.scope is Scope.IMAGE and world.has_image(key.name) and is_failing(breaker, world.vms, world.now_s)
    ]
    message = "; ".join(
        f"{breaker.key.name}: {breaker.failures} VMs failed, the last one because {breaker.reason}; the next starts at "
        f" {_clock(breaker.open_until_s)}, or immediately after `hearth rollout retry`"
        for breaker in failing
    )
    return _problem_if(world, "ImagesFailing", problem=bool(failing), reason="VmsFail", message=message)


def _slots_leaked(world: World) -> Condition:
    """Return whether VMs hold a slot although their teardown was started and failed."""
    breakers = {vm.name: world.breakers.get(BreakerKey(Scope.VM, vm.name)) for vm in world.vms if not vm.is_alive}
    leaked = {name: breaker for name, breaker in breakers.items() if breaker is not None}
    message = "; ".join(f"{name}: {breaker.reason}" for name, breaker in leaked.items())
    message += ". The agent retries their teardown automatically; see `hearth vms why NAME`"
    return _problem_if(world, "SlotsLeaked", problem=bool(leaked), reason="TeardownFails", message=message)


def _unknown_vms(world: World) -> Condition:
    names = ", ".join(world.unknown_vms)
    message = (
        f"{names} run and are not in the journal. They may run jobs, so they are left alone. "
        "Adopt them: stop the agent, then run `hearth journal rebuild --force`"
    )
    problem = bool(world.unknown_vms)
    return _problem_if(world, "UnknownVms", problem=problem, reason="NotInJournal", message=message)


def _disk_pressure(world: World) -> Condition:
    message = "free space is below host.disk_reserve_mib: no VM is created and no image is pulled; free disk space"
    return _problem_if(world, "DiskPressure", problem=world.disk_full, reason="ReserveReached", message=message)


def _rolled_back(world: World) -> Condition:
    back = [rollout for rollout in world.rollouts.values() if rollout.phase is Phase.ROLLED_BACK]
    message = _join([f"{rollout.pool}: {rollout.target}: {rollout.reason}" for rollout in back])
    return _problem_if(world, "RolledBack", problem=bool(back), reason="VersionFailed", message=message)


def _over_assigned(world: World) -> Condition:
    """Return whether the warm targets of all pools exceed this host, and which limit binds."""
    available = capacity.Resources(world.limits.slots, world.limits.cpus, world.limits.memory_mib)
    for view in pool_views(world):
        for _ in range(view.spec.warm):
            limit = available.lacking_for(view.spec.size)
            if limit:
                message = f"the warm VMs of {view.spec.name} do not all fit: {limit} bind; lower warm or the VM size"
                return _problem_if(world, "OverAssigned", problem=True, reason="WarmTargetsDoNotFit", message=message)
            available = available.minus(capacity.resources_of(view.spec.size))
    return _problem_if(world, "OverAssigned", problem=False, reason="", message="")


def _join(parts: list[str], separator: str = "; ") -> str:
    """Return the first parts, and how many more there are: every part can be as long as a registry's message."""
    more = [f"and {len(parts) - _SHOWN} more"] if len(parts) > _SHOWN else []
    return separator.join(parts[:_SHOWN] + more)


def _clock(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%H:%M:%S} UTC"


def _operator_reason(world: World) -> str:
    return f"{world.mode.reason}: " if world.mode.reason else ""
