"""An honest in-memory implementation of the ports: it keeps its promises, with no VM behind it.

Leases are exclusive, waiters are served in order and leave when cancelled, an idempotency key gives the same lease
again, the sequence grows with every change. What a test needs to happen (a VM turns ready, a hypervisor hangs) it makes
happen by a method here.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agent.config import Assignment
from agent.domain.conditions import conditions
from agent.domain.errors import ErrorOrigin, HearthError, LeaseNotFoundError, PoolUnknownError
from agent.domain.events import Event, EventKind
from agent.domain.health import Outcome, ProbeResult
from agent.domain.model import (
    Check,
    Condition,
    HostLimits,
    HostMode,
    Image,
    Lease,
    LeaseRequest,
    PoolSpec,
    Vm,
    VmSize,
)
from agent.domain.rollout import Phase, Rollout
from agent.domain.states import VmState
from agent.domain.world import World
from agent.engine.assignments import AssignmentConflictError, AssignmentReadOnlyError, HeldAssignment
from agent.engine.guests import Guests
from agent.engine.leases import LeaseConflictError, LeaseEndedError, NoVmFreeError
from agent.host.disk_space import DiskUsage
from agent.host.host_info import HostIdentity
from agent.host.vitals import Heat, MemoryPressure, Vitals
from agent.hypervisors.contract import Address, ExecResult, GuestError, VmNotRunningError
from tests.api.local_command import LocalCommand
from tests.api.memory_operations import MemoryOperations, no_evidence

if TYPE_CHECKING:
    from agent.api.engine_protocols import EngineParts
    from agent.domain.breaker import Breaker, BreakerKey
    from agent.hypervisors.sessions import ExecSession
    from agent.images.contract import PullProgress

NOW_S = 1_800_000_000.0
DIGEST = "sha256:" + "a" * 64
COMING = "sha256:" + "b" * 64
SMALL = PoolSpec("small", "oci-layout:/images:v1", warm=2, size=VmSize(1, 512), ports=(22, 8080))


class VmLeasedError(HearthError):
    """The VM is leased: nobody may take it away."""

    code = "vm-leased"
    blame = ErrorOrigin.REQUEST


def vm(name: str, state: VmState = VmState.READY, *, age_s: float = 60.0) -> Vm:
    born_s = NOW_S - age_s
    return Vm(name, "small", DIGEST, state, SMALL.size, born_s, born_s + 1, ready_at_s=born_s + 2)


class MemoryEngine:
    """Implements `agent.api.engine_protocols.Engine`."""

    def __init__(self, *vms: Vm, source: str = "api") -> None:
        self.sequence = 1
        self.vms = {item.name: item for item in vms}
        self.pools = {SMALL.name: SMALL}
        self.leases = MemoryLeases(self)
        self.operations = MemoryOperations(self)
        self.evidence = no_evidence(Path("/nowhere"))
        self.mode = HostMode()
        self.rollouts = {"small": Rollout("small", DIGEST, DIGEST, Phase.SERVING, NOW_S)}
        self.history = MemoryHistory(self)
        self.checks = [Check("journal", True, "open"), Check("hypervisor", True, "qemu")]
        self.age_s = 0.5
        self.foreign_slots = 0
        self.breakers: dict[BreakerKey, Breaker] = {}
        self.posted: tuple[Condition, ...] = ()
        self.disk_is_full = False
        self.free_bytes = 60 << 30
        self.pulling: tuple[PullProgress, ...] = ()
        self.replaced: list[tuple[str, str]] = []
        self.executed: list[tuple[str, tuple[str, ...]]] = []
        self.exec_asked = asyncio.Event()
        self.exec_hangs = False
        self.exec_closed = asyncio.Event()
        self.sessions: list[LocalCommand] = []
        self.address_hangs = False
        self.address_asked = asyncio.Event()
        self.renderings = 0
        document = Assignment.model_validate({"pools": {"small": {"image": SMALL.image}}})
        self._held = HeldAssignment(document, document.specs(), "1", source)

    def changed(self, *events: Event) -> None:
        """Count one change of the world, with the events that go with it."""
        self.sequence += 1
        self.history.add(events)

    def become(self, name: str, state: VmState) -> None:
        """Move a VM to a state and serve who waits for it."""
        self.vms[name] = replace(self.vms[name], state=state)
        kinds = {VmState.READY: EventKind.VM_READY, VmState.STOPPING: EventKind.VM_STOPPING}
        self.changed(*([Event(kinds[state], NOW_S, vm=name, pool="small")] if state in kinds else []))
        self.leases.serve()

    def world(self) -> World:
        self.renderings += 1
        return World(
            now_s=NOW_S,
            jitter=0.5,
            limits=HostLimits(slots=2, cpus=4.0, memory_mib=4096),
            pools=tuple(self.pools.values()),
            vms=tuple(self.vms.values()),
            leases=tuple(self.leases.held.values()),
            requests=tuple(request for request, _ in self.leases.line),
            images=(Image(DIGEST, (SMALL.image,), 64 << 20, 10 << 20, NOW_S),),
            rollouts=self.rollouts,
            mode=self.mode,
            breakers=self.breakers,
            disk_full=self.disk_is_full,
            foreign_slots=self.foreign_slots,
        )

    def conditions(self) -> tuple[Condition, ...]:
        return (*conditions(self.world()), *self.posted)

    def identity(self) -> HostIdentity:
        return HostIdentity("mac-1", "machine", "boot", "Linux 6", "x86_64", 2, 8192, "0.1.0", "qemu", "7.2")

    def vitals(self) -> Vitals:
        return Vitals(MemoryPressure.NORMAL, Heat.NOMINAL)

    def disk(self) -> DiskUsage:
        return DiskUsage(100 << 30, self.free_bytes, 2 << 30)

    def probes(self, vm: str) -> tuple[ProbeResult, ...]:
        return (ProbeResult("agent", Outcome.PASS, "answered", NOW_S, 0.01),) if vm in self.vms else ()

    def pulls(self) -> tuple[PullProgress, ...]:
        return self.pulling

    async def address(self, vm: str) -> Address:
        self.address_asked.set()
        if self.address_hangs:
            await asyncio.Event().wait()
        if self.vms[vm].state not in (VmState.READY, VmState.LEASED, VmState.STARTING):
            raise VmNotRunningError(f"{vm} does not run")
        return Address("127.0.0.1", {22: 40022, 8080: 48080})

    def heartbeat_age_s(self) -> float:
        return self.age_s

    def readiness(self) -> tuple[Check, ...]:
        return tuple(self.checks)

    def assignment(self) -> HeldAssignment:
        return self._held

    async def put_assignment(self, document: Assignment, *, if_match: str | None) -> HeldAssignment:
        if self._held.source != "api":
            raise AssignmentReadOnlyError("the assignment comes from a file", remedy="edit the file")
        if if_match not in (None, self._held.etag):
            raise AssignmentConflictError("somebody else changed the assignment", remedy="read it again")
        tag = hashlib.sha256(document.model_dump_json().encode()).hexdigest()[:12]
        self._held = HeldAssignment(document, document.specs(), tag, "api")
        self.changed()
        return self._held

    async def execute(self, vm: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        """Run the command on this machine: a guest that shares our kernel."""
        self.executed.append((vm, argv))
        self.exec_asked.set()
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(timeout_s):
                stdout, stderr = await process.communicate()
        except TimeoutError:
            raise GuestError(f"{vm} did not end `{argv[0]}` within {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return ExecResult(process.returncode or 0, stdout, stderr)

    async def open_exec(self, vm: str, argv: tuple[str, ...], *, stdin: bool) -> LocalCommand:
        """Start the command on this machine, to be followed."""
        self.executed.append((vm, argv))
        self.exec_asked.set()
        if self.exec_hangs:
            await asyncio.Event().wait()
        self.sessions.append(await LocalCommand.start(argv, stdin=stdin, closed=self.exec_closed))
        return self.sessions[-1]

    async def replace_vm(self, name: str, *, reason: str) -> None:
        if self.vms[name].state is VmState.LEASED:
            raise VmLeasedError(f"{name} is leased", remedy="release its lease first")
        self.replaced.append((name, reason))
        self.become(name, VmState.STOPPING)


class MemoryHistory:
    """Implements `agent.api.engine_protocols.History`."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.all: list[Event] = []
        self.reads = 0
        self._change = asyncio.Event()

    def add(self, events: tuple[Event, ...]) -> None:
        self.all += events
        self._change.set()
        self._change = asyncio.Event()

    async def events(self, *, after: int, vm: str | None = None, limit: int = 500) -> list[tuple[int, Event]]:
        self.reads += 1
        numbered = [(number, event) for number, event in enumerate(self.all, 1) if vm in (None, event.vm)]
        return [item for item in numbered if item[0] > after][:limit]

    async def last(self) -> int:
        return len(self.all)

    async def changed(self, sequence: int) -> None:
        while self.engine.sequence == sequence:
            await self._change.wait()


