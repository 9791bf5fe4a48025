"""The reconciler: plan on the current world, record the plan, start its effects. Woken by events and periodically.

One reconcile pass plans and records its actions inside one transaction, so a plan never acts on a world that changed
since. Nothing slow happens in a pass: effects, observations and probes run concurrently.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.facts import RolloutsAdvanced
from agent.domain.plan import next_due_s, plan
from agent.engine.schema import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.world import World
    from agent.engine.clock_follower import ClockFollower
    from agent.engine.conditions import ConditionBoard
    from agent.engine.executor import Executor
    from agent.engine.observer import Observer
    from agent.engine.state_store import StateStore
    from agent.engine.world_builder import WorldBuilder

log = structlog.get_logger()

TICK_S: Final = 5.0
RETRY_S: Final = 1.0


class Reconciler:
    """Runs a reconcile pass whenever `awake` is set. `after_pass` receives the world after each pass."""

    def __init__(
        self,
        store: StateStore,
        executor: Executor,
        observer: Observer,
        board: ConditionBoard,
        builder: WorldBuilder,
        clock_follower: ClockFollower,
        *,
        after_pass: Callable[[World], None],
        awake: asyncio.Event,
    ) -> None:
        self._store = store
        self._executor = executor
        self._observer = observer
        self._board = board
        self._builder = builder
        self._clock_follower = clock_follower
        self._after_pass = after_pass
        self._awake = awake
        self.last_pass_s = time.monotonic()  # when the last pass ended

    async def run(self) -> None:
        """Run passes until cancelled."""
        while True:
            self._awake.clear()
            sleep_s = await self._reconcile_or_retry()
            self.last_pass_s = time.monotonic()
            try:
                async with asyncio.timeout(sleep_s):
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def reconcile(self) -> World:
        """Run one pass; return the world it planned on. Raises `JournalError` with no effect started."""
        await self._clock_follower.follow()
        listing = self._observer.take_listing()
        try:
            async with self._store.transaction() as transaction:
                world = self._builder.world(listing, to_plan=True)
                planned = plan(world)
                self._board.post(planned.conditions)
                transaction.record(RolloutsAdvanced(planned.rollouts))
                for action in planned.actions:
                    transaction.record(action)
        except JournalError:
            self._observer.restore_listing(listing)
            raise
        for effect in planned.effects:
            self._executor.start(effect)
        return world

    async def _reconcile_or_retry(self) -> float:
        """Run one pass and return how long to sleep at most."""
        try:
            world = await self.reconcile()
        except JournalError as error:
            log.error("journal-unwritable", error=str(error))  # noqa: TRY400 - the message is complete
            self._post_journal_condition()
            return RETRY_S
        if not self._builder.is_reconciled:
            self._builder.is_reconciled = True
            self._builder.began_s = self._builder.clock()
            self._awake.set()  # for the lease requests that came before this pass
        self._after_pass(self._builder.world())
        # A pass without changes writes nothing, so an earlier write error needs a write to be cleared.
        is_writable = not self._store.write_error or await self._store.try_writing()
        self._post_journal_condition()
        if not is_writable:
            return RETRY_S
        due_s = next_due_s(world)
        return TICK_S if due_s is None else max(0.01, min(TICK_S, due_s - self._builder.clock()))

    def _post_journal_condition(self) -> None:
        error = self._store.write_error
        message = f"{error}. No VM is leased, created or torn down until it can be written again" if error else ""
        reason = "WriteFailed" if error else ""
        self._board.post_problem("JournalWritable", self._builder.clock(), reason=reason, message=message)
