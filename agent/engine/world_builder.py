"""The builder of the world: the stored records, the last observation of the host, and this moment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ulid import ULID

from agent.domain.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.model import HostLimits, PoolSpec
    from agent.domain.world import Listing
    from agent.engine.executor import Executor
    from agent.engine.leases import LeaseQueue
    from agent.engine.observer import Observer
    from agent.engine.state_store import StateStore
    from agent.engine.vm_updates import VmUpdates
    from agent.hypervisors.contract import Capabilities

_MAX_IDS: Final = 64


@dataclass(slots=True)
class WorldBuilder:
    """The sources of the world. `pools` returns the assigned pools, `jitter` a random number from 0 to 1.

    Until `is_reconciled` is set by the first reconcile pass, no VM is leasable: VMs may have ended while no agent ran.
    """

    store: StateStore
    queue: LeaseQueue
    executor: Executor
    updates: VmUpdates
    observer: Observer
    capabilities: Capabilities
    limits: Callable[[], HostLimits]
    resolve_period_s: float
    pools: Callable[[], tuple[PoolSpec, ...]]
    jitter: Callable[[], float]
    clock: Callable[[], float]
    is_reconciled: bool = False
    began_s: float = math.inf  # when the first reconcile pass ended, after which probes run

    def world(self, listing: Listing | None = None, *, to_plan: bool = False) -> World:
        """Return the world as it is known now. No I/O.

        Only a world `to_plan` with has ids for new VMs: drawing them takes as long as a plan.
        """
        state, observer = self.store.state, self.observer
        return World(
            now_s=self.clock(),
            jitter=self.jitter(),
            limits=self.limits(),
            pools=self.pools(),
            vms=tuple(state.vms.values()),
            leases=tuple(state.leases.values()),
            requests=self.queue.requests,
            unclaimed_leases=frozenset(self.queue.failed & state.leases.keys()),
            images=observer.images,
            resolutions=state.resolutions,
            rollouts=state.rollouts,
            breakers=state.breakers,
            listing=listing,
            busy=self.executor.busy,
            unleasable=self.updates.exited if self.is_reconciled else frozenset(state.vms),
            mode=state.mode,
            disk_full=observer.disk.full,
            excess_bytes=observer.disk.excess_bytes,
            foreign_slots=observer.foreign_slots,
            unknown_vms=tuple(sorted(observer.unknown_vms - state.vms.keys())),
            can_suspend=self.capabilities.suspend,
            can_use_templates=self.capabilities.templates,
            templates=observer.templates,
            fresh_ids=tuple(str(ULID()) for _ in range(self._id_count() if to_plan else 0)),
            resolve_period_s=self.resolve_period_s,
            began_s=self.began_s,
        )

    def _id_count(self) -> int:
        """Return how many VMs a plan can create at most."""
        held = sum(vm.holds_slot for vm in self.store.state.vms.values())
        return max(0, min(_MAX_IDS, self.limits().slots - held))
