"""The words of the product as values: pools, VMs, leases, images, the host, and the world they make up.

All values are immutable. Times are seconds since the epoch (`_s`), sizes are bytes or MiB as their names say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.domain.names import PREFIX
from agent.domain.states import ALIVE, HOLDS_SLOT, VmState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent.domain.breaker import Breaker
    from agent.domain.rollout import Rollout


class ProbeKind(StrEnum):
    """The questions a probe can ask."""

    AGENT = "agent"  # the guest agent answers a ping
    EXEC = "exec"  # a command in the guest ends with the expected exit code
    TCP = "tcp"  # a guest port accepts a connection
    HTTP = "http"  # a guest URL answers with the expected status


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """One health question. It fails a live VM after `failures` wrong answers in a row, asked every `period_s`."""

    kind: ProbeKind
    port: int = 0
    path: str = "/"
    status: int = 200
    argv: tuple[str, ...] = ()
    exit_code: int = 0
    period_s: float = 10.0
    timeout_s: float = 5.0
    failures: int = 3

    @property
    def name(self) -> str:
        """Name for logs and metrics: the kind and what it asks."""
        detail = {
            ProbeKind.TCP: f":{self.port}",
            ProbeKind.HTTP: f":{self.port}{self.path}",
            ProbeKind.EXEC: f":{' '.join(self.argv)}",
        }
        return f"{self.kind}{detail.get(self.kind, '')}"


@dataclass(frozen=True, slots=True)
class VmSize:
    """Processors and memory given to one VM."""

    cpus: int = 2
    memory_mib: int = 4096


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A named set of identical VMs to keep ready, as the assignment asks for it."""

    name: str
    image: str
    warm: int = 1
    max: int = 0  # most VMs of this pool at once, leased ones included; 0: as many as fit
    min_ready: int = 0  # ready VMs of the serving version that a rollout must leave standing
    priority: int = 0  # higher is filled first when not all pools fit
    size: VmSize = VmSize()
    ports: tuple[int, ...] = (22,)
    probes: tuple[ProbeSpec, ...] = (ProbeSpec(ProbeKind.AGENT),)
    startup_period_s: float = 0.25
    startup_deadline_s: float = 300.0
    stop_grace_s: float = 10.0
    lease_ttl_s: float = 3600.0
    lease_max_ttl_s: float = 86400.0
    canary_attempts: int = 2
    standby: int = 0  # proven VMs to keep suspended beyond the warm ones, where the hypervisor can
    use_templates: bool = True  # start VMs from the memory of a proven one, where hypervisor and guest can
    max_age_s: float | None = None  # an idle VM older than this is replaced
    max_idle_s: float | None = None  # a VM that was ready for this long without a lease is replaced


class Cause(StrEnum):
    """Why a VM failed: a closed set, used as a metric label."""

    CLONE_FAILED = "clone-failed"
    IMAGE_UNFIT = "image-unfit"  # this host cannot run that image
    START_FAILED = "start-failed"
    SUSPEND_FAILED = "suspend-failed"
    RESUME_FAILED = "resume-failed"
    STARTUP_DEADLINE = "startup-deadline"
    EXITED = "exited"
    PROBE_FAILED = "probe-failed"
    PROBE_ERROR = "probe-error"  # the probe itself could not be asked for too long
    LOST = "lost"  # the hypervisor does not know it any more
    DAMAGED = "damaged"  # it runs, but files it needs are gone
    SLOTS_TAKEN = "slots-taken"  # somebody else's VMs hold the slot it was to have
    INTERRUPTED = "interrupted"  # the agent died while creating it
    REQUESTED = "requested"  # a person or the controller asked for its replacement


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with a VM, and when."""

    cause: Cause
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Vm:
    """One clone with one life, as the journal knows it."""

    name: str
    pool: str
    image: str  # digest
    state: VmState
    size: VmSize
    created_at_s: float
    since_s: float  # when it entered its state
    ready_at_s: float | None = None  # when it was first proven; None until then
    lease_id: str | None = None
    failure: Failure | None = None
    stop_grace_s: float = 10.0
    template: str | None = None  # the memory it was started from; None: it booted
    replacement_due: bool = (
        False  # it was warm until it was suspended: its pool is owed a new VM before it is resumed as a spare
    )
    reported_failure: Failure | None = None  # what its holder was last told is wrong with it, while it is leased

    @property
    def alive(self) -> bool:
        """Whether it serves or is on its way to."""
        return self.state in ALIVE

    @property
    def holds_slot(self) -> bool:
        """Whether it still holds its slot, memory and processors."""
        return self.state in HOLDS_SLOT


@dataclass(frozen=True, slots=True)
class Lease:
    """An exclusive, expiring claim of `holder` on one VM."""

    id: str
    pool: str
    vm: str
    holder: str
    ttl_s: float
    created_at_s: float
    expires_at_s: float
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Waiter:
    """A lease request that found no ready VM and waits for one. Lives in memory only: its client holds the line."""

    id: str
    pool: str
    since_s: float


@dataclass(frozen=True, slots=True)
class Image:
    """One image version that is whole on this host."""

    digest: str
    references: tuple[str, ...] = ()
    disk_bytes: int = 0  # what the guest sees
    allocated_bytes: int = 0  # what it takes on this disk
    last_used_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image version on this host, as the driver needs it to clone from."""

    digest: str
    directory: Path  # holds disk.img, config.json, nvram.bin and manifest.json
    disk: Path
    nvram: Path | None  # None when the image has an empty NVRAM layer
    os: str  # "linux" or "darwin"
    arch: str  # "amd64" or "arm64"
    known_as: str = ""  # what the hypervisor's own tool calls it where that keeps it (Anka: template:tag)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What digest a reference meant when the registry was last asked, or why it could not be told."""

    reference: str
    digest: str | None
    at_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """One VM as the hypervisor lists it."""

    name: str
    ours: bool
    running: bool
    pid: int | None = None
    suspended: bool = False  # it can be resumed from a saved memory
    image: str = field(default="", compare=False)  # digest it was cloned from; empty where the driver cannot tell
    damaged: str = ""  # which files it needs are gone though it looks alive; empty: none, or the driver cannot tell


