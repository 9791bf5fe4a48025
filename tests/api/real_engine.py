"""The agent's engine over guests of this machine, with its journal in the folder of a test.

Its parts are the real ones, put together by `agent.app.build_engine`. The clock stays at `NOW_S` and no reconcile loop
runs, so a VM keeps the state that a test gives it. A test calls `reconcile` to run one pass, or constructs the engine
with `runs=True` to run everything that the agent runs.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp

from agent.app import Foundation, LiveSettings, build_engine, build_store
from agent.config import Assignment, Config
from agent.config.config import AssignmentConfig
from agent.domain.conditions import conditions
from agent.domain.events import Event, EventKind
from agent.domain.health import Outcome, ProbeResult
from agent.domain.model import HostLimits, Image, StoredAssignment, Vm
from agent.domain.rollout import Phase, Rollout
from agent.domain.states import RUNNING, VmState
from agent.domain.stored_state import Changes, Put
from agent.engine.assignments import etag_of
from agent.engine.conditions import ConditionBoard
from agent.engine.database import Database
from agent.engine.metering import Metering
from agent.host.clock import HostClock
from agent.host.disk_space import DiskUsage
from agent.host.host_info import HostIdentity
from agent.host.vitals import Heat, MemoryPressure, Vitals, VitalsSampler
from agent.processes.command import CommandRunner
from agent.telemetry.metrics import Metrics
from tests.api.local_guests import PORTS, LocalGuests
from tests.api.memory_images import MemoryImages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from agent.domain.model import Condition, Lease
    from agent.domain.stored_state import Record
    from agent.engine.engine import Engine, Parts
    from agent.engine.history import History

NOW_S = 1_800_000_000.0
DIGEST = "sha256:" + "a" * 64
COMING = "sha256:" + "b" * 64
POOL = {"image": "oci-layout:/images:v1", "warm": 2, "cpus": 1, "memory_mib": 512, "ports": list(PORTS)}
SMALL = Assignment.model_validate({"pools": {"small": POOL}}).specs()[0]
SERVING = Rollout("small", DIGEST, DIGEST, Phase.SERVING, NOW_S)
IDENTITY = HostIdentity("mac-1", "machine", "boot", "Linux 6", "x86_64", 2, 8192, "0.1.0", "qemu", "7.2")
RESERVE_BYTES = 2 << 30
_EVENTS = {VmState.READY: EventKind.VM_READY, VmState.STOPPING: EventKind.VM_STOPPING}


def vm(name: str, state: VmState = VmState.READY, *, age_s: float = 60.0) -> Vm:
    """Return the record of a VM of the pool `small`."""
    created_at_s = NOW_S - age_s
    return Vm(name, "small", DIGEST, state, SMALL.size, created_at_s, created_at_s + 1, ready_at_s=created_at_s + 2)


class RealEngine:
    """An engine whose journal begins with `records` and `events`. Attributes set before `open` take effect then.

    `data` is the name of the folder for its journal.
    """

    def __init__(
        self, *records: Record, events: tuple[Event, ...] = (), data: str = "engine", runs: bool = False
    ) -> None:
        self.records: tuple[Record, ...] = records
        self.first_events = events
        self.data = data
        self.runs = runs
        self.pool: Mapping[str, object] = POOL
        self.posted: tuple[Condition, ...] = ()  # conditions in addition to those of the world
        self.free_bytes = 60 << 30
        self.heartbeat_age_s = 0.0
        self.guests = LocalGuests()
        self.images = MemoryImages(Image(DIGEST, (SMALL.image,), 64 << 20, 10 << 20, NOW_S))
        self.metrics = Metrics()
        self.events: list[Event] = []  # those committed since `open`
        self.request_refused = asyncio.Event()
        self._engine: Engine | None = None

    @asynccontextmanager
    async def open(self, folder: Path) -> AsyncIterator[Engine]:
        """Build and start the engine on the journal in `folder`, and stop it at the end of the block."""
        folder.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            foundation = await self._foundation(folder, stack)
            store = build_store(foundation)
            store.on_change(self.events.extend)
            engine = self._engine = build_engine(foundation, store)
            stack.push_async_callback(engine.stop)
            await store.load()
            if store.state.assignment is None:
                await self._write_first_records()
            await engine.load()
            await engine.start()
            await self._start_guests()
            await self.observe()
            self.set_heartbeat_age(self.heartbeat_age_s)
            if self.runs:
                await stack.enter_async_context(_running(engine))
            yield engine

    @property
    def real(self) -> Engine:
        """The engine that the API serves."""
        assert self._engine is not None, "the engine is not open"
        return self._engine

    @property
    def parts(self) -> Parts:
        return self.real.parts

    @property
    def history(self) -> History:
        return self.parts.history

    @property
    def sequence(self) -> int:
        return self.parts.store.sequence

    @property
    def vms(self) -> Mapping[str, Vm]:
        """The VMs in the journal."""
        return self.parts.store.state.vms

    @property
    def leases(self) -> Mapping[str, Lease]:
        """The leases in the journal."""
        return self.parts.store.state.leases

    async def put(self, *records: Record) -> None:
        """Write records to the journal; start the guests of running VMs."""
        async with self.parts.store.transaction() as transaction:
            transaction.apply(Changes(tuple(Put(record) for record in records)))
        await self._start_guests()

    async def commit(self, *events: Event) -> None:
        """Commit events."""
        async with self.parts.store.transaction() as transaction:
            transaction.apply(Changes(events=events))

    async def move_vm(self, name: str, state: VmState) -> None:
        """Move a VM to a state. If it is ready and a request waits, run a pass that grants it."""
        await self.put(replace(self.vms[name], state=state, since_s=NOW_S, lease_id=None))
        if state in _EVENTS:
            await self.commit(Event(_EVENTS[state], NOW_S, vm=name, pool="small"))
        if state is VmState.READY and self.parts.view.queue.requests:
            await self.reconcile()

    async def reconcile(self) -> None:
        """Observe the host, then run one reconcile pass."""
        await self.observe()
        await self.parts.reconciler.reconcile()

    async def observe(self) -> None:
        """Observe the host."""
        parts = self.parts
        await parts.observer.observe(lambda: frozenset(parts.store.state.vms), lambda: parts.executor.busy)

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until a commit makes a condition true."""
        async with asyncio.timeout(10):
            while not holds():
                await self.history.changed(self.sequence)

    async def wait_for_request(self) -> None:
        """Wait until a lease request is in the queue."""
        async with asyncio.timeout(10):
            while not self.parts.view.queue.requests:
                self.parts.awake.clear()
                await self.parts.awake.wait()

    def set_heartbeat_age(self, age_s: float) -> None:
        """Make the last reconcile pass end `age_s` seconds ago."""
        self.parts.reconciler.last_pass_s = time.monotonic() - age_s

    async def _foundation(self, folder: Path, stack: AsyncExitStack) -> Foundation:
        stack.push_async_callback(self.guests.close)
        database = await Database.open(folder / "journal.sqlite")
        stack.push_async_callback(database.close)
        vitals = VitalsSampler(Vitals)
        vitals.latest = Vitals(MemoryPressure.NORMAL, Heat.NOMINAL)
        metering = _WatchedMetering(self.metrics, self.request_refused)
        return Foundation(
            config=Config(data_dir=folder, assignment=AssignmentConfig(source="api")),
            settings=LiveSettings(HostLimits(slots=2, cpus=4.0, memory_mib=4096)),
            board=ConditionBoard(),
            hypervisor=self.guests,
            images=self.images,
            database=database,
            http=await stack.enter_async_context(aiohttp.ClientSession()),
            metrics=self.metrics,
            metering=metering,
            runner=CommandRunner(metering.count_command),
            clock=HostClock(wall_s=lambda: NOW_S, elapsed_s=lambda: 0.0),
            jitter=lambda: 0.5,
            measure_disk=lambda: DiskUsage(100 << 30, self.free_bytes, RESERVE_BYTES),
            identity=IDENTITY,
            vitals=vitals,
        )

    async def _write_first_records(self) -> None:
        document = Assignment.model_validate({"pools": {"small": self.pool}})
        assignment = StoredAssignment("api", etag_of(document), document.model_dump_json())
        async with self.parts.store.transaction() as transaction:
            records = tuple(Put(record) for record in (SERVING, assignment, *self.records))
            transaction.apply(Changes(records, self.first_events))

    async def _start_guests(self) -> None:
        """Start the guests of the VMs that run by the journal, and do what the first reconcile pass does for leases."""
        parts = self.parts
        for found in self.vms.values():
            if found.state in RUNNING:
                await self.guests.run_vm(found)
                parts.probe_results.add(found.name, ProbeResult("agent", Outcome.PASS, "answered", NOW_S, 0.01))
        parts.view.is_reconciled = True
        parts.board.post_problem("JournalWritable", NOW_S)
        parts.board.post((*conditions(parts.view.world()), parts.assignments.condition(NOW_S), *self.posted))


class _WatchedMetering(Metering):
    """Sets an event when a lease request ends without a lease."""

    def __init__(self, metrics: Metrics, refused: asyncio.Event) -> None:
        super().__init__(metrics)
        self._refused = refused

    def count_refusal(self, pool: str, error: BaseException) -> None:
        super().count_refusal(pool, error)
        self._refused.set()


@asynccontextmanager
async def _running(engine: Engine) -> AsyncIterator[None]:
    """Run everything that the agent runs until the block ends."""
    running = asyncio.create_task(engine.run())
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
