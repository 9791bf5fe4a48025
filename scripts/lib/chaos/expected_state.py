"""The state that follows from what chaos did: assigned pools, harmed VMs, granted leases. No I/O."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from scripts.lib.chaos.versions import Flavour

if TYPE_CHECKING:
    from scripts.lib.chaos.versions import Version

LONG_DEADLINE_S = 60.0
"""Startup deadline of pools with good versions: far longer than a boot on a busy machine."""


@dataclass(frozen=True, slots=True)
class AssignedPool:
    """One pool of the assignment, as written to the file."""

    version: Version
    warm: int
    priority: int = 0
    deadline_s: float = LONG_DEADLINE_S


class ClaimState(StrEnum):
    """State of a claim."""

    HELD = "held"
    RELEASED = "released"
    ENDED = "ended"  # it expired or broke, for a valid reason


@dataclass(slots=True)
class Claim:
    """A lease that the agent granted to a client."""

    lease: str
    vm: str
    pool: str
    holder: str
    granted_in_round: int
    expires_at_s: float | None  # when it must expire; None: the client holds it
    state: ClaimState = ClaimState.HELD


@dataclass(slots=True)
class RoundActions:
    """Actions of one round that may have changed the host."""

    number: int
    pools_changed: set[str] = field(default_factory=set)
    pools_requested: set[str] = field(default_factory=set)  # by a request for a lease
    pools_refused: set[str] = field(default_factory=set)  # by a request that got no lease
    crashed: bool = False
    disk_was_full: bool = False
    tool_failed: bool = False  # the hypervisor tool failed


@dataclass(slots=True)
class ExpectedState:
    """Expected state of one seed's host."""

    pools: dict[str, AssignedPool] = field(default_factory=dict)
    file_is_good: bool = True
    versions: dict[str, Version] = field(default_factory=dict)  # all that were pushed, by digest
    short_deadline_pools: set[str] = field(default_factory=set)  # pools that ever had a short deadline
    harmed: dict[str, str] = field(default_factory=dict)  # VM: kind of harm
    harms_of: Counter[str] = field(default_factory=Counter)  # by digest: number of harmed VMs
    claims: list[Claim] = field(default_factory=list)
    unanswered: set[str] = field(default_factory=set)  # holders whose request may have been granted
    last_pids: dict[str, int] = field(default_factory=dict)  # of ready and leased VMs at the end of the last round
    round: RoundActions = field(default_factory=lambda: RoundActions(0))
    boots_s: deque[float] = field(default_factory=lambda: deque(maxlen=5))  # duration of the latest boots
    counts: Counter[str] = field(default_factory=Counter)

    def is_bad_version(self, digest: str) -> bool:
        """Return whether VMs of this version fail without harm."""
        version = self.versions.get(digest)
        return version is not None and version.flavour is not Flavour.GOOD

    def short_deadline_s(self) -> float:
        """Return a startup deadline that a healthy guest just meets at the current load of this machine."""
        return 2 * max([4.0, *self.boots_s])

    def held(self) -> list[Claim]:
        """Return the claims whose leases must exist: granted and not released."""
        return [claim for claim in self.claims if claim.state is ClaimState.HELD]
