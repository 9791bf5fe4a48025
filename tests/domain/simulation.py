"""A host in memory: the real planner and the real `record`, with effects that end as the test chooses."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agent.domain import capacity, facts
from agent.domain.actions import (
    CreateVm,
    DestroyVm,
    DropTemplate,
    EvictImage,
    GrantLease,
    MarkFailed,
    PullImage,
    RemoveStray,
    ResolveImage,
    ResumeVm,
    SaveTemplate,
    SuspendVm,
)
from agent.domain.breaker import Breaker
from agent.domain.errors import NothingToRetryError, NothingToUndoError
from agent.domain.facts import RolloutsAdvanced
from agent.domain.model import (
    Cause,
    Failure,
    HostLimits,
    HostMode,
    Image,
    Lease,
    LeaseRequest,
    Mode,
    Observed,
    PoolSpec,
    Resolution,
    Vm,
)
from agent.domain.plan import Plan, plan
from agent.domain.record import record
from agent.domain.rollout import Rollout
from agent.domain.states import AWAITS_PROBES, VmState
from agent.domain.stored_state import KEYS, Put, StoredState, key_of
from agent.domain.world import Listing, World

if TYPE_CHECKING:
    from agent.domain.actions import Action, Effect
    from agent.domain.events import EventKind
    from agent.domain.facts import Fact

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


def digest(version: str) -> str:
    """Return a readable stand-in for a manifest digest."""
    return f"sha256:{version}"


@dataclass
class Host:
    """The simulated host. `bad` versions never become ready; `registry` has the digest of each reference."""

    limits: HostLimits = field(default_factory=lambda: HostLimits(slots=2, cpus=16, memory_mib=16384))
    pools: tuple[PoolSpec, ...] = ()
    registry: dict[str, str] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    now_s: float = 1_000_000.0
    jitter: float = 0.5
    can_suspend: bool = False
    can_use_templates: bool = False
    disk_full: bool = False
    most_running: int | None = None  # the host itself refuses to run more, as a Mac does
    foreign: int = 0  # running VMs of other owners

    def __post_init__(self) -> None:
        self.tables: dict[type, dict[Any, Any]] = {kind: {} for kind in KEYS}
        self.images: dict[str, Image] = {}
        self.running: set[str] = set()  # processes
        self.suspended: set[str] = set()  # saved memories of VMs
        self.templates: set[str] = set()
        self.files: set[str] = set()  # clones on disk
        self.damaged: set[str] = set()  # those that lost files behind the agent's back
        self.in_flight: dict[str, Effect] = {}
        self.requests: list[LeaseRequest] = []
        self.listing: Listing | None = None
        self.events: list[EventKind] = []
        self.served: set[str] = set()  # VMs that were ever given to a lease
        self.foreign_seen = 0
        self._numbers = itertools.count()

    # -- the stored state

    def record(self, fact: Fact | Action) -> None:
        """Apply what a fact changes, as the state store does."""
        changes = record(StoredState(self.tables), fact, self.now_s, self.jitter)
        for change in changes.records:
            if isinstance(change, Put):
                self.tables[type(change.record)][key_of(change.record)] = change.record
            else:
                self.tables[change.kind].pop(change.key, None)
        self.events += [event.kind for event in changes.events]

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
            requests=tuple(self.requests),
            images=tuple(self.images.values()),
            resolutions=dict(self.tables[Resolution]),
            rollouts=dict(self.rollouts),
            breakers=dict(self.tables[Breaker]),
            listing=self.listing,
            busy=frozenset(self.in_flight),
            mode=self.mode,
            disk_full=self.disk_full,
            excess_bytes=int(self.disk_full),
            foreign_slots=self.foreign_seen,
            can_suspend=self.can_suspend,
            can_use_templates=self.can_use_templates,
            templates=frozenset(self.templates),
            fresh_ids=tuple(self._ulid() for _ in range(8)),
        )

    def reconcile(self) -> Plan:
        """Run one pass as the reconciler does."""
        planned = plan(self.world())
        self.listing = None
        self.record(RolloutsAdvanced(planned.rollouts))
        for action in planned.actions:
            if isinstance(action, GrantLease):
                self._check_grant(action)
            self.record(action)
        for effect in planned.effects:
            assert effect.resource not in self.in_flight
            self.in_flight[effect.resource] = effect
        return planned

    def settle(self, *, passes: int = 200) -> None:
        """Run passes with every effect succeeding until only the periodic registry queries continue."""
        idle_passes = 0
        for _ in range(passes):
            self.observe()
            planned = self.reconcile()
            is_busy = any(
                not isinstance(action, ResolveImage) for action in (*planned.actions, *self.in_flight.values())
            )
            for resource in list(self.in_flight):
                self.finish(resource)
            idle_passes = 0 if self._pass_all_probes() or is_busy else idle_passes + 1
            if idle_passes == 3:  # a query, its result, and one pass without anything new
                return
            self.now_s += 700  # past every breaker
        raise AssertionError(f"not settled after {passes} passes: {planned.actions}")

    # -- events on the host

    def observe(self) -> None:
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
        self.listing = Listing(seen, known, known - frozenset(self.in_flight))
        self.foreign_seen = self.foreign

    def finish(self, resource: str, *, ok: bool = True) -> None:
        """End the effect under way on a resource."""
        effect = self.in_flight.pop(resource)
        match effect:
            case CreateVm(name):
                self.files.add(name)
                self._finish_creation(name, ok=ok)
            case DestroyVm(name) | RemoveStray(name):
                self._finish_removal(effect, name, ok=ok)
            case SuspendVm(name):
                self._finish_suspension(name, ok=ok)
            case ResumeVm(name):
                self._finish_resumption(name, ok=ok)
            case _:
                self._finish_storage(effect, ok=ok)

    def _finish_storage(self, effect: Effect, *, ok: bool) -> None:
        reason = "as the test wants"
        match effect:
            case SaveTemplate(vm, template) if ok:
                self.templates.add(template)
                self.record(facts.TemplateSaved(template, vm, 1.0))
            case SaveTemplate(vm, template):
                self.record(facts.TemplateSaveFailed(template, vm, reason))
            case DropTemplate(template):
                self.templates.discard(template)
                self.record(facts.TemplateDropped(template))
            case PullImage(reference, image) if ok:
                self.images[image] = Image(image)
                self.record(facts.PullFinished(image, reference, 1.0))
            case PullImage(reference, image):
                self.record(facts.PullFailed(image, reference, reason))
            case EvictImage(image):
                self.images.pop(image)
                self.record(facts.ImageEvicted(image))
            case ResolveImage(reference) if ok:
                self.record(facts.ReferenceResolved(reference, self.registry[reference]))
            case ResolveImage(reference):
                self.record(facts.ResolveFailed(reference, reason))

    def pass_probes(self, name: str) -> bool:
        """Let the startup probes of a VM end; return whether any were running."""
        vm = self.vms[name]
        if vm.state not in AWAITS_PROBES or name in self.in_flight or name not in self.running:
            return False
        if vm.image in self.bad:
            self.record(facts.ProbeFailed(name, Cause.STARTUP_DEADLINE, "as the test wants"))
        else:
            self.record(facts.StartupProbesPassed(name))
        return True

    def die(self, name: str) -> None:
        """End a VM's process, and report its exit."""
        self.running.discard(name)
        self.record(facts.ProcessExited(name, 1))

    def fail(self, name: str, cause: Cause) -> None:
        """Let a VM fail for a cause."""
        self.record(MarkFailed(name, Failure(cause, "as the test wants", self.now_s)))

    def vanish(self, name: str) -> None:
        """End a VM's process without a report."""
        self.running.discard(name)

    def restart_agent(self) -> None:
        """Lose everything that is not in the journal; effects under way stop where they are."""
        for resource, effect in self.in_flight.items():
            if isinstance(effect, CreateVm):
                self.files.add(resource)
        self.in_flight.clear()
        self.requests.clear()
        self.listing = None

    def request_lease(self, pool: str) -> None:
        """Add a lease request to the queue."""
        if self.mode.takes_leases:
            self.requests.append(LeaseRequest(f"w{next(self._numbers)}", pool, self.now_s, "test", 3600))

    @property
    def mode(self) -> HostMode:
        """The mode of this host."""
        return StoredState(self.tables).mode

    def set_mode(self, mode: Mode) -> None:
        """Open, cordon or drain the host: waiting requests are refused unless it is open."""
        self.record(facts.ModeSet(mode, ""))
        if not self.mode.takes_leases:
            self.requests.clear()

    def retry(self, pool: str) -> None:
        """Retry a pool's target, as an operator does, if there is anything to retry."""
        with suppress(NothingToRetryError):
            self.record(facts.RolloutRetried(pool))

    def undo(self, pool: str) -> bool:
        """Undo a rollout, as an operator does; return whether there was anything to undo."""
        try:
            self.record(facts.RolloutUndone(pool, ""))
        except NothingToUndoError:
            return False
        return True

    def release(self, lease_id: str) -> None:
        """End a lease by its holder."""
        self.record(facts.LeaseReleased(lease_id))

    # -- queries

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

    def _check_grant(self, action: GrantLease) -> None:
        self.requests.remove(action.request)
        vm = self.vms[action.vm]
        assert vm.pool == action.request.pool
        assert vm.name not in self.served, "no VM serves two leases"
        self.served.add(vm.name)

    def _finish_creation(self, name: str, *, ok: bool) -> None:
        if not ok:
            self.record(facts.CloneFailed(name, Cause.CLONE_FAILED, "as the test wants"))
            return
        self.record(facts.VmCloned(name, "boot", 1.0))
        if self.full:
            self.record(facts.StartFailed(name, Cause.SLOTS_TAKEN, "as the test wants"))
            return
        self.running.add(name)

    def _finish_suspension(self, name: str, *, ok: bool) -> None:
        self.running.discard(name)
        if ok:
            self.suspended.add(name)
            self.record(facts.VmSuspended(name, 1.0))
        else:
            self.record(facts.SuspendFailed(name, Cause.SUSPEND_FAILED, "as the test wants"))

    def _finish_resumption(self, name: str, *, ok: bool) -> None:
        self.suspended.discard(name)
        if ok and not self.full:
            self.running.add(name)
        else:
            self.record(facts.ResumeFailed(name, Cause.RESUME_FAILED, "as the test wants"))

    def _finish_removal(self, effect: Effect, name: str, *, ok: bool) -> None:
        is_stray = isinstance(effect, RemoveStray)
        if not ok:
            failed = facts.StrayRemovalFailed if is_stray else facts.TeardownFailed
            self.record(failed(name, "as the test wants"))
            return
        for names in (self.running, self.suspended, self.files, self.damaged):
            names.discard(name)
        self.record(facts.StrayRemoved(name) if is_stray else facts.VmRemoved(name, 1.0))

    def _pass_all_probes(self) -> bool:
        passed = [self.pass_probes(name) for name in list(self.vms)]
        return any(passed)

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
