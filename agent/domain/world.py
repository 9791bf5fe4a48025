"""The world: everything a plan is made from, at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.domain.model import OPEN, Mode, PoolSpec
from agent.domain.names import PREFIX
from agent.domain.states import VmState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.breaker import Breaker, BreakerKey
    from agent.domain.model import HostLimits, HostMode, Image, Lease, LeaseRequest, Observed, Resolution, Vm
    from agent.domain.rollout import Rollout


@dataclass(frozen=True, slots=True)
class Listing:
    """The hypervisor's list of VMs, and what the journal held when the query began.

    VMs start and end during a query. A VM's absence is therefore reliable only for `idle` VMs: those the journal held
    without an action under way. A listed VM can be a stray only if it is not `known`.
    """

    seen: tuple[Observed, ...]
    known: frozenset[str]
    idle: frozenset[str]

    def idle_vms(self) -> dict[str, Observed | None]:
        """Return how each idle VM is listed: None for one that is absent."""
        return dict.fromkeys(self.idle) | {seen.name: seen for seen in self.seen if seen.name in self.idle}


@dataclass(frozen=True, slots=True)
class World:
    """The host's records, observations and assignment at `now_s`. `jitter` is a random number from 0 to 1."""

    now_s: float
    jitter: float
    limits: HostLimits
    pools: tuple[PoolSpec, ...] = ()
    vms: tuple[Vm, ...] = ()
    leases: tuple[Lease, ...] = ()
    requests: tuple[LeaseRequest, ...] = ()  # the lease requests that wait for a VM
    unclaimed_leases: frozenset[str] = frozenset()  # granted, but their requests were answered with an error
    images: tuple[Image, ...] = ()
    resolutions: Mapping[str, Resolution] = field(default_factory=dict)  # by reference
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)  # by pool
    breakers: Mapping[BreakerKey, Breaker] = field(default_factory=dict)
    listing: Listing | None = None  # None: the hypervisor did not answer yet, or its list was acted on already
    busy: frozenset[str] = frozenset()  # resources with an effect under way: VM names, digests, references, templates
    unleasable: frozenset[str] = frozenset()  # VMs that must not be leased although they are recorded as ready
    mode: HostMode = OPEN
    disk_full: bool = False
    excess_bytes: int = 0  # what evictions must free: down to the low watermark, and up to the free-space reserve
    foreign_slots: int = 0  # slots held by VMs of other owners, where the hypervisor counts them
    unknown_vms: tuple[str, ...] = ()  # VMs of this agent that run and are not in the journal
    fresh_ids: tuple[str, ...] = ()  # unused ULIDs, to name the VMs this plan creates
    name_prefix: str = PREFIX
    can_suspend: bool = False  # the hypervisor can suspend a VM to disk and resume it
    can_use_templates: bool = False  # the hypervisor can start several VMs from one snapshot
    templates: frozenset[str] = frozenset()  # the snapshots that VMs can be started from
    resolve_period_s: float = 300.0
    began_s: float = 0.0  # when this run of the agent began to probe

    _digests: frozenset[str] = field(init=False, repr=False, compare=False)
    _pools_by_name: Mapping[str, PoolSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the images and the pools: rules look each of them up for each VM and pool."""
        object.__setattr__(self, "_digests", frozenset(image.digest for image in self.images))
        object.__setattr__(self, "_pools_by_name", {pool.name: pool for pool in self.pools})

    @property
    def is_draining(self) -> bool:
        """Whether this host is being emptied."""
        return self.mode.mode is Mode.DRAINING

    def pool(self, name: str) -> PoolSpec | None:
        """Return the assigned pool of that name, or None."""
        return self._pools_by_name.get(name)

    def pool_of(self, vm: Vm) -> PoolSpec | None:
        """Return the assigned pool of a VM. A leased VM of an unassigned pool keeps the probes of its lease."""
        assigned = self.pool(vm.pool)
        if assigned is not None or vm.lease_id is None:
            return assigned
        lease = next((lease for lease in self.leases if lease.id == vm.lease_id), None)
        return PoolSpec(vm.pool, vm.image, probes=lease.probes) if lease else None

    def has_image(self, digest: str) -> bool:
        """Whether that image version is complete in the local store."""
        return digest in self._digests

    def is_blocked(self, key: BreakerKey) -> bool:
        """Whether an effect works on the thing that `key` names, or its breaker is open."""
        breaker = self.breakers.get(key)
        return key.name in self.busy or (breaker is not None and breaker.is_open(self.now_s))

    def can_lease(self, vm: Vm) -> bool:
        """Whether a lease may be granted on a VM now: the one answer for the planner and for requests."""
        return vm.state is VmState.READY and vm.name not in self.unleasable and vm.name not in self.busy
