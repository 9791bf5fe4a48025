"""Puts the world together: the store's records, the last look context, and this moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ulid import ULID

from agent.domain.model import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.model import HostLimits, Listing, PoolSpec
    from agent.engine.executor import Executor
    from agent.engine.leases import LeaseDesk
    from agent.engine.observer import Observer
    from agent.engine.state_store import StateStore
    from agent.hypervisors.contract import Capabilities

_IDS_A_TURN: Final = 64


@dataclass(frozen=True, slots=True)
class WorldBuilder:
    """Where each part of the world comes from. `pools` gives the assignment in force, `jitter` numbers from 0 to 1."""

    store: StateStore
    desk: LeaseDesk
    executor: Executor
    observer: Observer
    capabilities: Capabilities
    limits: Callable[[], HostLimits]
    resolve_period_s: float
    pools: Callable[[], tuple[PoolSpec, ...]]
    jitter: Callable[[], float]
    clock: Callable[[], float]

    def world(self, listing: Listing | None = None, *, to_plan: bool = False) -> World:
        """Return the world as the engine knows it now. No I/O.

        Only one that is `to_plan` on has names for new VMs: drawing them takes as long as a plan.
        """
        return World(
            now_s=self.clock(),
            jitter=self.jitter(),
            limits=self.limits(),
            pools=self.pools(),
            vms=tuple(self.store.vms.values()),
            leases=tuple(self.store.leases.values()),
            waiters=self.desk.waiters,
            images=self.observer.images,
            resolutions=dict(self.store.resolutions),
            rollouts=dict(self.store.rollouts),
            breakers=dict(self.store.breakers),
            listing=listing,
            busy=self.executor.busy,
            mode=self.store.mode,
            disk_full=self.observer.disk.full,
            excess_bytes=self.observer.disk.excess_bytes,
            foreign_slots=self.observer.foreign_slots,
            can_suspend=self.capabilities.suspend,
            can_use_templates=self.capabilities.templates,
            templates=self.observer.templates,
            fresh_ids=tuple(str(ULID()) for _ in range(self._ids() if to_plan else 0)),
            resolve_period_s=self.resolve_period_s,
        )

    def _ids(self) -> int:
        """Return how many VMs a plan can make at most."""
        held = sum(vm.holds_slot for vm in self.store.vms.values())
        return max(0, min(_IDS_A_TURN, self.limits().slots - held))
