"""The host's conditions: named facts with a reason and the way out, derived from the world. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent.domain import capacity
from agent.domain.breaker import HOST_BREAKER
from agent.domain.failure_attribution import is_failing
from agent.domain.model import Condition, ConditionStatus, Mode
from agent.domain.pool_view import pool_views
from agent.domain.rollout import Phase
from agent.domain.states import VmState

if TYPE_CHECKING:
    from agent.domain.model import World

_TRUE, _FALSE = ConditionStatus.TRUE, ConditionStatus.FALSE


def conditions(world: World) -> tuple[Condition, ...]:
    """Return every condition of the host. `since_s` is now: the engine keeps the older one while nothing changed."""
    return (
        _ready(world),
        _registry(world),
        _disk(world),
        _rollouts(world),
        _capacity(world),
        _cordoned(world),
        _draining(world),
        _host_healthy(world),
        _images_failing(world),
        _slots_leaked(world),
    )


def _condition(world: World, kind: str, *, problem: bool, reason: str, message: str) -> Condition:
    """Return a condition that is true when there is a problem, with nothing to say otherwise."""
    if problem:
        return Condition(kind, _TRUE, reason, message, world.now_s, problem=True)
    return Condition(kind, _FALSE, "AsExpected", "", world.now_s)


def _ready(world: World) -> Condition:
    short = [view for view in pool_views(world) if len(view.ready) < view.spec.warm]
    if len(world.pools) > len(world.rollouts):
        return Condition(
            "Ready", _FALSE, "Starting", "the first look at the host is under way", world.now_s, problem=True
        )
    if not world.mode.takes_leases:
        message = f"this host is {world.mode.mode}: {world.mode.reason or 'asked for by an operator'}"
        return Condition("Ready", _FALSE, "NoLeases", message, world.now_s, problem=True)
    if short:
        message = ", ".join(f"{view.spec.name} has {len(view.ready)} of {view.spec.warm} warm VMs" for view in short)
        # Leases that fill the host are what it is for: short of warm VMs, but nobody has to come and look.
        full = any(vm.state is VmState.LEASED for vm in world.vms) and all(
            capacity.free(world).lacking_for(view.spec.size) for view in short
        )
        reason = "FullOfLeases" if full else "PoolsNotWarm"
        return Condition("Ready", _FALSE, reason, message, world.now_s, problem=not full)
    return Condition("Ready", _TRUE, "PoolsWarm", "", world.now_s)


def _registry(world: World) -> Condition:
    assigned = {pool.image for pool in world.pools}
    errors = [known.error for name, known in sorted(world.resolutions.items()) if known.error and name in assigned]
    errors += [breaker.reason for key, breaker in sorted(world.breakers.items()) if _pull_failing(world, key)]
    if errors:
        return Condition("ImagesAvailable", _FALSE, "ResolveOrPullFailed", "; ".join(errors), world.now_s, problem=True)
    return Condition("ImagesAvailable", _TRUE, "AsExpected", "", world.now_s)


def _pull_failing(world: World, key: str) -> bool:
    wanted = {rollout.target for rollout in world.rollouts.values()}
    return key in wanted and not world.has_image(key) and world.breakers[key].failures > 0


def _cordoned(world: World) -> Condition:
    message = f"{_asked(world)}no leases are given, the pools stay warm; `hearth uncordon` ends it"
    cordoned = world.mode.mode is Mode.CORDONED
    return _condition(world, "Cordoned", problem=cordoned, reason="CordonRequested", message=message)


def _draining(world: World) -> Condition:
    leased = len(world.leases)
    left = f"{leased} leased {'VM' if leased == 1 else 'VMs'} left to end" if leased else "no VM is leased"
    message = f"{_asked(world)}{left}; no new VMs or leases until `hearth uncordon`"
    reason = "Draining" if world.vms else "Drained"
    return _condition(world, "Draining", problem=world.draining, reason=reason, message=message)


def _host_healthy(world: World) -> Condition:
    breaker = world.breakers.get(HOST_BREAKER)
    if breaker is None or not is_failing(breaker, world.vms, world.now_s):
        return Condition("HostHealthy", _TRUE, "AsExpected", "", world.now_s)
    message = (
        f"{breaker.reason}. That is this host's own fault and not one image's: look at its disk, memory and "
        f"hypervisor. No VM is created before {_clock(breaker.open_until_s)}; then it is tried again by itself"
    )
    return Condition("HostHealthy", _FALSE, "RepeatedFailures", message, world.now_s, problem=True)


def _images_failing(world: World) -> Condition:
    failing = [breaker for key, breaker in sorted(world.breakers.items()) if world.has_image(key)]
    failing = [breaker for breaker in failing if is_failing(breaker, world.vms, world.now_s)]
    message = "; ".join(
        f"{breaker.key}: {breaker.failures} VMs failed, the last one since {breaker.reason}; the next is tried at "
        f"{_clock(breaker.open_until_s)}, or at once after `hearth rollout retry`"
        for breaker in failing
    )
    return _condition(world, "ImagesFailing", problem=bool(failing), reason="VmsFail", message=message)


def _slots_leaked(world: World) -> Condition:
    """Tell of VMs that hold a slot although they should be gone, and could not be ended so far."""
    stuck = [(vm.name, world.breakers[vm.name]) for vm in world.vms if vm.name in world.breakers and not vm.alive]
    message = "; ".join(f"{name}: {breaker.reason}" for name, breaker in stuck)
    message += ". Their teardown is tried again by itself; see `hearth vms why NAME`"
    return _condition(world, "SlotsLeaked", problem=bool(stuck), reason="TeardownFails", message=message)


def _clock(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%H:%M:%S} UTC"


def _asked(world: World) -> str:
    return f"{world.mode.reason}: " if world.mode.reason else ""


def _disk(world: World) -> Condition:
    message = "free space is below host.disk_reserve_mib: no VM is created and no image pulled; free some"
    return _condition(world, "DiskPressure", problem=world.disk_full, reason="ReserveReached", message=message)


def _rollouts(world: World) -> Condition:
    back = [rollout for rollout in world.rollouts.values() if rollout.phase is Phase.ROLLED_BACK]
    message = "; ".join(f"{rollout.pool}: {rollout.target}: {rollout.reason}" for rollout in back)
    return _condition(world, "RolledBack", problem=bool(back), reason="VersionFailed", message=message)


def _capacity(world: World) -> Condition:
    """Tell when the warm targets cannot all be met by this host, and what binds."""
    room = capacity.Resources(world.limits.slots, world.limits.cpus, world.limits.memory_mib)
    for view in pool_views(world):
        for _ in range(view.spec.warm):
            limit = room.lacking_for(view.spec.size)
            if limit:
                message = f"the warm VMs of {view.spec.name} do not all fit: {limit} bind; lower warm or the VM size"
                return _condition(world, "OverAssigned", problem=True, reason="WarmTargetsDoNotFit", message=message)
            room = room.minus(capacity.one(view.spec.size))
    return _condition(world, "OverAssigned", problem=False, reason="", message="")
