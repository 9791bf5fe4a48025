"""Capacity: what the VMs of this host hold, and what fits in addition. No amount is ever negative.

A slot counts one VM that holds resources (`states.HOLDS_SLOT`), and one running VM of another owner where the
hypervisor counts those."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.domain.breaker import HOST_KEY

if TYPE_CHECKING:
    from agent.domain.model import PoolSpec, VmSize
    from agent.domain.world import World


class Limit(StrEnum):
    """What prevents another VM from starting."""

    SLOTS = "slots"
    CPUS = "cpus"
    MEMORY = "memory"
    DISK = "disk"
    DRAINING = "draining"
    UNHEALTHY = "host-unhealthy"
    POOL_MAX = "pool-max"


@dataclass(frozen=True, slots=True)
class Resources:
    """Slots, processors and memory."""

    slots: int
    cpus: float
    memory_mib: int

    def minus(self, other: Resources) -> Resources:
        """Return what remains without `other`; never below zero."""
        return Resources(
            max(0, self.slots - other.slots),
            max(0.0, self.cpus - other.cpus),
            max(0, self.memory_mib - other.memory_mib),
        )

    def lacking_for(self, size: VmSize) -> Limit | None:
        """Return the limit that one VM of `size` exceeds, or None when it fits."""
        if self.slots < 1:
            return Limit.SLOTS
        if self.memory_mib < size.memory_mib:
            return Limit.MEMORY
        return Limit.CPUS if self.cpus < size.cpus else None


def resources_of(size: VmSize) -> Resources:
    """Return what one VM of `size` holds."""
    return Resources(1, size.cpus, size.memory_mib)


def used(world: World) -> Resources:
    """Return what VMs hold now: ours until they are confirmed gone, and slots of VMs of other owners where they
    count."""
    sizes = [vm.size for vm in world.vms if vm.holds_slot]
    cpus = float(sum(size.cpus for size in sizes))
    return Resources(
        world.foreign_slots + len(world.unknown_vms) + len(sizes), cpus, sum(size.memory_mib for size in sizes)
    )


def free(world: World) -> Resources:
    """Return what new VMs can use now."""
    limits = world.limits
    return Resources(limits.slots, limits.cpus, limits.memory_mib).minus(used(world))


def could_fit(world: World, size: VmSize) -> bool:
    """Whether one VM of `size` would fit on this host if it were empty."""
    limits = world.limits
    return Resources(limits.slots, limits.cpus, limits.memory_mib).lacking_for(size) is None


def startable(world: World, pool: PoolSpec) -> tuple[int, Limit]:
    """Return how many more VMs of `pool` could start now, and the limit that binds."""
    if world.is_draining:
        return 0, Limit.DRAINING
    if world.disk_full:
        return 0, Limit.DISK
    if world.is_blocked(HOST_KEY):
        return 0, Limit.UNHEALTHY
    available, count = free(world), 0
    held = sum(vm.pool == pool.name and vm.holds_slot for vm in world.vms)
    while True:
        if pool.max and held + count >= pool.max:
            return count, Limit.POOL_MAX
        limit = available.lacking_for(pool.size)
        if limit:
            return count, limit
        available, count = available.minus(resources_of(pool.size)), count + 1