class MemoryLeases:
    """Implements `agent.api.engine_protocols.Leases`."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.held: dict[str, Lease] = {}
        self.renewals = 0
        self.endings: dict[str, Event] = {}
        self.line: list[tuple[LeaseRequest, asyncio.Future[Vm]]] = []
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()
        self.released = asyncio.Event()

    async def acquire(
        self, pool: str, *, holder: str, ttl_s: float | None, wait_s: float, idempotency_key: str | None
    ) -> Lease:
        if pool not in self.engine.pools:
            raise PoolUnknownError(f"there is no pool {pool!r} on this host", remedy="see `hearth status`")
        known = next(
            (lease for lease in self.held.values() if idempotency_key and lease.idempotency_key == idempotency_key),
            None,
        )
        if known is not None and (known.pool, known.holder) != (pool, holder):
            raise LeaseConflictError(f"key {idempotency_key!r} belongs to another lease", remedy="use a new key")
        if known is not None:
            return known
        vm = self._ready(pool) or await self._wait(pool, wait_s)
        ttl_s = ttl_s or SMALL.lease_ttl_s
        number = len(self.held) + 1
        lease = Lease(f"lease-{number}", pool, vm.name, holder, ttl_s, NOW_S, NOW_S + ttl_s, idempotency_key)
        self.held[lease.id] = lease
        self.engine.vms[vm.name] = replace(vm, state=VmState.LEASED, lease_id=lease.id)
        self.engine.changed()
        return lease

    async def renew(self, lease_id: str, *, ttl_s: float | None) -> Lease:
        lease = await self.get(lease_id)
        self.renewals += 1
        ttl_s = ttl_s or lease.ttl_s
        self.held[lease_id] = replace(lease, ttl_s=ttl_s, expires_at_s=NOW_S + 60 + ttl_s)
        return self.held[lease_id]

    async def release(self, lease_id: str) -> None:
        lease = await self.get(lease_id)
        del self.held[lease_id]
        self.engine.become(lease.vm, VmState.STOPPING)
        self.released.set()

    async def get(self, lease_id: str) -> Lease:
        if lease_id in self.endings:
            raise LeaseEndedError(self.endings[lease_id])
        if lease_id not in self.held:
            raise LeaseNotFoundError(f"there is no lease {lease_id!r}", remedy="ask for a new lease")
        return self.held[lease_id]

    def serve(self) -> None:
        """Give ready VMs to those who wait, in order."""
        for waiter, given in tuple(self.line):
            ready = self._ready(waiter.pool)
            if ready is not None and not given.done():
                given.set_result(ready)
                return

    def _ready(self, pool: str) -> Vm | None:
        vms = self.engine.vms.values()
        return next((vm for vm in vms if vm.pool == pool and vm.state is VmState.READY), None)

    async def _wait(self, pool: str, wait_s: float) -> Vm:
        given: asyncio.Future[Vm] = asyncio.get_running_loop().create_future()
        place = (LeaseRequest(f"waiter-{len(self.line)}", pool, NOW_S, "test", 60), given)
        self.line.append(place)
        self.engine.changed()
        self.arrived.set()
        try:
            async with asyncio.timeout(wait_s):
                return await given
        except TimeoutError:
            raise NoVmFreeError(
                f"no VM of pool {pool!r} turned ready within {wait_s:g} s", remedy="wait longer"
            ) from None
        finally:
            self.line.remove(place)
            self.left.set()


class _MemoryHost:
    """The host of a memory engine: its methods, with the identity as a value."""

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self.identity = engine.identity()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class _MemoryAssignments:
    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine

    @property
    def held(self) -> HeldAssignment:
        return self._engine.assignment()

    async def put(self, document: Assignment, *, if_match: str | None) -> HeldAssignment:
        return await self._engine.put_assignment(document, if_match=if_match)


class _MemoryVms:
    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine

    async def replace(self, vm: str, *, reason: str) -> None:
        await self._engine.replace_vm(vm, reason=reason)


class _MemoryGuests(Guests):
    async def execute(self, vm: str, argv: tuple[str, ...], *, timeout_s: float) -> ExecResult:
        return await self.hypervisor.execute(vm, argv, timeout_s=timeout_s)

    async def open_exec(self, vm: str, argv: tuple[str, ...], *, stdin: bool) -> ExecSession:
        return await cast("MemoryEngine", self.hypervisor).open_exec(vm, argv, stdin=stdin)


class _MemoryParts:
    """The parts of a memory engine, as they are when they are used."""

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self.host = _MemoryHost(engine)
        self.assignments = _MemoryAssignments(engine)
        self.vms = _MemoryVms(engine)
        self.guests = _MemoryGuests(cast("Any", engine))
        self.health = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def memory_parts(engine: MemoryEngine) -> EngineParts:
    """Return a memory engine as the parts that the API uses."""
    return cast("EngineParts", _MemoryParts(engine))
