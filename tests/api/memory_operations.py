"""The operator's part of the engine in memory: modes and rollouts, changed by the same pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.errors import NothingToRetryError, NothingToUndoError, PoolUnknownError
from agent.domain.model import HostMode, Mode
from agent.domain.rollout import Phase, Rollout, retry, undo
from agent.engine.evidence import Evidence

if TYPE_CHECKING:
    from pathlib import Path

    from agent.domain.events import Event
    from tests.api.memory_engine import MemoryEngine


class MemoryOperations:
    """Implements `agent.api.engine_protocols.OperatorCommands`."""

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine

    async def set_mode(self, mode: Mode, *, reason: str) -> HostMode:
        self._engine.mode = HostMode(mode, self._engine.world().now_s, reason)
        if mode is Mode.DRAINING:
            self._engine.vms.clear()
        self._engine.changed()
        return self._engine.mode

    async def retry_rollout(self, pool: str) -> Rollout:
        before = self._find(pool)
        if before.phase is Phase.SERVING:
            raise NothingToRetryError(f"pool {pool!r} serves its target")
        return self._keep(retry(before, self._engine.world().now_s))

    async def undo_rollout(self, pool: str, *, reason: str) -> Rollout:
        after = undo(self._find(pool), reason=reason, now_s=self._engine.world().now_s)
        if after is None:
            raise NothingToUndoError(f"pool {pool!r} has no version to go back to")
        return self._keep(after)

    def _find(self, pool: str) -> Rollout:
        if pool not in self._engine.rollouts:
            raise PoolUnknownError(f"there is no pool {pool!r} on this host")
        return self._engine.rollouts[pool]

    def _keep(self, rollout: Rollout) -> Rollout:
        self._engine.rollouts[rollout.pool] = rollout
        self._engine.changed()
        return rollout


def no_evidence(root: Path) -> Evidence:
    """Return the evidence in a folder, with nothing to add to it."""

    async def events(_: str) -> tuple[Event, ...]:
        return ()

    return Evidence(root, 1 << 20, 1 << 20, events, lambda _: ())
