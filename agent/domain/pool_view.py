"""Views of the assigned pools: the VMs of each by use, its waiting requests, and how many VMs it needs."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain.breaker import BreakerKey, Scope
from agent.domain.rollout import Phase
from agent.domain.states import VmState

if TYPE_CHECKING:
    from agent.domain.model import LeaseRequest, PoolSpec, Vm
    from agent.domain.rollout import Rollout
    from agent.domain.world import World

_IDLE = (VmState.CREATING, VmState.STARTING, VmState.RESUMING, VmState.READY)
_STANDBY = (VmState.SUSPENDING, VmState.STANDBY)


@dataclass(frozen=True, slots=True)
class PoolView:
    """One assigned pool with its VMs and requests."""

    spec: PoolSpec
    rollout: Rollout
    requests: tuple[LeaseRequest, ...]  # the lease requests that wait for one of its VMs, longest waiting first
    idle: tuple[Vm, ...]  # alive and not leased, of any version, oldest first
    standby: tuple[Vm, ...]  # suspended or suspending, of any version, oldest first
    leased_versions: frozenset[str]  # the versions of its leased VMs
    slots_held: int  # VMs that hold a slot, leased and stopping ones included

    def idle_of(self, digest: str | None) -> tuple[Vm, ...]:
        """Return the idle VMs of one version."""
        return tuple(vm for vm in self.idle if vm.image == digest)

    @property
    def ready(self) -> tuple[Vm, ...]:
        """The idle VMs that passed their startup probes."""
        return tuple(vm for vm in self.idle if vm.state is VmState.READY)

    @property
    def outdated(self) -> tuple[Vm, ...]:
        """Idle VMs of versions that the pool neither serves nor tries."""
        wanted = {self.rollout.serving, self.canary_image}
        return tuple(vm for vm in self.idle if vm.image not in wanted)

    @property
    def canary_image(self) -> str | None:
        """The version that one VM tries, while the rollout is in its canary phase."""
        return self.rollout.target if self.rollout.phase is Phase.CANARY else None

    @property
    def needs_canary(self) -> bool:
        """Whether a canary VM must be created.

        A leased canary is enough while another version serves: otherwise each lease in the soak adds one more canary.
        """
        if self.canary_image is None or self.idle_of(self.canary_image):
            return False
        return self.rollout.serving is None or self.canary_image not in self.leased_versions

    @property
    def wanted(self) -> int:
        """Idle VMs the pool should have: its warm target, and one for each waiting request."""
        return self.spec.warm + len(self.requests)

    @property
    def free_under_max(self) -> int:
        """VMs that may be added before the pool's own maximum."""
        return max(0, self.spec.max - self.slots_held) if self.spec.max else 2**31


def pool_views(world: World) -> tuple[PoolView, ...]:
    """Return a view of every assigned pool that has a rollout record, by priority, then name."""
    idle: defaultdict[str, list[Vm]] = defaultdict(list)
    standby: defaultdict[str, list[Vm]] = defaultdict(list)
    leased: defaultdict[str, set[str]] = defaultdict(set)
    slots_held: Counter[str] = Counter()
    for vm in sorted(world.vms, key=lambda vm: (vm.created_at_s, vm.name)):
        if vm.state in _IDLE:
            idle[vm.pool].append(vm)
        elif vm.state in _STANDBY:
            standby[vm.pool].append(vm)
        elif vm.state is VmState.LEASED:
            leased[vm.pool].add(vm.image)
        slots_held[vm.pool] += vm.holds_slot
    requests: defaultdict[str, list[LeaseRequest]] = defaultdict(list)
    for request in by_waiting_time(world):
        requests[request.pool].append(request)
    return tuple(
        PoolView(
            spec=spec,
            rollout=world.rollouts[spec.name],
            requests=tuple(requests[spec.name]),
            idle=tuple(idle[spec.name]),
            standby=tuple(standby[spec.name]),
            leased_versions=frozenset(leased[spec.name]),
            slots_held=slots_held[spec.name],
        )
        for spec in sorted(world.pools, key=lambda pool: (-pool.priority, pool.name))
        if spec.name in world.rollouts
    )


def by_waiting_time(world: World) -> list[LeaseRequest]:
    """Return the waiting requests, longest waiting first."""
    return sorted(world.requests, key=lambda request: (request.since_s, request.id))


def pick_ready_vm(world: World, pool: str, taken: frozenset[str] = frozenset()) -> Vm | None:
    """Return the VM that the next lease of `pool` gets, or None: of the serving version first, then longest ready.

    VMs in `taken` are left out.
    """
    rollout = world.rollouts.get(pool)
    serving = rollout.serving if rollout else None
    ready = [vm for vm in world.vms if vm.pool == pool and vm.name not in taken and world.can_lease(vm)]
    return min(ready, key=lambda vm: (vm.image != serving, vm.ready_at_s or 0.0, vm.name), default=None)


def shortage(view: PoolView) -> int:
    """Return how many idle VMs the pool lacks. Before it has a serving version it can lack only its canary."""
    if view.rollout.serving is None:
        return int(view.needs_canary)
    return max(0, view.wanted - len(view.idle))


def can_start(world: World, digest: str) -> bool:
    """Whether VMs of an image version can be started now: it is present locally and not blocked."""
    return world.has_image(digest) and not world.is_blocked(BreakerKey(Scope.IMAGE, digest))


def unserved_requests(world: World, view: PoolView) -> tuple[LeaseRequest, ...]:
    """Return the requests of a pool that need a new VM, longest waiting first.

    Idle VMs serve the others. A pool without a version it can start now may only start its canary, for one request.
    """
    if view.rollout.serving is not None and can_start(world, view.rollout.serving):
        return view.requests[len(view.idle) :]
    has_canary = view.needs_canary and view.canary_image is not None and can_start(world, view.canary_image)
    return view.requests[:1] if has_canary else ()
