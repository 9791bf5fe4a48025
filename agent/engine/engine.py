"""The running agent as one thing: starts the parts of the loop in order, runs them together, answers for them."""

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
from agent.engine.housekeeping import run_housekeeping
from agent.engine.schema import JournalError
from agent.hypervisors.sessions import open_exec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.config import Assignment
    from agent.domain.events import Event
    from agent.domain.health import ProbeResult
    from agent.domain.model import Condition
    from agent.domain.world import World
    from agent.engine.assignments import Assignments, HeldAssignment
    from agent.engine.conditions import ConditionBoard
    from agent.engine.evidence import Evidence
    from agent.engine.executor import Executor
    from agent.engine.history import History
    from agent.engine.leases import LeaseDesk
    from agent.engine.observer import Observer
    from agent.engine.operator_commands import OperatorCommands
    from agent.engine.prober import Prober, ProbeResults
    from agent.engine.reconciler import Reconciler
    from agent.engine.state_store import StateStore
    from agent.engine.vm_updates import VmUpdates
    from agent.engine.world_builder import WorldBuilder
    from agent.host.disk_space import DiskUsage
    from agent.host.host_info import HostIdentity
    from agent.host.vitals import Vitals
    from agent.hypervisors.contract import Address, ExecResult, Hypervisor
    from agent.hypervisors.sessions import ExecSession
    from agent.images.contract import Images, PullProgress

log = structlog.get_logger()

