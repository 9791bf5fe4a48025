"""Duration of one call of the pure planner, by number of VMs, on worlds that need decisions."""

from __future__ import annotations

import time
from typing import Final

from agent.domain.model import HostLimits, Image, Lease, Observed, PoolSpec, Resolution, Vm, VmSize
from agent.domain.names import vm_name
from agent.domain.plan import plan
from agent.domain.rollout import Phase, Rollout
from agent.domain.states import VmState
from agent.domain.world import Listing, World

VMS_PER_POOL: Final = 10
_NOW_S: Final = 1_000_000.0
_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_STATES: Final = (VmState.LEASED, VmState.READY, VmState.READY, VmState.STARTING, VmState.READY) * 2
"""Of ten VMs: two leased, six ready, two booting."""


def world_of(count: int) -> World:
    """Return a world of `count` VMs in pools of ten, each pool one VM short of its target, freshly listed."""
    pools = [
        PoolSpec(f"pool-{number}", f"registry.example/pool-{number}:1", warm=9, size=VmSize(1, 256))
        for number in range(count // VMS_PER_POOL)
    ]
    vms = tuple(_vm(pool, number) for pool in pools for number in range(VMS_PER_POOL))
    names = frozenset(vm.name for vm in vms)
    return World(
        now_s=_NOW_S,
        jitter=0.5,
        limits=HostLimits(slots=2 * count, cpus=2 * count, memory_mib=512 * count),
        pools=tuple(pools),
        vms=vms,
        leases=tuple(
            Lease(vm.lease_id, vm.pool, vm.name, "job", 3600, _NOW_S, _NOW_S + 3600) for vm in vms if vm.lease_id
        ),
        images=tuple(Image(_digest(pool)) for pool in pools),
        resolutions={pool.image: Resolution(pool.image, _digest(pool), _NOW_S) for pool in pools},
        rollouts={pool.name: Rollout(pool.name, _digest(pool), _digest(pool), Phase.SERVING, _NOW_S) for pool in pools},
        listing=Listing(tuple(Observed(name, ours=True, running=True) for name in sorted(names)), names, names),
        fresh_ids=tuple(_ulid(10**9 + number) for number in range(64)),
    )


def plan_ms(count: int, *, samples: int = 25) -> float:
    """Return the milliseconds to plan a world of `count` VMs: the fastest sample, the others include other load."""
    world = world_of(count)
    plan(world)
    taken_s = []
    for _ in range(samples):
        began_s = time.perf_counter()
        plan(world)
        taken_s.append(time.perf_counter() - began_s)
    return min(taken_s) * 1000


def _vm(pool: PoolSpec, number: int) -> Vm:
    state = _STATES[number]
    name = vm_name(pool.name, _ulid(number))
    lease = f"lease-{pool.name}-{number}" if state is VmState.LEASED else None
    return Vm(name, pool.name, _digest(pool), state, pool.size, _NOW_S - 60, _NOW_S - 30, _NOW_S - 30, lease)


def _digest(pool: PoolSpec) -> str:
    return f"sha256:{pool.name}"


def _ulid(number: int) -> str:
    text = ""
    for _ in range(26):
        number, digit = divmod(number, 32)
        text = _DIGITS[digit] + text
    return text
