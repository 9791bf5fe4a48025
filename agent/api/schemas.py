"""The documents of the API. Requests are strict and closed; responses may get new fields.

Times are RFC 3339 in UTC, by the host's clock. Durations end in `_s`, sizes name their unit. No figure is negative.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.domain.capacity import Limit
from agent.domain.events import EventKind
from agent.domain.health import Outcome
from agent.domain.model import Cause, ConditionStatus, Mode
from agent.domain.rollout import Phase
from agent.domain.states import VmState
from agent.host.vitals import Heat, MemoryPressure

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$")]


class Schema(BaseModel):
    """Base of request documents: unknown fields are errors, and no value is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Document(BaseModel):
    """Base of response documents."""

    model_config = ConfigDict(frozen=True)


class Live(Document):
    """Whether the reconciler runs."""

    ok: bool
    heartbeat_age_s: Amount


class CheckResult(Document):
    """One named readiness check."""

    name: str
    ok: bool
    reason: str


class Ready(Document):
    """Whether this host grants leases now, with its checks."""

    ok: bool
    checks: tuple[CheckResult, ...]


class Amounts(Document):
    """One resource: the machine's `total` without the part `reserved` for the host is `allocatable` to VMs.

    `used` is the part in use, `free` the part for further VMs and images. More processors than the total may be
    allocatable, because build jobs seldom peak at the same time.
    """

    total: Amount
    reserved: Amount
    allocatable: Amount
    used: Amount
    free: Amount


class Slots(Document):
    """The slots of this host by use. `foreign` are VMs of other owners that hold slots."""

    total: Count
    used: Count
    starting: Count
    ready: Count
    leased: Count
    stopping: Count
    foreign: Count
    free: Count


class Identity(Document):
    """The identity of this host. `boot_id` changes with every boot of the machine. Unknown values are empty."""

    name: str
    machine_id: str
    boot_id: str
    os: str
    arch: str
    model: str
    chip: str
    serial: str
    hardware_uuid: str


class Cores(Document):
    """The cores of the processor. If all are of one kind, they are performance cores."""

    performance: Count
    efficiency: Count


class Vitals(Document):
    """The vital signs of the host now. Purgeable space, in whole GiB, is not free, but macOS frees it when needed."""

    memory_pressure: MemoryPressure
    heat: Heat
    purgeable_disk_bytes: Count | None


class Versions(Document):
    """The versions of agent and hypervisor."""

    agent: str
    hypervisor: str
    hypervisor_version: str


class Progress(Document):
    """The progress of a pull, in compressed bytes. `fetched_bytes` were downloaded, the rest was present locally."""

    total_bytes: Count
    done_bytes: Count
    fetched_bytes: Count
    rate_bytes_per_s: Amount
    eta_s: Amount | None


class ImageStatus(Document):
    """One image version: present locally, being pulled, or failed to be pulled."""

    digest: str
    state: Literal["present", "pulling", "failed"]
    references: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    disk_bytes: Count = 0
    allocated_bytes: Count = 0
    last_used_at: datetime | None = None
    progress: Progress | None = None
    error: str = ""
    retry_at: datetime | None = None


class RolloutStatus(Document):
    """The rollout of a pool."""

    phase: Phase
    serving: str | None
    target: str | None
    previous: str | None
    since: datetime | None
    soak_until: datetime | None = None
    failures: Count = 0
    quarantined: tuple[str, ...] = ()
    reason: str = ""


class Startable(Document):
    """How many more VMs of a pool could start now, and the limit that binds."""

    count: Count
    limit: Limit


class PoolStatus(Document):
    """One pool: its targets and its VMs."""

    name: str
    image: str
    warm: Count
    max: Count
    ready: Count
    leased: Count
    starting: Count
    stopping: Count
    standby: Count
    waiting: Count
    startable: Startable
    rollout: RolloutStatus | None
    error: str = ""


class ConditionDocument(Document):
    """A named state of the host. `problem` is true if an operator must act."""

    type: str
    status: ConditionStatus
    problem: bool
    reason: str
    message: str
    since: datetime | None


class AssignmentStatus(Document):
    """The source of the assignment, and the error of a newer one that was refused."""

    source: Literal["file", "api"]
    etag: str
    error: str


class ModeDocument(Document):
    """The mode of this host, with its start and reason. Leases are granted in `open` only."""

    mode: Mode
    since: datetime | None
    reason: str


class Staleness(Document):
    """An outdated part of the host document, with the time and the reason. It has the last known values."""

    part: Literal["vms", "images", "disk", "everything"]
    since: datetime | None
    reason: str


class HostDocument(Document):
    """Everything a scheduler needs to know of this host, at `sequence`. The parts named in `stale` may be outdated."""

    sequence: Count
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
    pools: tuple[PoolStatus, ...]
    images: tuple[ImageStatus, ...]
    conditions: tuple[ConditionDocument, ...]
    assignment: AssignmentStatus
    stale: tuple[Staleness, ...]


class AddressDocument(Document):
    """The address of a VM: guest port `p` is at `host:ports[p]`."""

    host: str
    ports: dict[int, int]


class LeaseBrief(Document):
    """The lease of a VM, in a list of VMs. `id` is null for callers that may not see it."""

    id: str | None
    holder: str
    expires_at: datetime


class FailureDocument(Document):
    """Why a VM failed."""

    cause: Cause
    reason: str
    at: datetime


class VmStatus(Document):
    """One VM."""

    name: str
    pool: str
    image: str
    state: VmState
    since: datetime
    created_at: datetime
    ready_at: datetime | None
    cpus: Count
    memory_mib: Count
    lease: LeaseBrief | None
    failure: FailureDocument | None


class ProbeResultDocument(Document):
    """The latest result of one probe."""

    probe: str
    outcome: Outcome
    detail: str
    at: datetime
    duration_s: Amount


class VmDetail(VmStatus):
    """One VM with its address and probe results. `address` is null while it is unknown."""

    address: AddressDocument | None
    probes: tuple[ProbeResultDocument, ...]


class VmList(Document):
    """All VMs of this agent."""

    vms: tuple[VmStatus, ...]


class ImageList(Document):
    """All image versions of this host."""

    images: tuple[ImageStatus, ...]


class ExecDocument(Document):
    """The end of a command in a guest. Output is bytes in base64; `truncated` is true if a part was dropped."""

    exit_code: int
    stdout: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    stderr: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    truncated: bool


class LeaseDocument(Document):
    """A lease of one VM. `address` is null if it is not known yet: read the lease again.

    `unhealthy` is the failure of a VM that its probes found; the holder decides whether to continue.
    """

    id: str
    pool: str
    vm: str
    holder: str
    ttl_s: Amount
    created_at: datetime
    expires_at: datetime
    address: AddressDocument | None
    unhealthy: FailureDocument | None


class EventDocument(Document):
    """One event. `number` increases by one with every event, and survives restarts of the agent."""

    number: Count
    kind: EventKind
    at: datetime
    vm: str | None = None
    pool: str | None = None
    image: str | None = None
    lease: str | None = None
    cause: str | None = None
    detail: str = ""
    duration_s: Amount | None = None


class EventPage(Document):
    """Events in order. Request the following ones with `after` = `next`; `last` is the number of the latest event."""

    events: tuple[EventDocument, ...]
    next: Count
    last: Count
