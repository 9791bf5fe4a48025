"""The API's documents as this CLI reads them.

They mirror the schemas of `agent.api`, which take long to import because of pydantic. A test compares the two. Times
are RFC 3339 in UTC, durations end in `_s`, sizes name their unit. Where the API omits null values, the key is
`NotRequired`.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Slots(TypedDict):
    """The VMs that may run at the same time, by state."""

    total: int
    used: int
    starting: int
    ready: int
    leased: int
    stopping: int
    foreign: int
    free: int


class Amounts(TypedDict):
    """One resource of the host."""

    total: float
    reserved: float
    allocatable: float
    used: float
    free: float


class Identity(TypedDict):
    """The host's names and identifiers."""

    name: str
    machine_id: str
    boot_id: str
    os: str
    arch: str
    model: str
    chip: str
    serial: str
    hardware_uuid: str


class Cores(TypedDict):
    """The processor's cores."""

    performance: int
    efficiency: int


class Vitals(TypedDict):
    """The host's memory pressure, heat and purgeable disk space."""

    memory_pressure: str
    heat: str
    purgeable_disk_bytes: int | None


class Versions(TypedDict):
    """The versions of the agent and the hypervisor."""

    agent: str
    hypervisor: str
    hypervisor_version: str


class Progress(TypedDict):
    """How far a pull is, in compressed bytes."""

    total_bytes: int
    done_bytes: int
    fetched_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None


class ImageStatus(TypedDict):
    """One image version."""

    digest: str
    state: str
    references: list[str]
    pools: list[str]
    disk_bytes: int
    allocated_bytes: int
    last_used_at: str | None
    progress: Progress | None
    error: str
    retry_at: str | None


class ImageList(TypedDict):
    """All image versions of a host."""

    images: list[ImageStatus]


class RolloutStatus(TypedDict):
    """How far a pool's newest version is."""

    phase: str
    serving: str | None
    target: str | None
    previous: str | None
    since: str | None
    soak_until: str | None
    failures: int
    quarantined: list[str]
    reason: str


class PoolRollout(RolloutStatus):
    """The rollout of the named pool."""

    pool: str


class RolloutList(TypedDict):
    """The rollouts of all pools."""

    rollouts: list[PoolRollout]


class Startable(TypedDict):
    """How many more VMs of a pool can start now, and the limit that applies."""

    count: int
    limit: str


class PoolStatus(TypedDict):
    """One pool."""

    name: str
    image: str
    warm: int
    max: int
    ready: int
    leased: int
    starting: int
    stopping: int
    standby: int
    waiting: int
    startable: Startable
    rollout: RolloutStatus | None
    error: str


class ConditionDocument(TypedDict):
    """A named fact about the host."""

    type: str
    status: str
    problem: bool
    reason: str
    message: str
    since: str | None


class AssignmentStatus(TypedDict):
    """The source of the desired state, and why a newer one was refused."""

    source: str
    etag: str
    error: str


class ModeDocument(TypedDict):
    """The host's mode, set by an operator."""

    mode: str
    since: str | None
    reason: str


class Staleness(TypedDict):
    """A part of the host document that could not be refreshed."""

    part: str
    since: str | None
    reason: str


class HostDocument(TypedDict):
    """The state of a host."""

    sequence: int
    host: Identity
    cores: Cores
    vitals: Vitals
    versions: Versions
    mode: ModeDocument
    draining: bool
    slots: Slots
    cpus: Amounts
    memory_mib: Amounts
    disk_bytes: Amounts
    pools: list[PoolStatus]
    images: list[ImageStatus]
    conditions: list[ConditionDocument]
    assignment: AssignmentStatus
    stale: list[Staleness]


class AddressDocument(TypedDict):
    """The address of a VM: guest port `p` is reachable at `host:ports[p]`."""

    host: str
    ports: dict[str, int]


class LeaseBrief(TypedDict):
    """The lease of a VM, in a list of VMs. `id` is None when this caller may not see it."""

    id: str | None
    holder: str
    expires_at: str


class FailureDocument(TypedDict):
    """Why a VM failed or is unhealthy."""

    cause: str
    reason: str
    at: str


class VmStatus(TypedDict):
    """One VM."""

    name: str
    pool: str
    image: str
    state: str
    since: str
    created_at: str
    ready_at: str | None
    cpus: int
    memory_mib: int
    lease: LeaseBrief | None
    failure: FailureDocument | None


class ProbeResultDocument(TypedDict):
    """The latest result of one probe."""

    probe: str
    outcome: str
    detail: str
    at: str
    duration_s: float


class VmDetail(VmStatus):
    """One VM with its address and the results of its probes."""

    address: AddressDocument | None
    probes: list[ProbeResultDocument]


class VmList(TypedDict):
    """All VMs of a host."""

    vms: list[VmStatus]


class LeaseDocument(TypedDict):
    """A lease of one VM."""

    id: str
    pool: str
    vm: str
    holder: str
    ttl_s: float
    created_at: str
    expires_at: str
    address: AddressDocument | None
    unhealthy: FailureDocument | None


class EventHead(TypedDict):
    """The keys that every event has."""

    number: int
    kind: str
    at: str


class StreamedEvent(EventHead, total=False):
    """One event in a stream, which omits empty values."""

    vm: str
    pool: str
    image: str
    lease: str
    cause: str
    detail: str
    duration_s: float


class EventDocument(EventHead):
    """One event in a page."""

    vm: str | None
    pool: str | None
    image: str | None
    lease: str | None
    cause: str | None
    detail: str
    duration_s: float | None


class EventPage(TypedDict):
    """Events in order; `next` is the `after` of the next page, `last` the number of the latest event."""

    events: list[EventDocument]
    next: int
    last: int


class EvidenceDocument(TypedDict):
    """One file of a VM's evidence."""

    name: str
    size_bytes: int
    modified: str
    path: str


class EvidenceList(TypedDict):
    """The files that the agent kept of a failed VM."""

    vm: str
    directory: str
    files: list[EvidenceDocument]


class FieldProblem(TypedDict):
    """An error in one field of a request."""

    pointer: str
    detail: str


class LeaseEnding(TypedDict):
    """The end of a lease."""

    reason: str
    at: str
    pool: NotRequired[str]
    vm: NotRequired[str]
    cause: NotRequired[str]
    detail: str
    evidence: NotRequired[str]


class Problem(TypedDict):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    remedy: str
    request_id: str
    errors: list[FieldProblem]
    ending: NotRequired[LeaseEnding]


class ExecStarted(TypedDict):
    """The agent started the command."""

    type: Literal["started"]


class ExecExit(TypedDict):
    """The command ended."""

    type: Literal["exit"]
    exit_code: int


class ExecFailed(TypedDict):
    """The command has no exit code."""

    type: Literal["problem"]
    problem: Problem


ExecMessage = ExecStarted | ExecExit | ExecFailed
