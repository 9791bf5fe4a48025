"""What an operator does to a running host: open, cordon or drain it, and take a rollout in hand.

Each is one transaction, durable before it returns; the next turn of the loop draws the consequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from agent.domain.breaker import Breaker
from agent.domain.errors import ErrorOrigin, HearthError
from agent.domain.events import EventKind
from agent.domain.model import HostMode
from agent.domain.rollout import Phase, Rollout, retry, undo
from agent.engine.leases import PoolUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.model import Mode
    from agent.engine.leases import LeaseDesk
    from agent.engine.state_store import StateStore, Transaction


class NothingToRetryError(HearthError):
    """The pool serves its target, and nothing holds it back."""

    code = "nothing-to-retry"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class NothingToUndoError(HearthError):
    """There is no version to go back to, or the pool went back to it already."""

    code = "nothing-to-undo"
    origin: ClassVar[ErrorOrigin] = ErrorOrigin.REQUEST


class OperatorCommands:
    """The operator's hand on the engine."""

    def __init__(self, store: StateStore, desk: LeaseDesk, *, wake: Callable[[], None]) -> None:
        self._store = store
        self._desk = desk
        self._wake = wake

    @property
    def mode(self) -> HostMode:
        """The mode of this host."""
        return self._store.mode

    async def set_mode(self, mode: Mode, *, reason: str) -> HostMode:
        """Open, cordon or drain the host. Asking for the mode it is in changes nothing but the reason.

        Requests that wait for a VM are refused when the host gives no leases any more.
        """
        async with self._store.transaction() as transaction:
            before = self._store.mode
            if (before.mode, before.reason) == (mode, reason):
                return before
            since_s = before.since_s if before.mode is mode else transaction.now_s
            after = HostMode(mode, since_s, reason)
            transaction.put(after)
            transaction.event(EventKind.HOST_MODE, detail=f"{mode}: {reason}" if reason else str(mode))
        self._desk.turn_away()
        self._wake()
        return after

    async def retry_rollout(self, pool: str) -> Rollout:
        """Try the target of a pool again at once: its quarantine, its failures and its breaker are forgotten.

        Raises `PoolUnknownError`, `NothingToRetryError`.
        """
        async with self._store.transaction() as transaction:
            before = _rollout(transaction, pool)
            held_back = before.target is not None and transaction.get(Breaker, before.target) is not None
            if before.phase is Phase.SERVING and not held_back:
                raise NothingToRetryError(
                    f"pool {pool!r} serves {before.target} and nothing holds it back",
                    remedy="push a new version, or name it in the assignment",
                )
            after = retry(before, transaction.now_s)
            transaction.put(after)
            if before.target is not None:
                transaction.drop(Breaker, before.target)
            transaction.event(EventKind.ROLLOUT, pool=pool, image=after.target, detail=f"{after.phase}: tried again")
        self._wake()
        return after

    async def undo_rollout(self, pool: str, *, reason: str) -> Rollout:
        """Go back to the version before, and leave the target alone until it changes or is retried.

        Raises `PoolUnknownError`, `NothingToUndoError`.
        """
        async with self._store.transaction() as transaction:
            before = _rollout(transaction, pool)
            after = undo(before, reason=f"undone: {reason}" if reason else "undone", now_s=transaction.now_s)
            if after is None:
                raise NothingToUndoError(
                    f"pool {pool!r} is {before.phase} and has no version to go back to",
                    remedy="name the version to serve in the assignment",
                )
            transaction.put(after)
            transaction.event(EventKind.ROLLOUT, pool=pool, image=after.target, detail=f"{after.phase}: {after.reason}")
        self._wake()
        return after


def _rollout(transaction: Transaction, pool: str) -> Rollout:
    rollout = transaction.get(Rollout, pool)
    if rollout is None:
        raise PoolUnknownError(f"there is no pool {pool!r} on this host", remedy="see `hearth status` for its pools")
    return rollout
