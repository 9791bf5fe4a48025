"""What a plan can ask for. Each action names the one resource it works on; two never work on the same at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from agent.domain.model import Failure, PoolSpec


@dataclass(frozen=True, slots=True)
class MarkFailed:
    """Record that a VM is no longer what the journal says."""

    vm: str
    failure: Failure

    @property
    def resource(self) -> str:
        """The VM."""
        return self.vm


@dataclass(frozen=True, slots=True)
class NotifyHolder:
    """Tell the holder of a leased VM what is wrong with it: what to do about it is the holder's to judge."""

    vm: str
    failure: Failure

    @property
    def resource(self) -> str:
        """The VM."""
        return self.vm


@dataclass(frozen=True, slots=True)
class DestroyVm:
    """Tear a VM down until it is proven gone; `evidence` first when it failed."""

    vm: str
    reason: str
    evidence: bool = False

    @property
    def resource(self) -> str:
        """The VM."""
        return self.vm


@dataclass(frozen=True, slots=True)
class RemoveStray:
    """Remove a VM that carries our name but that the journal does not know."""

    vm: str

    @property
    def resource(self) -> str:
        """The VM."""
        return self.vm


@dataclass(frozen=True, slots=True)
class ExpireLease:
    """End a lease whose time is over."""

    lease: str
    vm: str

    @property
    def resource(self) -> str:
        """The VM."""
        return self.vm


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Give a ready VM to the request that waits longest for it."""

    waiter: str
    vm: str

    @property
    def resource(self) -> str:
        """The VM."""
        return self.vm


@dataclass(frozen=True, slots=True)
class CreateVm:
    """Clone and start a new VM of an image version."""

    vm: str
    pool: PoolSpec
    image: str
    template: str | None = None  # start from this memory instead of booting

    @property
    def resource(self) -> str:
        """The VM to be."""
        return self.vm


@dataclass(frozen=True, slots=True)
class SuspendVm:
    """Put a ready VM on standby; `replacement_due` when it was no spare, so that its pool is owed a new one."""

    vm: str
    replacement_due: bool = False

    @property
    def resource(self) -> str:
        """The VM."""
        return self.vm


@dataclass(frozen=True, slots=True)
class ResumeVm:
    """Bring a standby VM back."""

    vm: str
    pool: PoolSpec

    @property
    def resource(self) -> str:
        """The VM."""
        return self.vm


@dataclass(frozen=True, slots=True)
class SaveTemplate:
    """Keep the memory of a proven VM, to start others from."""

    vm: str
    template: str

    @property
    def resource(self) -> str:
        """The VM, which pauses meanwhile."""
        return self.vm


@dataclass(frozen=True, slots=True)
class DropTemplate:
    """Remove a memory that no pool starts VMs from."""

    template: str

    @property
    def resource(self) -> str:
        """The template."""
        return self.template


@dataclass(frozen=True, slots=True)
class ResolveImage:
    """Ask the registry what a reference means now."""

    reference: str

    @property
    def resource(self) -> str:
        """The reference."""
        return self.reference


@dataclass(frozen=True, slots=True)
class PullImage:
    """Make an image version whole on this host."""

    reference: str
    digest: str

    @property
    def resource(self) -> str:
        """The image version."""
        return self.digest


@dataclass(frozen=True, slots=True)
class EvictImage:
    """Remove an image version nobody needs."""

    digest: str

    @property
    def resource(self) -> str:
        """The image version."""
        return self.digest


Action: TypeAlias = (
    MarkFailed
    | NotifyHolder
    | DestroyVm
    | RemoveStray
    | ExpireLease
    | GrantLease
    | CreateVm
    | SuspendVm
    | ResumeVm
    | SaveTemplate
    | DropTemplate
    | ResolveImage
    | PullImage
    | EvictImage
)
