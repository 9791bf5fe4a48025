"""What each pool needs: which image versions it may run, how many VMs, and which of them are for whom. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain.breaker import held_back
from agent.domain.rollout import Phase
from agent.domain.states import UNPROVEN, VmState

if TYPE_CHECKING:
    from agent.domain.model import PoolSpec, Vm, Waiter, World
    from agent.domain.rollout import Rollout

_IDLE = UNPROVEN | {VmState.CREATING, VmState.READY}


@dataclass(frozen=True, slots=True)
class PoolView:
    """One assigned pool with its VMs sorted by what they are for."""

    spec: PoolSpec
    rollout: Rollout
    waiters: tuple[Waiter, ...]  # the requests that wait for one of its VMs, longest waiting first
    idle: tuple[Vm, ...]  # alive and not leased, of any version, oldest first
    standby: tuple[Vm, ...]  # suspended, or about to be, of any version, oldest first
    held: int  # VMs that hold a slot, leased and stopping ones included

    def of(self, digest: str | None) -> tuple[Vm, ...]:
        """Return the idle VMs of one version."""
        return tuple(vm for vm in self.idle if vm.image == digest)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self.waiters)

    @property
    def ready(self) -> tuple[Vm, ...]:
        """The VMs that could be leased now."""
        return tuple(vm for vm in self.idle if vm.state is VmState.READY)

    @property
    def outdated(self) -> tuple[Vm, ...]:
        """Idle VMs of versions the pool should not run any more."""
        wanted = {self.rollout.serving, self.canary_image}
        return tuple(vm for vm in self.idle if vm.image not in wanted)

    @property
    def canary_image(self) -> str | None:
        """The version that one VM has to prove, while a rollout is at that point."""
        return self.rollout.target if self.rollout.phase is Phase.CANARY else None

    @property
    def needs_canary(self) -> bool:
        """Whether a VM to prove the new version must still be created."""
        return self.canary_image is not None and not self.of(self.canary_image)

    @property
    def wanted(self) -> int:
        """Idle VMs the pool should have: its warm target, and one for each request that waits."""
        return self.spec.warm + self.waiting

    @property
    def room_under_max(self) -> int:
        """VMs that may still be added before the pool's own maximum."""
        return max(0, self.spec.max - self.held) if self.spec.max else 2**31


def pool_views(world: World) -> tuple[PoolView, ...]:
    """Return a view of every assigned pool that has a rollout record, by priority, then name."""
    vms_of: defaultdict[str, list[Vm]] = defaultdict(list)
    for vm in sorted(world.vms, key=lambda vm: (vm.created_at_s, vm.name)):
        vms_of[vm.pool].append(vm)
    waiters: defaultdict[str, list[Waiter]] = defaultdict(list)
    for waiter in sorted(world.waiters, key=lambda waiter: (waiter.since_s, waiter.id)):
        waiters[waiter.pool].append(waiter)
    views = []
    for spec in sorted(world.pools, key=lambda pool: (-pool.priority, pool.name)):
        rollout = world.rollouts.get(spec.name)
        if rollout is None:
            continue
        vms = vms_of[spec.name]
        views.append(
            PoolView(
                spec=spec,
                rollout=rollout,
                waiters=tuple(waiters[spec.name]),
                idle=tuple(vm for vm in vms if vm.state in _IDLE),
                standby=tuple(vm for vm in vms if vm.state in (VmState.SUSPENDING, VmState.STANDBY)),
                held=sum(vm.holds_slot for vm in vms),
            )
        )
    return tuple(views)


def pick_ready(vms: tuple[Vm, ...], pool: str, serving: str | None, busy: frozenset[str]) -> Vm | None:
    """Return the VM a new lease of `pool` gets, or None: the serving version first, then the longest ready."""
    ready = [vm for vm in vms if vm.pool == pool and vm.state is VmState.READY and vm.name not in busy]
    return min(ready, key=lambda vm: (vm.image != serving, vm.ready_at_s or 0.0, vm.name), default=None)


def shortage(view: PoolView) -> int:
    """Return how many idle VMs the pool lacks that it could run: none while it has no proven version."""
    if view.rollout.serving is None:
        return int(view.needs_canary)
    return max(0, view.wanted - len(view.idle))


def usable(world: World, digest: str) -> bool:
    """Whether VMs of an image version can be started now: it is here, and nothing holds it back."""
    return world.has_image(digest) and not held_back(world, digest)
