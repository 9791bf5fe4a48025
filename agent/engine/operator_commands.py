"""Commands of operators: open, cordon or drain the host, retry or undo a rollout.

Each is one transaction, durable before it returns; the next reconcile pass acts on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.facts import ModeSet, RolloutRetried, RolloutUndone

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.facts import Fact
    from agent.domain.model import HostMode, Mode
    from agent.domain.rollout import Rollout
    from agent.domain.stored_state import StoredState
    from agent.engine.leases import LeaseDesk
    from agent.engine.state_store import StateStore


class OperatorCommands:
    """Records the commands of operators and wakes the reconciler."""

    def __init__(self, store: StateStore, desk: LeaseDesk, *, wake: Callable[[], None]) -> None:
        self._store = store
        self._desk = desk
        self._wake = wake

    @property
    def mode(self) -> HostMode:
        """The mode of this host."""
        return self._store.state.mode

    async def set_mode(self, mode: Mode, *, reason: str) -> HostMode:
        """Open, cordon or drain the host; refuse the waiting requests if it grants no leases any more."""
        state = await self._record(ModeSet(mode, reason))
        self._desk.refuse_waiting()
        return state.mode

    async def retry_rollout(self, pool: str) -> Rollout:
        """Start another trial of a pool's target. Raises `PoolUnknownError`, `NothingToRetryError`."""
        return (await self._record(RolloutRetried(pool))).rollouts[pool]

    async def undo_rollout(self, pool: str, *, reason: str) -> Rollout:
        """Return a pool to the version before its target. Raises `PoolUnknownError`, `NothingToUndoError`."""
        return (await self._record(RolloutUndone(pool, reason))).rollouts[pool]

    async def _record(self, fact: Fact) -> StoredState:
        state = await self._store.record(fact)
        self._wake()
        return state
