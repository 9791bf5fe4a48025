"""The values of the product: pools, VMs, leases, images, the host and its conditions.

All values are immutable. Times are seconds since the epoch (`_at_s`, `since_s`), durations are seconds (`_s`), sizes
are bytes or MiB according to their names. What the planner sees at one moment is `agent.domain.world.World`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.domain.states import ALIVE, HOLDS_SLOT, VmState

if TYPE_CHECKING:
    from pathlib import Path


class ProbeKind(StrEnum):
    """What a probe checks."""

    AGENT = "agent"  # the guest agent answers a ping
    EXEC = "exec"  # a command in the guest ends with the expected exit code
    TCP = "tcp"  # a guest port accepts a connection
    HTTP = "http"  # a guest URL answers with the expected status


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """One health check, run every `period_s`. A live VM is unhealthy after `failures` failed runs in a row."""

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
        """Name for logs and metrics: the kind with its port, path or command."""
        detail = {
            ProbeKind.TCP: f":{self.port}",
            ProbeKind.HTTP: f":{self.port}{self.path}",
            ProbeKind.EXEC: f":{' '.join(self.argv)}",
        }
        return f"{self.kind}{detail.get(self.kind, '')}"


@dataclass(frozen=True, slots=True)
class VmSize:
    """Processors and memory of one VM."""

    cpus: int = 2
    memory_mib: int = 4096


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A named set of identical VMs to keep ready, as the assignment defines it."""

    name: str
    image: str
    warm: int = 1
    max: int = 0  # most VMs of this pool together, leased ones included; 0: as many as fit
    min_ready: int = 0  # ready VMs of the serving version that a rollout must leave
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
    soak_s: float | None = None  # how long a canary runs before the promotion; None: from its probes
    rollback_after: int = 3  # failures within an hour after the promotion that roll a version back
    standby: int = 0  # ready VMs to keep suspended in addition to the warm ones, where the hypervisor can
    use_templates: bool = True  # start VMs from the snapshot of a ready one, where hypervisor and guest can
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
    PROBE_ERROR = "probe-error"  # the probe itself could not be run for too long
    LOST = "lost"  # the hypervisor does not list it any more
    DAMAGED = "damaged"  # it runs, but files it needs are missing
    SLOTS_TAKEN = "slots-taken"  # VMs of other owners hold the slot it needs
    INTERRUPTED = "interrupted"  # the agent ended while creating it
    REQUESTED = "requested"  # an operator or the controller requested its replacement


@dataclass(frozen=True, slots=True)
class Failure:
    """Why and when a VM failed."""

    cause: Cause
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Vm:
    """One clone of an image, from its creation to its teardown, as the journal records it."""

    name: str
    pool: str
    image: str  # digest
    state: VmState
    size: VmSize
    created_at_s: float
    since_s: float  # when it entered its state
    ready_at_s: float | None = None  # when it last passed its startup probes; None before
    lease_id: str | None = None
    failure: Failure | None = None
    stop_grace_s: float = 10.0
    template: str | None = None  # the template it was started from; None: it booted
    replacement_due: bool = False  # it was suspended from the warm VMs: its pool creates another before resuming it
    reported_failure: Failure | None = None  # the last failure reported to its lease holder

    @property
    def is_alive(self) -> bool:
        """Whether it serves or is about to serve."""
        return self.state in ALIVE

    @property
    def holds_slot(self) -> bool:
        """Whether it holds its slot, memory and processors."""
        return self.state in HOLDS_SLOT


@dataclass(frozen=True, slots=True)
class Lease:
    """An exclusive, expiring claim of `holder` on one VM.

    It has all that its holder was promised, so that a change of its pool, or its removal, does not reach the holder.
    `owner` is the name of the token that requested it: "" on the Unix socket, None in leases of older agents.
    """

    id: str
    pool: str
    vm: str
    holder: str
    ttl_s: float
    created_at_s: float
    expires_at_s: float
    idempotency_key: str | None = None
    max_ttl_s: float = 86400.0  # the most that a renewal extends it by
    probes: tuple[ProbeSpec, ...] = ()  # report an unhealthy VM to the holder when the pool is not assigned any more
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """A request for a VM of `pool` since `since_s`. The lease it gets has the same `id`.

    Requests live in memory only: a client keeps its connection open while its request waits.
    """

    id: str
    pool: str
    since_s: float
    holder: str
    ttl_s: float
    idempotency_key: str | None = None
    max_ttl_s: float = 86400.0
    probes: tuple[ProbeSpec, ...] = ()
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """One complete image version in the local store."""

    digest: str
    references: tuple[str, ...] = ()
    disk_bytes: int = 0  # the size of the disk that a guest sees
    allocated_bytes: int = 0  # the space it takes on this host
    last_used_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LocalImage:
    """The files of an image version, for a driver to clone."""

    digest: str
    directory: Path  # holds disk.img, config.json, nvram.bin and manifest.json
    disk: Path
    nvram: Path | None  # None when the image has an empty NVRAM layer
    os: str  # "linux" or "darwin"
    arch: str  # "amd64" or "arm64"
    known_as: str = ""  # its name in the hypervisor's own tool, if that stores it (Anka: template:tag)


@dataclass(frozen=True, slots=True)
class Resolution:
    """The digest of a reference at the last registry query, and the error of that query if it failed."""

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
    suspended: bool = False  # it can be resumed from a snapshot
    image: str = field(default="", compare=False)  # digest it was cloned from; empty if the driver does not know it
    damaged: str = ""  # which files it needs are missing although it is listed; empty: none, or unknown to the driver


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What the VMs of this host may use together."""

    slots: int
    cpus: float
    memory_mib: int


class Mode(StrEnum):
    """What an operator permits this host to do."""

    OPEN = "open"  # leases and new VMs, as assigned
    CORDONED = "cordoned"  # no new leases; the pools stay warm
    DRAINING = "draining"  # no new leases, no new VMs; idle VMs end now, leased ones with their leases


@dataclass(frozen=True, slots=True)
class HostMode:
    """The mode of this host, when it was set, and the operator's reason. Kept in the journal."""

    mode: Mode = Mode.OPEN
    since_s: float = 0.0
    reason: str = ""

    key: str = "host"

    @property
    def takes_leases(self) -> bool:
        """Whether new leases are granted."""
        return self.mode is Mode.OPEN


OPEN = HostMode()
"""The mode of a host that no operator changed."""


@dataclass(frozen=True, slots=True)
class StoredAssignment:
    """The last valid assignment, kept so that an invalid file does not empty the pools after a restart."""

    source: str
    etag: str
    document: str  # JSON

    key: str = "current"


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """The agent's time at one reading of the clock that counts evenly since the boot of the host.

    A restarted agent derives from it what its predecessor's time would be now.
    """

    now_s: float
    elapsed_s: float
    boot: str  # the host's boot; "" if it is not known

    key: str = "clock"


class ConditionStatus(StrEnum):
    """Truth of a condition."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Condition:
    """A named state of the host. `reason` is one CamelCase word; `message` has the details and the remedy."""

    type: str
    status: ConditionStatus
    reason: str
    message: str = ""
    since_s: float = 0.0
    problem: bool = False  # whether an operator must act: some types are healthy when true, some when false


@dataclass(frozen=True, slots=True)
class Check:
    """One named readiness check of the agent, with its reason."""

    name: str
    ok: bool
    reason: str
