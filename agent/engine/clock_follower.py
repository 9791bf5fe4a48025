"""Follows steps of the host's clock: the records and the agent's time move together, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.domain.facts import ClockRead, ClockStepped
from agent.domain.model import ClockAnchor
from agent.domain.record_clock import STEP_S, missed_step_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.engine.state_store import StateStore
    from agent.host.clock import HostClock

log = structlog.get_logger()


@dataclass(slots=True)
class ClockFollower:
    """Call `start` once the journal is loaded, then `follow` before each reconcile pass.

    `on_step` moves the moments that are held in memory only. `boot` identifies the boot of the host.
    """

    store: StateStore
    clock: HostClock
    boot: str
    on_step: Callable[[float], None]

    async def start(self) -> None:
        """Move the records of an earlier agent by the steps between its last reading and now. Raises `JournalError`."""
        anchor = self._anchor(0.0)
        delta_s = missed_step_s(self.store.state.clock_anchor, anchor)
        if abs(delta_s) < STEP_S:
            await self.store.record(ClockRead(anchor))
        else:
            await self.store.record(ClockStepped(delta_s, anchor))

    async def follow(self) -> None:
        """Move the records if the host's clock was set. Raises `JournalError`; then nothing has moved."""
        delta_s = self.clock.step_s()
        if abs(delta_s) < STEP_S:
            return

        def move() -> None:
            self.clock.follow(delta_s)
            self.on_step(delta_s)

        async with self.store.transaction(on_commit=move) as transaction:
            transaction.record(ClockStepped(delta_s, self._anchor(delta_s)))
        log.warning("clock-followed", delta_s=round(delta_s, 3))

    def _anchor(self, delta_s: float) -> ClockAnchor:
        return ClockAnchor(self.clock() + delta_s, self.clock.elapsed_s(), self.boot)
