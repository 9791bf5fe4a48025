"""What chaos knows because it did it: what is wanted for, what was harmed, which leases were answered. No I/O."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from scripts.lib.chaos.versions import Flavour

if TYPE_CHECKING:
    from scripts.lib.chaos.versions import Version

LONG_DEADLINE_S = 60.0
"""Startup deadline of pools that run good versions: far beyond what a guest takes on a busy machine."""


@dataclass(frozen=True, slots=True)
class AssignedPool:
    """One pool of the assignment, as written to the file."""

    version: Version
    warm: int
    priority: int = 0
    deadline_s: float = LONG_DEADLINE_S


class ClaimState(StrEnum):
    """How far a claim is."""

    HELD = "held"
    RELEASED = "released"
    ENDED = "ended"  # it expired or broke, and that was explained


@dataclass(slots=True)
class Claim:
    """A lease the agent answered to a client."""

    lease: str
    vm: str
    pool: str
    holder: str
    granted_in_round: int
    expires_at_s: float | None  # when it must end by itself; None: it is held
    state: ClaimState = ClaimState.HELD


@dataclass(slots=True)
class RoundActions:
    """What was done in one round, and so what may have changed in it."""

    number: int
    pools_changed: set[str] = field(default_factory=set)  # pools
    pools_requested: set[str] = field(default_factory=set)  # pools of requests for a lease
    pools_refused: set[str] = field(default_factory=set)  # of those, pools of requests that waited in vain
    crashed: bool = False
    disk_was_full: bool = False
    tool_failed: bool = False  # the hypervisor's own program did


@dataclass(slots=True)
class ExpectedState:
    """The whole truth of one seed's run, as far as chaos made it."""

    pools: dict[str, AssignedPool] = field(default_factory=dict)
    file_is_good: bool = True
    versions: dict[str, Version] = field(default_factory=dict)  # every one ever pushed, by digest
    short_deadline_pools: set[str] = field(default_factory=set)  # pools that ever had a short deadline
    harmed: dict[str, str] = field(default_factory=dict)  # VM: what was done to it
    harms_of: Counter[str] = field(default_factory=Counter)  # by digest: VMs harmed
    claims: list[Claim] = field(default_factory=list)
    unanswered: set[str] = field(default_factory=set)  # holders whose request may have been granted or not
    last_pids: dict[str, int] = field(default_factory=dict)  # ready and leased VMs when the last round ended: process
    round: RoundActions = field(default_factory=lambda: RoundActions(0))
    boots_s: deque[float] = field(default_factory=lambda: deque(maxlen=5))  # what the latest boots took
    counts: Counter[str] = field(default_factory=Counter)

    def is_bad_version(self, digest: str) -> bool:
        """Whether VMs of a version fail by themselves."""
        version = self.versions.get(digest)
        return version is not None and version.flavour is not Flavour.GOOD

    def short_deadline_s(self) -> float:
        """Return a startup deadline that a healthy guest meets on this machine as it is now, and not much more."""
        return 2 * max([4.0, *self.boots_s])

    def held(self) -> list[Claim]:
        """Return the claims whose leases must be alive: answered, not released, not about to expire."""
        return [claim for claim in self.claims if claim.state is ClaimState.HELD]
