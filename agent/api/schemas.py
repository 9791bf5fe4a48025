"""The documents that cross HTTP. What comes in is strict and closed; what goes out may grow new fields.

Times are RFC 3339 in UTC; the host's clock is the only one that counts, a client's is never asked. Durations end in
`_s`, sizes name their unit. No figure is ever negative.
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
    """Base of what clients send: unknown fields are errors, nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Document(BaseModel):
    """Base of what the agent answers."""

    model_config = ConfigDict(frozen=True)


class Live(Document):
    """Whether the loop still turns."""

    ok: bool
    heartbeat_age_s: Amount


class CheckResult(Document):
    """One named readiness check."""

    name: str
    ok: bool
    reason: str


class Ready(Document):
    """Whether this host takes leases now, and if not, why."""

    ok: bool
    checks: tuple[CheckResult, ...]


class Amounts(Document):
    """One resource: the machine's `total` less what is `reserved` for the host is `allocatable` to VMs.

    `used` of it is taken, `free` is left for further VMs and images. Processors may be allocatable beyond their total,
    since build jobs seldom peak together.
    """

    total: Amount
    reserved: Amount
    allocatable: Amount
    used: Amount
    free: Amount


class Slots(Document):
    """The VMs that may run at once, by what holds them. `foreign` VMs are not ours but count."""

    total: Count
    used: Count
    starting: Count
    ready: Count
    leased: Count
    stopping: Count
    foreign: Count
    free: Count


class Identity(Document):
    """Who this host is. `boot_id` changes with every boot of the machine. What cannot be told is empty."""

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
    """The cores of the processor; where all are alike, they count as performance cores."""

    performance: Count
    efficiency: Count


class Vitals(Document):
    """How the host is right now. Purgeable space, in whole GiB, is not free, but macOS gives it back under need."""

    memory_pressure: MemoryPressure
    heat: Heat
    purgeable_disk_bytes: Count | None


class Versions(Document):
    """What runs here."""

    agent: str
    hypervisor: str
    hypervisor_version: str


class Progress(Document):
    """How far a pull is, in compressed bytes. `fetched_bytes` came over the wire, the rest was here already."""

    total_bytes: Count
    done_bytes: Count
    fetched_bytes: Count
    rate_bytes_per_s: Amount
    eta_s: Amount | None


class ImageStatus(Document):
    """One image version on this host, or on its way to it."""

    digest: str
    state: Literal["here", "pulling", "failed"]
    references: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    disk_bytes: Count = 0
    allocated_bytes: Count = 0
    last_used_at: datetime | None = None
    progress: Progress | None = None
    error: str = ""
    retry_at: datetime | None = None


class RolloutStatus(Document):
    """How far the pool's newest version is."""

    phase: Phase
    serving: str | None
    target: str | None
    previous: str | None
    since: datetime | None
    failures: Count = 0
    quarantined: tuple[str, ...] = ()
    reason: str = ""


class Startable(Document):
    """How many more VMs of a pool could start now, and the limit that binds then."""

    count: Count
    limit: Limit


class PoolStatus(Document):
    """One pool: what it should be and what it is."""

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
    """A named fact about the host. `problem` says whether it needs attention: some are good when true, some not."""

    type: str
    status: ConditionStatus
    problem: bool
    reason: str
    message: str
    since: datetime | None


class AssignmentStatus(Document):
    """Where the desired state comes from, and why a newer one was refused, if it was."""

    source: Literal["file", "api"]
    etag: str
    error: str


class ModeDocument(Document):
    """What an operator lets this host do, since when and why. `open` is the only one in which leases are given."""

    mode: Mode
    since: datetime | None
    reason: str


class Staleness(Document):
    """What of the host document is no longer known to be true, since when and why: the last that was known is told."""

    what: Literal["vms", "images", "disk", "everything"]
    since: datetime | None
    reason: str


class HostDocument(Document):
    """Everything a scheduler needs to know of this host, as of `sequence`. What `stale` names may no longer be so."""

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
    """Where a VM is reached: guest port `p` at `host:ports[p]`."""

    host: str
    ports: dict[int, int]


class LeaseBrief(Document):
    """The lease of a VM, in its listing."""

    id: str
    holder: str
    expires_at: datetime


class FailureDocument(Document):
    """What went wrong with a VM."""

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


class ProbeAnswer(Document):
    """The latest answer of one probe."""

    probe: str
    outcome: Outcome
    detail: str
    at: datetime
    duration_s: Amount


class VmDetail(VmStatus):
    """One VM with what must be asked of it. `address` is null while it cannot be told."""

    address: AddressDocument | None
    probes: tuple[ProbeAnswer, ...]


class VmList(Document):
    """All VMs of this host that are ours."""

    vms: tuple[VmStatus, ...]


class ImageList(Document):
    """All image versions of this host."""

    images: tuple[ImageStatus, ...]


class ExecDocument(Document):
    """How a command in a guest ended. Output is base64, since it is bytes; `truncated` says that some was cut."""

    exit_code: int
    stdout: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    stderr: Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
    truncated: bool


class LeaseDocument(Document):
    """A claim on one VM. `address` is null in the rare case that it cannot be told yet: ask for the lease again.

    `unhealthy` is what is wrong with the VM, if anything was found: what to do about it is the holder's to judge.
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
    """One thing that happened. `number` grows by one with every event and survives restarts of the agent."""

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
    """Events in order. Ask again with `after` = `next` for those that follow; `last` is the latest there is."""

    events: tuple[EventDocument, ...]
    next: Count
    last: Count