OBSERVE_PERIOD_S: Final = 10.0
ADDRESS_TIMEOUT_S: Final = 5.0
HEARTBEAT_LIMIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running agent, put together by `agent.app`."""

    store: StateStore
    history: History
    evidence: Evidence
    hypervisor: Hypervisor
    images: Images
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
    view: WorldBuilder
    identity: HostIdentity
    awake: asyncio.Event
    vitals: Callable[[], Vitals]


class Engine:
    """`start` once, `run` until cancelled, then `stop`. Everything may be asked of it at any time, also before."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started = False
        self._look_now = asyncio.Event()
        parts.store.on_change(self._note_change)

    async def start(self) -> None:
        """Take up the journal, look at the host, and adopt what runs. Raises what makes it impossible to go on."""
        parts = self._parts
        await parts.store.load()
        await parts.assignments.load()
        parts.hypervisor.on_exit(parts.updates.queue_exit)
        await self._look()
        await self._adopt()
        self._started = True

    async def run(self) -> None:
        """Turn the loop, look around, and follow exits and the assignment file, until cancelled."""
        parts = self._parts
        async with asyncio.TaskGroup() as group:
            group.create_task(parts.reconciler.run(), name="reconciler")
            group.create_task(parts.updates.follow_exits(), name="exits")
            group.create_task(parts.assignments.watch(), name="assignment")
            group.create_task(self._look_around(), name="observer")
            group.create_task(run_housekeeping(parts.history.trim, parts.evidence.trim), name="housekeeping")

    async def stop(self) -> None:
        """Stop working and leave every VM running."""
        self._parts.leases.close()
        await self._parts.prober.close()
        await self._parts.executor.stop()

    @property
    def leases(self) -> LeaseDesk:
        """The lease desk."""
        return self._parts.leases

    @property
    def history(self) -> History:
        """What happened, and the moment there is more."""
        return self._parts.history

    @property
    def operations(self) -> OperatorCommands:
        """What an operator does to this host."""
        return self._parts.operations

    @property
    def evidence(self) -> Evidence:
        """What explains failed VMs."""
        return self._parts.evidence

    @property
    def sequence(self) -> int:
        """Grows by every change of the store."""
        return self._parts.store.sequence

    def world(self) -> World:
        """Return the world as the engine knows it now. No I/O."""
        return self._parts.view.world()

    def conditions(self) -> tuple[Condition, ...]:
        """Return the host's conditions."""
        return self._parts.board.all()

    def identity(self) -> HostIdentity:
        """Return who this host is."""
        return self._parts.identity

    def vitals(self) -> Vitals:
        """Return how the host is, as last measured."""
        return self._parts.vitals()

    def disk(self) -> DiskUsage:
        """Return the data volume's figures as last measured."""
        return self._parts.observer.disk

    def probes(self, vm: str) -> tuple[ProbeResult, ...]:
        """Return the latest answer of each probe of a VM."""
        return self._parts.probe_results.latest(vm)

    def pulls(self) -> tuple[PullProgress, ...]:
        """Return the pulls under way."""
        return self._parts.images.progress()

    async def address(self, vm: str) -> Address:
        """Return where a VM is reached. Raises `HypervisorError`, or `TimeoutError` when the tool does not answer."""
        async with asyncio.timeout(ADDRESS_TIMEOUT_S):
            return await self._parts.hypervisor.address(vm)

    def heartbeat(self) -> float:
        """Return what changes with every turn of the loop."""
        return self._parts.reconciler.last_pass_s

    def heartbeat_age_s(self) -> float:
        """Seconds since the loop last finished a turn."""
        return time.monotonic() - self._parts.reconciler.last_pass_s

    def readiness(self) -> tuple[Check, ...]:
        """Return the named readiness checks: can this agent do its job now?"""
        problems = self._parts.observer.problems
        conditions = self._parts.board.as_mapping()
        journal = conditions.get("JournalWritable")
        mode = self._parts.store.state.mode
        age_s = self.heartbeat_age_s()
        hypervisor = problems.get("HypervisorResponding", "")
        return (
            Check("started", self._started, "" if self._started else "the first look at the host is under way"),
            Check("loop", age_s < HEARTBEAT_LIMIT_S, f"the last turn ended {age_s:.1f} s ago"),
            Check("hypervisor", not hypervisor, hypervisor),
            Check("schedulable", mode.takes_leases, "" if mode.takes_leases else f"this host is {mode.mode}"),
            Check("journal", journal is None or not journal.message, journal.message if journal else ""),
        )

    def assignment(self) -> HeldAssignment:
        """Return the assignment in force."""
        return self._parts.assignments.held

    async def put_assignment(self, document: Assignment, *, if_match: str | None) -> HeldAssignment:
        """Replace the assignment, durable before it returns. Refused when the source is a file."""
        return await self._parts.assignments.put(document, if_match=if_match)

    async def replace_vm(self, name: str, *, reason: str) -> None:
        """Tear a VM down and let the pool refill. Raises `VmUnknownError`, or `VmLeasedError` while it is leased."""
        await self._parts.updates.replace(name, reason=reason)

    async def execute(self, vm: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """Run a command in a guest. Raises `GuestError` when the guest does not answer in time."""
        return await self._parts.hypervisor.execute(vm, argv, timeout_s=timeout_s)

    async def open_exec(self, vm: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        """Start a command in a guest, to be followed while it runs. Raises `GuestError` when the guest does not."""
        return await open_exec(self._parts.hypervisor, vm, argv, stdin=stdin)

    def _note_change(self, events: tuple[Event, ...]) -> None:
        """Look at once when a start was refused for want of a slot: VMs are there that were not counted yet."""
        if any(event.kind is EventKind.VM_FAILED and event.cause == Cause.SLOTS_TAKEN for event in events):
            self._look_now.set()

    async def _look_around(self) -> None:
        """Look context at a slow tick. Events tell most things sooner; this finds what no event tells."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OBSERVE_PERIOD_S):
                    await self._look_now.wait()
            self._look_now.clear()
            await self._look()
            await self._parts.assignments.check_file()
            self._parts.awake.set()

    async def _look(self) -> None:
        parts = self._parts
        await parts.observer.observe(lambda: frozenset(parts.store.state.vms), lambda: parts.executor.busy)
        now_s = time.time()
        for fact in parts.observer.health:
            parts.board.post_problem(fact.condition, now_s, reason=fact.reason, message=fact.message)
        for what in ("HypervisorResponding", "HypervisorHealthKnown", "ImageStoreReadable", "DiskMeasured"):
            message = parts.observer.problems.get(what, "")
            parts.board.post_problem(what, now_s, reason="ObservationFailed" if message else "", message=message)

    async def _adopt(self) -> None:
        """Record which VMs of an earlier life of the agent were found running."""
        listing = self._parts.observer.take_listing()
        self._parts.observer.restore_listing(listing)
        running = {seen.name: seen.pid for seen in listing.seen if seen.running} if listing else {}
        try:
            await self._record_adopted(running)
        except JournalError as error:
            log.error("adoption-not-written", error=str(error))  # noqa: TRY400 - they are adopted all the same

    async def _record_adopted(self, running: Mapping[str, int | None]) -> None:
        async with self._parts.store.transaction() as transaction:
            for vm, pid in running.items():
                transaction.record(VmAdopted(vm, pid))
