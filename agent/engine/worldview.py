"""Puts the world together: the ledger's records, the last look outside, and this moment."""

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
    from agent.engine.ledger import Ledger
    from agent.engine.observation import Observation
    from agent.hypervisors.contract import Capabilities

_IDS_A_TURN: Final = 64


@dataclass(frozen=True, slots=True)
class Worldview:
    """Where each part of the world comes from. `pools` gives the assignment in force, `jitter` numbers from 0 to 1."""

    ledger: Ledger
    desk: LeaseDesk
    executor: Executor
    observation: Observation
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
            vms=tuple(self.ledger.vms.values()),
            leases=tuple(self.ledger.leases.values()),
            waiters=self.desk.waiters,
            images=self.observation.images,
            resolutions=dict(self.ledger.resolutions),
            rollouts=dict(self.ledger.rollouts),
            breakers=dict(self.ledger.breakers),
            listing=listing,
            busy=self.executor.busy,
            mode=self.ledger.mode,
            disk_full=self.observation.disk.full,
            excess_bytes=self.observation.disk.excess_bytes,
            foreign_slots=self.observation.foreign_slots,
            can_suspend=self.capabilities.suspend,
            can_fan_out=self.capabilities.fan_out,
            templates=self.observation.templates,
            fresh_ids=tuple(str(ULID()) for _ in range(self._ids() if to_plan else 0)),
            resolve_period_s=self.resolve_period_s,
        )

    def _ids(self) -> int:
        """Return how many VMs a plan can make at most."""
        held = sum(vm.holds_slot for vm in self.ledger.vms.values())
        return max(0, min(_IDS_A_TURN, self.limits().slots - held))
