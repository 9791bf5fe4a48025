"""Facts: what happened, as values. `agent.domain.record.record` holds what each of them changes.

Effects report how they ended, probes and hypervisors report VMs, clients and operators send requests. Actions of a plan
(`agent.domain.actions`) are recorded the same way. `vm` is a VM name, `digest` an image version, `reference` an image
reference, `template` the name of a template. Durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.model import Cause, ClockAnchor, LeaseRequest, Mode, StoredAssignment
    from agent.domain.rollout import Rollout


class Fact:
    """Base of every fact."""


# -- ends of effects on VMs


@dataclass(frozen=True, slots=True)
class VmCloned(Fact):
    """A clone was made; `method` is "boot" or "template"."""

    vm: str
    method: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class VmEffectFailed(Fact):
    """An effect on a VM failed. Subclasses name the effect."""

    vm: str
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class CloneFailed(VmEffectFailed):
    """A VM could not be cloned."""


@dataclass(frozen=True, slots=True)
class StartFailed(VmEffectFailed):
    """A cloned VM could not be started."""


@dataclass(frozen=True, slots=True)
class SuspendFailed(VmEffectFailed):
    """A VM could not be suspended."""


@dataclass(frozen=True, slots=True)
class ResumeFailed(VmEffectFailed):
    """A standby VM could not be resumed."""


@dataclass(frozen=True, slots=True)
class TemplateStartFailed(Fact):
    """A VM could not be started from its template. It boots instead."""

    vm: str
    template: str
    reason: str


@dataclass(frozen=True, slots=True)
class VmSuspended(Fact):
    """A VM is suspended to disk."""

    vm: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class VmRemoved(Fact):
    """A VM is stopped and deleted, and the hypervisor does not list it any more."""

    vm: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class TeardownFailed(Fact):
    """A VM could not be torn down."""

    vm: str
    reason: str


@dataclass(frozen=True, slots=True)
class StrayRemoved(Fact):
    """A VM that is not in the journal was removed."""

    vm: str


@dataclass(frozen=True, slots=True)
class StrayRemovalFailed(Fact):
    """A VM that is not in the journal could not be removed."""

    vm: str
    reason: str


@dataclass(frozen=True, slots=True)
class EvidenceFailed(Fact):
    """The evidence of a failed VM could not be collected."""

    vm: str
    reason: str


# -- reports about VMs


@dataclass(frozen=True, slots=True)
class StartupProbesPassed(Fact):
    """All startup probes of a VM passed."""

    vm: str


@dataclass(frozen=True, slots=True)
class ProbeFailed(Fact):
    """A probe failed often enough, or a VM did not become ready before its deadline."""

    vm: str
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class ProcessExited(Fact):
    """The process of a VM ended. `code` is None when the driver cannot read it."""

    vm: str
    code: int | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class VmAdopted(Fact):
    """A VM of an earlier run of the agent was found running."""

    vm: str
    pid: int | None


# -- ends of effects on images and templates


@dataclass(frozen=True, slots=True)
class ReferenceResolved(Fact):
    """The registry returned the digest of a reference."""

    reference: str
    digest: str


@dataclass(frozen=True, slots=True)
class ResolveFailed(Fact):
    """The registry did not return the digest of a reference. `outage`: it did not answer, or cannot work."""

    reference: str
    reason: str
    outage: bool = False


@dataclass(frozen=True, slots=True)
class PullProgressed(Fact):
    """A pull is under way; `detail` has the amount, the rate and the source."""

    digest: str
    detail: str


@dataclass(frozen=True, slots=True)
class PullFinished(Fact):
    """An image version is complete in the local store."""

    digest: str
    reference: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class PullFailed(Fact):
    """An image version could not be pulled."""

    digest: str
    reference: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImageEvicted(Fact):
    """An image version was removed from the local store."""

    digest: str


@dataclass(frozen=True, slots=True)
class EvictionFailed(Fact):
    """An image version could not be removed from the local store."""

    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class TemplateSaved(Fact):
    """A template was saved from a VM."""

    template: str
    vm: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class TemplateSaveFailed(Fact):
    """A template could not be saved from a VM."""

    template: str
    vm: str
    reason: str


@dataclass(frozen=True, slots=True)
class TemplateDropped(Fact):
    """A template was removed."""

    template: str


@dataclass(frozen=True, slots=True)
class TemplateDropFailed(Fact):
    """A template could not be removed."""

    template: str
    reason: str


# -- requests of lease holders


@dataclass(frozen=True, slots=True)
class LeaseRenewed(Fact):
    """A holder renewed a lease for `ttl_s` from now."""

    lease: str
    ttl_s: float


@dataclass(frozen=True, slots=True)
class LeaseReleased(Fact):
    """A holder released a lease."""

    lease: str


@dataclass(frozen=True, slots=True)
class VmGranted(Fact):
    """A ready VM was chosen for a request that does not wait."""

    vm: str
    request: LeaseRequest


# -- the clock


@dataclass(frozen=True, slots=True)
class ClockRead(Fact):
    """The agent started, and read its clocks."""

    anchor: ClockAnchor


@dataclass(frozen=True, slots=True)
class ClockStepped(Fact):
    """The host's clock was set by `delta_s`. `anchor` has the time after it."""

    delta_s: float
    anchor: ClockAnchor


# -- commands of operators, and the assignment


@dataclass(frozen=True, slots=True)
class ModeSet(Fact):
    """An operator opened, cordoned or drained the host."""

    mode: Mode
    reason: str


@dataclass(frozen=True, slots=True)
class ReplacementRequested(Fact):
    """An operator or the controller requested the replacement of a VM."""

    vm: str
    reason: str


@dataclass(frozen=True, slots=True)
class RolloutRetried(Fact):
    """An operator requested another trial of a pool's target version."""

    pool: str


@dataclass(frozen=True, slots=True)
class RolloutUndone(Fact):
    """An operator requested the version that served a pool before its target."""

    pool: str
    reason: str


@dataclass(frozen=True, slots=True)
class AssignmentAccepted(Fact):
    """A new assignment is valid and in force. `pools` are its pool names."""

    stored: StoredAssignment
    pools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AssignmentRefused(Fact):
    """A new assignment is invalid. The last valid one stays in force."""

    reason: str


# -- the planner


@dataclass(frozen=True, slots=True)
class RolloutsAdvanced(Fact):
    """The rollouts of all assigned pools after a plan."""

    rollouts: tuple[Rollout, ...]
