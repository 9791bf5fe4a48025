"""Events: the closed set of what the agent reports in its log, its journal and its API."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """The kinds of events. The value is the event's name in logs, journal and API."""

    VM_CREATING = "vm-creating"
    VM_STARTING = "vm-starting"
    VM_READY = "vm-ready"
    VM_FAILED = "vm-failed"
    VM_SUSPENDING = "vm-suspending"
    VM_STANDBY = "vm-standby"
    VM_RESUMING = "vm-resuming"
    VM_RESUME_FAILED = "vm-resume-failed"  # it boots instead
    VM_STOPPING = "vm-stopping"
    VM_GONE = "vm-gone"
    VM_ADOPTED = "vm-adopted"
    VM_TEARDOWN_FAILED = "vm-teardown-failed"
    VM_EVIDENCE_FAILED = "vm-evidence-failed"
    VM_UNHEALTHY_WHILE_LEASED = "vm-unhealthy-while-leased"
    TEMPLATE_SAVED = "template-saved"
    TEMPLATE_DROPPED = "template-dropped"
    TEMPLATE_FAILED = "template-failed"
    STRAY_REMOVED = "stray-removed"
    STRAY_REMOVAL_FAILED = "stray-removal-failed"
    LEASE_GRANTED = "lease-granted"
    LEASE_RENEWED = "lease-renewed"
    LEASE_RELEASED = "lease-released"
    LEASE_EXPIRED = "lease-expired"
    LEASE_BROKEN = "lease-broken"  # its VM died under it
    IMAGE_RESOLVED = "image-resolved"
    IMAGE_RESOLVE_FAILED = "image-resolve-failed"
    IMAGE_PULLING = "image-pulling"  # progress of a pull, every 15 s
    IMAGE_PULLED = "image-pulled"
    IMAGE_PULL_FAILED = "image-pull-failed"
    IMAGE_EVICTED = "image-evicted"
    IMAGE_EVICT_FAILED = "image-evict-failed"
    ROLLOUT = "rollout"  # a pool's rollout entered a new phase
    CLOCK_STEPPED = "clock-stepped"  # the host's clock was set, and the times of all records moved with it
    HOST_MODE = "host-mode"  # an operator opened, cordoned or drained the host
    JOURNAL_REBUILT = "journal-rebuilt"
    ASSIGNMENT_CHANGED = "assignment-changed"
    ASSIGNMENT_REFUSED = "assignment-refused"


@dataclass(frozen=True, slots=True)
class Event:
    """One event at one moment, with the objects it is about."""

    kind: EventKind
    at_s: float
    vm: str | None = None
    pool: str | None = None
    image: str | None = None
    lease: str | None = None
    cause: str | None = None  # of a failed VM: a `Cause`
    detail: str = ""
    duration_s: float | None = None
    owner: str | None = None  # of the lease, see `Lease`
