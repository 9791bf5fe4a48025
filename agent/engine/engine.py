"""The engine: starts the parts of the agent in order, runs them together, and reports whether it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from agent.domain.events import EventKind
from agent.domain.facts import VmAdopted
from agent.domain.model import Cause, Check
from agent.domain.plan import HEARTBEAT_LIMIT_S
from agent.engine.housekeeping import run_housekeeping
from agent.engine.schema import JournalError

if TYPE_CHECKING:
    from agent.domain.events import Event
    from agent.engine.assignments import Assignments
    from agent.engine.clock_follower import ClockFollower
    from agent.engine.conditions import ConditionBoard
    from agent.engine.evidence import Evidence
    from agent.engine.executor import Executor
    from agent.engine.guests import Guests
    from agent.engine.history import History
    from agent.engine.host_reader import HostReader
    from agent.engine.leases import LeaseDesk
    from agent.engine.observer import Observer
    from agent.engine.operator_commands import OperatorCommands
    from agent.engine.prober import Prober, ProbeResults
    from agent.engine.reconciler import Reconciler
    from agent.engine.state_store import StateStore
    from agent.engine.vm_updates import VmUpdates
    from agent.engine.world_builder import WorldBuilder
    from agent.hypervisors.contract import Hypervisor

log = structlog.get_logger()

OBSERVE_PERIOD_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running agent, built by `agent.app`."""

    store: StateStore
    history: History
    evidence: Evidence
    hypervisor: Hypervisor
    guests: Guests
    observer: Observer
    assignments: Assignments
    leases: LeaseDesk
    operations: OperatorCommands
    executor: Executor
    board: ConditionBoard
    prober: Prober
    probe_results: ProbeResults
    updates: VmUpdates
    reconciler: Reconciler
    clock_follower: ClockFollower
    view: WorldBuilder
    host: HostReader
    awake: asyncio.Event


class Engine:
    """Call `load` and `start` once, `run` until cancelled, then `stop`. The `parts` can be read at any time."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._is_started = False
        self._observe_now = asyncio.Event()
        parts.store.on_change(self._observe_when_slots_are_taken)

    async def load(self) -> None:
        """Load the journal and the assignment: before them, every lease would be unknown. Raises `HearthError`."""
        await self.parts.store.load()
        await self.parts.clock_follower.start()
        await self.parts.assignments.load()

    async def start(self) -> None:
        """Observe the host and adopt its running VMs. Raises `HearthError` if it cannot start."""
        parts = self.parts
        parts.hypervisor.on_exit(parts.updates.queue_exit)
        await self._observe()
        await self._adopt()
        self._is_started = True

    async def run(self) -> None:
        """Reconcile, observe the host, and follow process exits and the assignment file, until cancelled."""
        parts = self.parts
        async with asyncio.TaskGroup() as group:
            group.create_task(parts.reconciler.run(), name="reconciler")
            group.create_task(parts.updates.follow_exits(), name="exits")
            group.create_task(parts.assignments.watch(), name="assignment")
            group.create_task(self._observe_periodically(), name="observer")
            group.create_task(run_housekeeping(parts.history.trim, parts.evidence.trim), name="housekeeping")

    async def stop(self) -> None:
        """Stop granting leases, probing, and running effects. Every VM keeps running."""
        self.parts.leases.close()
        await self.parts.prober.close()
        await self.parts.executor.stop()

    def heartbeat(self) -> float:
        """Return a value that changes with every reconcile pass, and with every transaction that one waits for.

        Under load a pass may wait long for the lock of the records. The event loop works as long as others get it.
        """
        return self.parts.reconciler.last_pass_s + self.parts.store.turns

    def heartbeat_age_s(self) -> float:
        """Return the seconds since the last reconcile pass ended."""
        return time.monotonic() - self.parts.reconciler.last_pass_s

    def readiness(self) -> tuple[Check, ...]:
        """Return the named readiness checks of the agent."""
        parts = self.parts
        journal = parts.board.as_mapping().get("JournalWritable")
        mode = parts.store.state.mode
        age_s = self.heartbeat_age_s()
        hypervisor = parts.observer.problems.get("HypervisorResponding", "")
        started = "" if self._is_started else "the first observation of the host is under way"
        return (
            Check("started", self._is_started, started),
            Check("loop", age_s < HEARTBEAT_LIMIT_S, f"the last reconcile pass ended {age_s:.1f} s ago"),
            Check("hypervisor", not hypervisor, hypervisor),
            Check("schedulable", mode.takes_leases, "" if mode.takes_leases else f"this host is {mode.mode}"),
            Check("journal", journal is None or not journal.message, journal.message if journal else ""),
        )

    def _observe_when_slots_are_taken(self, events: tuple[Event, ...]) -> None:
        """Observe immediately after a start without a free slot: VMs of other owners run that are not counted yet."""
        if any(event.kind is EventKind.VM_FAILED and event.cause == Cause.SLOTS_TAKEN for event in events):
            self._observe_now.set()

    async def _observe_periodically(self) -> None:
        """Observe every `OBSERVE_PERIOD_S`. This finds changes that no event reports."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OBSERVE_PERIOD_S):
                    await self._observe_now.wait()
            self._observe_now.clear()
            await self._observe()
            await self.parts.assignments.check_file()
            self.parts.awake.set()

    async def _observe(self) -> None:
        parts = self.parts
        await parts.observer.observe(lambda: frozenset(parts.store.state.vms), lambda: parts.executor.busy)
        now_s = parts.view.clock()
        for fact in parts.observer.health:
            parts.board.post_problem(fact.condition, now_s, reason=fact.reason, message=fact.message)
        for condition in ("HypervisorResponding", "HypervisorHealthKnown", "ImageStoreReadable", "DiskMeasured"):
            message = parts.observer.problems.get(condition, "")
            parts.board.post_problem(condition, now_s, reason="ObservationFailed" if message else "", message=message)

    async def _adopt(self) -> None:
        """Record which VMs of an earlier run of the agent were found running. They are adopted in any case."""
        observer = self.parts.observer
        listing = observer.take_listing()
        observer.restore_listing(listing)
        try:
            async with self.parts.store.transaction() as transaction:
                for seen in listing.seen if listing else ():
                    if seen.running:
                        transaction.record(VmAdopted(seen.name, seen.pid))
        except JournalError as error:
            log.error("adoption-not-written", error=str(error))  # noqa: TRY400 - the message is complete