@dataclass(frozen=True, slots=True)
class Listing:
    """What the hypervisor listed, and what the journal knew when the listing began.

    A listing takes time, and VMs come and go meanwhile: only for the VMs that were `idle` (known, with no action under
    way) is absence a fact, and only what was not `known` can be a stray.
    """

    seen: tuple[Observed, ...]
    known: frozenset[str]
    idle: frozenset[str]

    def facts(self) -> dict[str, Observed | None]:
        """Return how each VM is listed of which the listing is a fact: None for one that is not there."""
        return dict.fromkeys(self.idle) | {seen.name: seen for seen in self.seen if seen.name in self.idle}


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What VMs of this host may use together."""

    slots: int
    cpus: float
    memory_mib: int


class Mode(StrEnum):
    """What an operator lets this host do."""

    OPEN = "open"  # leases and new VMs, as the assignment asks
    CORDONED = "cordoned"  # no new leases; the pools stay warm
    DRAINING = "draining"  # no new leases, no new VMs; idle VMs go now, leased ones end with their leases


@dataclass(frozen=True, slots=True)
class HostMode:
    """The mode of this host, since when, and why in the operator's words. Kept in the journal."""

    mode: Mode = Mode.OPEN
    since_s: float = 0.0
    reason: str = ""

    key: str = "host"

    @property
    def takes_leases(self) -> bool:
        """Whether VMs may be handed out."""
        return self.mode is Mode.OPEN


@dataclass(frozen=True, slots=True)
class World:
    """All a plan is made from, at one moment. `now_s` and `jitter` (0 to 1) come in from outside."""

    now_s: float
    jitter: float
    limits: HostLimits
    pools: tuple[PoolSpec, ...] = ()
    vms: tuple[Vm, ...] = ()
    leases: tuple[Lease, ...] = ()
    waiters: tuple[Waiter, ...] = ()
    images: tuple[Image, ...] = ()
    resolutions: Mapping[str, Resolution] = field(default_factory=dict)
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    breakers: Mapping[str, Breaker] = field(default_factory=dict)
    listing: Listing | None = None  # None: the hypervisor was not asked yet, or did not answer
    busy: frozenset[str] = frozenset()  # resources with an action under way: VM names, digests, references
    mode: HostMode = HostMode()
    disk_full: bool = False
    excess_bytes: int = 0  # what evictions must free: down to the low watermark, and up to the free-space reserve
    foreign_slots: int = 0  # slots held by VMs that are not ours, where the hypervisor counts them
    fresh_ids: tuple[str, ...] = ()  # unused ULIDs, to name the VMs this plan creates
    name_prefix: str = PREFIX
    can_suspend: bool = False  # the hypervisor can keep a VM suspended
    can_use_templates: bool = False  # and start several from one memory
    templates: frozenset[str] = frozenset()  # the memories that stand ready to start VMs from
    resolve_period_s: float = 300.0

    @property
    def draining(self) -> bool:
        """Whether this host is to be emptied."""
        return self.mode.mode is Mode.DRAINING

    def pool(self, name: str) -> PoolSpec | None:
        """Return the assigned pool of that name, or None."""
        return next((pool for pool in self.pools if pool.name == name), None)

    def has_image(self, digest: str) -> bool:
        """Whether that image version is whole on this host."""
        return any(image.digest == digest for image in self.images)


class ConditionStatus(StrEnum):
    """Truth of a condition."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Condition:
    """A named fact about the host. `reason` is one CamelCase word, `message` says what and what to do about it."""

    type: str
    status: ConditionStatus
    reason: str
    message: str = ""
    since_s: float = 0.0
    problem: bool = False  # whether it needs attention: some types are good when true, some when false


@dataclass(frozen=True, slots=True)
class Check:
    """One named readiness check of the agent, with its reason."""

    name: str
    ok: bool
    reason: str
