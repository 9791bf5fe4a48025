"""What the agent knows of its host, for readers: nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.health import ProbeResult
    from agent.domain.model import Condition
    from agent.domain.world import World
    from agent.engine.conditions import ConditionBoard
    from agent.engine.observer import Observer
    from agent.engine.prober import ProbeResults
    from agent.engine.state_store import StateStore
    from agent.engine.world_builder import WorldBuilder
    from agent.host.disk_space import DiskUsage
    from agent.host.host_info import HostIdentity
    from agent.host.vitals import Vitals
    from agent.images.contract import Images, PullProgress


@dataclass(frozen=True, slots=True)
class HostReader:
    """Reads the world, the conditions and the latest measurements."""

    store: StateStore
    builder: WorldBuilder
    board: ConditionBoard
    observer: Observer
    results: ProbeResults
    images: Images
    identity: HostIdentity
    read_vitals: Callable[[], Vitals]

    @property
    def sequence(self) -> int:
        """The number of commits: the version of the stored part of the world."""
        return self.store.sequence

    def world(self) -> World:
        """Return the world as it is known now."""
        return self.builder.world()

    def conditions(self) -> tuple[Condition, ...]:
        """Return the host's conditions."""
        return self.board.all()

    def vitals(self) -> Vitals:
        """Return the host's vital signs as last measured."""
        return self.read_vitals()

    def disk(self) -> DiskUsage:
        """Return the usage of the data volume as last measured."""
        return self.observer.disk

    def probes(self, vm: str) -> tuple[ProbeResult, ...]:
        """Return the latest result of each probe of a VM."""
        return self.results.latest(vm)

    def pulls(self) -> tuple[PullProgress, ...]:
        """Return the progress of the running pulls."""
        return self.images.progress()
