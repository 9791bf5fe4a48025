"""What fits on this host. Pure arithmetic over the world; nothing is ever negative."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.domain.breaker import HOST_BREAKER, held_back

if TYPE_CHECKING:
    from agent.domain.model import PoolSpec, VmSize, World


class Limit(StrEnum):
    """What keeps one more VM from starting."""

    SLOTS = "slots"
    CPUS = "cpus"
    MEMORY = "memory"
    DISK = "disk"
    DRAINING = "draining"
    UNHEALTHY = "host-unhealthy"
    POOL_MAX = "pool-max"


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of what VMs share."""

    slots: int
    cpus: float
    memory_mib: int

    def minus(self, other: Resources) -> Resources:
        """Return what is left after taking `other`; never below nothing."""
        return Resources(
            max(0, self.slots - other.slots),
            max(0.0, self.cpus - other.cpus),
            max(0, self.memory_mib - other.memory_mib),
        )

    def lacking_for(self, size: VmSize) -> Limit | None:
        """Return what is too small here for one VM of `size`, or None when it fits."""
        if self.slots < 1:
            return Limit.SLOTS
        if self.memory_mib < size.memory_mib:
            return Limit.MEMORY
        return Limit.CPUS if self.cpus < size.cpus else None


def one(size: VmSize) -> Resources:
    """Return what one VM of `size` takes."""
    return Resources(1, size.cpus, size.memory_mib)


def used(world: World) -> Resources:
    """Return what VMs hold now: ours until they are proven gone, and slots of foreign ones where those count."""
    sizes = [vm.size for vm in world.vms if vm.holds_slot]
    cpus = float(sum(size.cpus for size in sizes))
    return Resources(world.foreign_slots + len(sizes), cpus, sum(size.memory_mib for size in sizes))


def free(world: World) -> Resources:
    """Return what new VMs may take now."""
    limits = world.limits
    return Resources(limits.slots, limits.cpus, limits.memory_mib).minus(used(world))


def could_fit(world: World, size: VmSize) -> bool:
    """Whether one VM of `size` would fit on this host if it were empty."""
    limits = world.limits
    return Resources(limits.slots, limits.cpus, limits.memory_mib).lacking_for(size) is None


def startable(world: World, pool: PoolSpec) -> tuple[int, Limit]:
    """Return how many more VMs of `pool` could start now, and the limit that binds."""
    if world.draining:
        return 0, Limit.DRAINING
    if world.disk_full:
        return 0, Limit.DISK
    if held_back(world, HOST_BREAKER):
        return 0, Limit.UNHEALTHY
    room, count = free(world), 0
    held = sum(vm.pool == pool.name and vm.holds_slot for vm in world.vms)
    while True:
        if pool.max and held + count >= pool.max:
            return count, Limit.POOL_MAX
        limit = room.lacking_for(pool.size)
        if limit:
            return count, limit
        room, count = room.minus(one(pool.size)), count + 1
