"""A host in memory: the real planner and the real intents, with effects whose ends the test chooses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.domain import capacity
from agent.domain.actions import (
    CreateVm,
    DestroyVm,
    DropTemplate,
    EvictImage,
    ExpireLease,
    GrantLease,
    MarkFailed,
    NotifyHolder,
    PullImage,
    RemoveStray,
    ResolveImage,
    ResumeVm,
    SaveTemplate,
    SuspendVm,
)
from agent.domain.breaker import Breaker
from agent.domain.events import EventKind
from agent.domain.model import (
    Cause,
    Failure,
    HostLimits,
    HostMode,
    Image,
    Lease,
    Listing,
    Mode,
    Observed,
    PoolSpec,
    Resolution,
    Vm,
    Waiter,
    World,
)
from agent.domain.plan import Plan, plan
from agent.domain.rollout import Rollout, retry, undo
from agent.domain.states import RUNNING, UNPROVEN, VmEvent, VmState
from agent.engine.database import TABLES, Put
from agent.engine.intents import fail_vm, intend, note_leak
from agent.engine.leases import end_lease
from agent.engine.state_store import OPEN, Transaction

if TYPE_CHECKING:
    from agent.domain.actions import Action

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


def digest(version: str) -> str:
    """Return a readable stand-in for a manifest digest."""
    return f"sha256:{version}"


@dataclass
class Host:
    """The simulated host. `bad` versions never turn ready; `registry` says what each reference means."""

    limits: HostLimits = field(default_factory=lambda: HostLimits(slots=2, cpus=16, memory_mib=16384))
    pools: tuple[PoolSpec, ...] = ()
    registry: dict[str, str] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    now_s: float = 1_000_000.0
    jitter: float = 0.5
    can_suspend: bool = False
    can_use_templates: bool = False
    mode: HostMode = OPEN
    disk_full: bool = False
    most_running: int | None = None  # the host itself refuses to run more, as a Mac does
    foreign: int = 0  # VMs of somebody else that run

    def __post_init__(self) -> None:
        self.tables: dict[type, dict[str, Any]] = {kind: {} for kind in TABLES}
        self.images: dict[str, Image] = {}
        self.running: set[str] = set()  # processes
        self.suspended: set[str] = set()  # saved memories of VMs
        self.templates: set[str] = set()
        self.files: set[str] = set()  # clones on disk
        self.damaged: set[str] = set()  # those that lost files behind the agent's back
        self.flying: dict[str, Action] = {}
        self.waiters: list[Waiter] = []
        self.listing: Listing | None = None
        self.events: list[EventKind] = []
        self.served: set[str] = set()  # VMs that were ever given to a lease
        self.foreign_seen = 0
        self._numbers = itertools.count()

    # -- the store, as `Transaction` reads it

    def table(self, kind: type) -> Any:
        return self.tables[kind]

    def commit(self, transaction: Transaction) -> None:
        for (kind, key), change in transaction.changes.items():
            if isinstance(change, Put):
                self.tables[kind][key] = change.record
            else:
                self.tables[kind].pop(key, None)
        self.events += [event.kind for event in transaction.events]

    def transaction(self) -> Transaction:
        return Transaction(self, self.now_s)  # type: ignore[arg-type]

    @property
    def vms(self) -> dict[str, Vm]:
        return self.tables[Vm]

    @property
    def leases(self) -> dict[str, Lease]:
        return self.tables[Lease]

    @property
    def rollouts(self) -> dict[str, Rollout]:
        return self.tables[Rollout]

    # -- the loop

    def world(self) -> World:
        return World(
            now_s=self.now_s,
            jitter=self.jitter,
            limits=self.limits,
            pools=self.pools,
            vms=tuple(self.vms.values()),
            leases=tuple(self.leases.values()),
            waiters=tuple(self.waiters),
            images=tuple(self.images.values()),
            resolutions=dict(self.tables[Resolution]),
            rollouts=dict(self.rollouts),
            breakers=dict(self.tables[Breaker]),
            listing=self.listing,
            busy=frozenset(self.flying),
            mode=self.mode,
            disk_full=self.disk_full,
            excess_bytes=int(self.disk_full),
            foreign_slots=self.foreign_seen,
            can_suspend=self.can_suspend,
            can_use_templates=self.can_use_templates,
            templates=frozenset(self.templates),
            fresh_ids=tuple(self._ulid() for _ in range(8)),
        )

    def turn(self) -> Plan:
        """Take one turn as the reconciler does."""
        planned = plan(self.world())
        self.listing = None
        transaction = self.transaction()
        for rollout in planned.rollouts:
            transaction.put(rollout)
        for gone in self.rollouts.keys() - {rollout.pool for rollout in planned.rollouts}:
            transaction.drop(Rollout, gone)
        for action in planned.actions:
            intend(transaction, action, jitter=self.jitter)
            if isinstance(action, GrantLease):
                self._grant(transaction, action)
        self.commit(transaction)
        for action in planned.actions:
            if not isinstance(action, MarkFailed | NotifyHolder | ExpireLease | GrantLease):
                assert action.resource not in self.flying
                self.flying[action.resource] = action
        return planned

    def settle(self, *, turns: int = 200) -> None:
        """Turn with every effect succeeding until nothing but the regular asking of registries goes on."""
        quiet = 0
        for _ in range(turns):
            self.look()
            planned = self.turn()
            busy = any(not isinstance(action, ResolveImage) for action in (*planned.actions, *self.flying.values()))
            for resource in list(self.flying):
                self.land(resource)
            quiet = 0 if self._prove_all() or busy else quiet + 1
            if quiet == 3:  # once asked, once answered, once with nothing new in the answer
                return
            self.now_s += 700  # past every breaker
        raise AssertionError(f"not settled after {turns} turns: {planned.actions}")

    # -- what happens context

    def look(self) -> None:
        """List the hypervisor's VMs."""
        known = frozenset(self.vms)
        seen = tuple(
            Observed(
                name,
                ours=True,
                running=name in self.running,
                suspended=name in self.suspended,
                damaged="its disk is gone" if name in self.damaged else "",
            )
            for name in sorted(self.files)
        )
        self.listing = Listing(seen, known, known - frozenset(self.flying))
        self.foreign_seen = self.foreign

    def land(self, resource: str, *, ok: bool = True) -> None:
        """End the effect that is under way on a resource."""
        action = self.flying.pop(resource)
        transaction = self.transaction()
        match action:
            case CreateVm(name):
                self.files.add(name)
                self._created(transaction, self.vms[name], ok=ok)
            case DestroyVm(name) | RemoveStray(name):
                self._ended(transaction, name, ok=ok)
            case SuspendVm(name) | ResumeVm(name):
                self._moved_memory(transaction, self.vms[name], ok=ok)
            case SaveTemplate() | DropTemplate():
                self._changed_templates(transaction, action, ok=ok)
            case PullImage() | EvictImage() | ResolveImage():
                self._changed_images(transaction, action, ok=ok)
        self.commit(transaction)

    def _changed_templates(self, transaction: Transaction, action: SaveTemplate | DropTemplate, *, ok: bool) -> None:
        if isinstance(action, DropTemplate):
            self.templates.discard(action.template)
        elif ok:
            self.templates.add(action.template)
        else:
            transaction.trip(action.template, reason="cannot be saved", jitter=1.0)

    def _changed_images(
        self, transaction: Transaction, action: PullImage | EvictImage | ResolveImage, *, ok: bool
    ) -> None:
        match action:
            case PullImage(_, image) if ok:
                self.images[image] = Image(image)
            case PullImage(_, image):
                transaction.trip(image, reason="pull failed", jitter=self.jitter)
            case EvictImage(image):
                self.images.pop(image)
            case ResolveImage(reference) if ok:
                transaction.put(Resolution(reference, self.registry[reference], self.now_s))
            case ResolveImage(reference):
                known = self.tables[Resolution].get(reference)
                transaction.put(Resolution(reference, known.digest if known else None, self.now_s, "unreachable"))
                transaction.trip(reference, reason="unreachable", jitter=self.jitter)

    def prove(self, name: str) -> bool:
        """Let the startup probes of a VM give their verdict; return whether there was one to give."""
        vm = self.vms[name]
        if vm.state not in UNPROVEN or name in self.flying or name not in self.running:
            return False
        transaction = self.transaction()
        if vm.image in self.bad:
            self._fail(transaction, vm, Cause.STARTUP_DEADLINE)
        else:
            transaction.move(vm, VmEvent.PROVEN, ready_at_s=self.now_s)
        self.commit(transaction)
        return True

    def die(self, name: str) -> None:
        """End a VM's process, noticed at once."""
        self.running.discard(name)
        vm = self.vms.get(name)
        if vm is not None and vm.state in RUNNING:
            transaction = self.transaction()
            self._fail(transaction, vm, Cause.EXITED)
            self.commit(transaction)

    def fail(self, name: str, cause: Cause) -> None:
        """Let a VM fail for a cause."""
        transaction = self.transaction()
        self._fail(transaction, self.vms[name], cause)
        self.commit(transaction)

    def vanish(self, name: str) -> None:
        """End a VM's process with nobody noticing."""
        self.running.discard(name)

    def restart_agent(self) -> None:
        """Forget everything that is not in the journal; effects under way stop where they are."""
        for resource, action in self.flying.items():
            if isinstance(action, CreateVm):
                self.files.add(resource)
        self.flying.clear()
        self.waiters.clear()
        self.listing = None

    def ask_lease(self, pool: str) -> None:
        """Let a request join the line."""
        if self.mode.takes_leases:
            self.waiters.append(Waiter(f"w{next(self._numbers)}", pool, self.now_s))

    def set_mode(self, mode: Mode) -> None:
        """Open, cordon or drain the host: who waits for a VM is turned away unless it is open."""
        self.mode = HostMode(mode, self.now_s)
        if not self.mode.takes_leases:
            self.waiters.clear()

    def retry(self, pool: str) -> None:
        """Try a pool's target again, as an operator does."""
        self.rollouts[pool] = retry(self.rollouts[pool], self.now_s)
        self.tables[Breaker].pop(self.rollouts[pool].target or "", None)

    def undo(self, pool: str) -> bool:
        """Go back to the version before, as an operator does; return whether there was one."""
        undone = undo(self.rollouts[pool], reason="undone", now_s=self.now_s)
        if undone is not None:
            self.rollouts[pool] = undone
        return undone is not None

    def release(self, lease_id: str) -> None:
        """End a lease by its holder."""
        transaction = self.transaction()
        end_lease(transaction, self.leases[lease_id], EventKind.LEASE_RELEASED)
        self.commit(transaction)

    # -- what tests ask

    def in_state(self, pool: str, state: VmState, version: str | None = None) -> list[Vm]:
        """Return the VMs of a pool in a state, of one version if named."""
        vms = [vm for vm in self.vms.values() if vm.pool == pool and vm.state is state]
        return [vm for vm in vms if version is None or vm.image == version]

    @property
    def full(self) -> bool:
        """Whether the host refuses to run one more VM."""
        return self.most_running is not None and len(self.running) + self.foreign >= self.most_running

    def used(self) -> capacity.Resources:
        """Return what VMs hold."""
        return capacity.used(self.world())

    def _grant(self, transaction: Transaction, action: GrantLease) -> None:
        waiter = next(waiter for waiter in self.waiters if waiter.id == action.waiter)
        self.waiters.remove(waiter)
        vm = transaction.get(Vm, action.vm)
        assert vm is not None
        assert vm.pool == waiter.pool
        assert vm.name not in self.served, "no VM serves two leases"
        self.served.add(vm.name)
        lease = Lease(f"lease-{waiter.id}", waiter.pool, vm.name, "test", 3600, self.now_s, self.now_s + 3600)
        transaction.put(lease)
        transaction.move(vm, VmEvent.LEASE, lease_id=lease.id)

    def _created(self, transaction: Transaction, vm: Vm, *, ok: bool) -> None:
        if not ok:
            self._fail(transaction, vm, Cause.CLONE_FAILED)
            return
        transaction.move(vm, VmEvent.CLONED)
        if self.full:
            cloned = transaction.get(Vm, vm.name)
            assert cloned is not None
            self._fail(transaction, cloned, Cause.SLOTS_TAKEN)
            return
        self.running.add(vm.name)

    def _moved_memory(self, transaction: Transaction, vm: Vm, *, ok: bool) -> None:
        if vm.state is VmState.SUSPENDING:
            self.running.discard(vm.name)
            if ok:
                self.suspended.add(vm.name)
                transaction.move(vm, VmEvent.SUSPENDED)
            else:
                self._fail(transaction, vm, Cause.SUSPEND_FAILED)
        elif vm.state is VmState.RESUMING:
            self.suspended.discard(vm.name)
            if ok and not self.full:
                self.running.add(vm.name)
            else:
                self._fail(transaction, vm, Cause.RESUME_FAILED)

    def _ended(self, transaction: Transaction, name: str, *, ok: bool) -> None:
        if not ok:
            note_leak(transaction, name, reason="teardown failed", jitter=self.jitter)
            return
        self.running.discard(name)
        self.suspended.discard(name)
        self.files.discard(name)
        self.damaged.discard(name)
        transaction.drop(Vm, name)
        transaction.drop(Breaker, name)

    def _fail(self, transaction: Transaction, vm: Vm, cause: Cause) -> None:
        fail_vm(transaction, vm, Failure(cause, "as the test wants", self.now_s), jitter=self.jitter)

    def _prove_all(self) -> bool:
        proven = [self.prove(name) for name in list(self.vms)]
        return any(proven)

    def _ulid(self) -> str:
        number, text = next(self._numbers), ""
        for _ in range(26):
            number, rest = divmod(number, 32)
            text = _BASE32[rest] + text
        return text


def serving_host(*, warm: int = 2, slots: int = 2, **pool: Any) -> Host:
    """Return a settled host with one pool `ci` that serves version v1."""
    host = Host(limits=HostLimits(slots, 64, 65536), pools=(PoolSpec("ci", "reg/ci:latest", warm=warm, **pool),))
    host.registry["reg/ci:latest"] = digest("v1")
    host.settle()
    return host


def assigned(host: Host, **changes: Any) -> None:
    """Change the only pool of a host."""
    host.pools = (replace(host.pools[0], **changes),)
