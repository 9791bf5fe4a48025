"""What a plan consists of: decisions, which are only written, and effects, which are started after they are written.

Each action works on one resource, a VM, an image version, a reference or a template; two actions never work on the same
resource at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from agent.domain.model import Failure, LeaseRequest, PoolSpec


class Action:
    """Base of everything a plan can contain. `RESOURCE` names the field that holds the resource."""

    RESOURCE: ClassVar[str] = "vm"

    @property
    def resource(self) -> str:
        """The name of the resource: a VM name, a digest, a reference or a template."""
        return str(getattr(self, self.RESOURCE))


class Decision(Action):
    """An action that is complete once it is written to the journal."""


class Effect(Action):
    """An action that changes the hypervisor or the image store: written first, then started."""


@dataclass(frozen=True)
class MarkFailed(Decision):
    """Record that a VM failed, because the host differs from the journal."""

    vm: str
    failure: Failure


@dataclass(frozen=True)
class NotifyHolder(Decision):
    """Notify the holder of a leased VM of a failure. The holder decides whether to continue."""

    vm: str
    failure: Failure


@dataclass(frozen=True)
class ExpireLease(Decision):
    """End an expired lease."""

    vm: str
    lease: str


@dataclass(frozen=True)
class GrantLease(Decision):
    """Lease a ready VM to a waiting request."""

    vm: str
    request: LeaseRequest


@dataclass(frozen=True)
class DestroyVm(Effect):
    """Stop and delete a VM until the hypervisor does not list it any more; collect `evidence` first if it failed."""

    vm: str
    reason: str
    evidence: bool = False


@dataclass(frozen=True)
class RemoveStray(Effect):
    """Remove a VM that has a name of ours but is not in the journal."""

    vm: str


@dataclass(frozen=True)
class CreateVm(Effect):
    """Clone and start a new VM of an image version."""

    vm: str
    pool: PoolSpec
    image: str
    template: str | None = None  # start from this template instead of booting


@dataclass(frozen=True)
class SuspendVm(Effect):
    """Suspend a ready VM to standby. `replacement_due`: it is one of the warm VMs, so its pool needs another."""

    vm: str
    replacement_due: bool = False


@dataclass(frozen=True)
class ResumeVm(Effect):
    """Resume a standby VM."""

    vm: str
    pool: PoolSpec


@dataclass(frozen=True)
class SaveTemplate(Effect):
    """Save a snapshot of a ready VM, which pauses during the save, to start other VMs from."""

    vm: str
    template: str


@dataclass(frozen=True)
class DropTemplate(Effect):
    """Remove a template that no pool uses."""

    RESOURCE = "template"
    template: str


@dataclass(frozen=True)
class ResolveImage(Effect):
    """Query the registry for the digest of a reference."""

    RESOURCE = "reference"
    reference: str


@dataclass(frozen=True)
class PullImage(Effect):
    """Pull an image version."""

    RESOURCE = "digest"
    reference: str
    digest: str


@dataclass(frozen=True)
class EvictImage(Effect):
    """Remove an unused image version to free disk space."""

    RESOURCE = "digest"
    digest: str
