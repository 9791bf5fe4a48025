"""What an operator does to a running host: open, cordon or drain it, and take a rollout in hand.

Each is one transaction, durable before it returns; the next turn of the loop draws the consequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.events import EventKind
from agent.domain.model import HostMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.model import Mode
    from agent.engine.leases import LeaseDesk
    from agent.engine.ledger import Ledger


class Operations:
    """The operator's hand on the engine."""

    def __init__(self, ledger: Ledger, desk: LeaseDesk, *, wake: Callable[[], None]) -> None:
        self._ledger = ledger
        self._desk = desk
        self._wake = wake

    @property
    def mode(self) -> HostMode:
        """The mode of this host."""
        return self._ledger.mode

    async def set_mode(self, mode: Mode, *, reason: str) -> HostMode:
        """Open, cordon or drain the host. Asking for the mode it is in changes nothing but the reason.

        Requests that wait for a VM are refused when the host gives no leases any more.
        """
        async with self._ledger.transaction() as transaction:
            before = self._ledger.mode
            if (before.mode, before.reason) == (mode, reason):
                return before
            since_s = before.since_s if before.mode is mode else transaction.now_s
            after = HostMode(mode, since_s, reason)
            transaction.put(after)
            transaction.event(EventKind.HOST_MODE, detail=f"{mode}: {reason}" if reason else str(mode))
        self._desk.turn_away()
        self._wake()
        return after
