"""Steps of a round, drawn in advance from one random source. Pure: the same seed draws the same rounds.

A step names no VM. Its `pick`, from 0 to 1, selects one of the VMs that run at the time of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random


class Kind(StrEnum):
    """Kinds of steps."""

    LEASE = "lease"  # use a VM for a short time, then release it
    LEASE_AND_HOLD = "lease-and-hold"  # keep the lease over rounds
    LEASE_AND_FORGET = "lease-and-forget"  # let it expire
    RELEASE = "release"  # release a held lease
    RESIZE = "resize"
    SIDE_POOL = "side-pool"  # assign the second pool, or remove it
    UNASSIGN = "unassign"
    MALFORMED = "malformed-assignment"
    BUMP_GOOD = "bump-good"
    BUMP_UNHEALTHY = "bump-unhealthy"
    BUMP_DYING = "bump-dying"
    KILL_VM = "kill-vm"
    STOP_VM = "stop-vm"
    DELETE_FILES = "delete-files"
    CRASH = "crash-agent"
    CRASH_AT_EVENT = "crash-agent-at-event"
    CRASH_WITH_VM = "crash-agent-and-kill-vm"
    OUTAGE = "registry-outage"
    FULL_DISK = "full-disk"


@dataclass(frozen=True, slots=True)
class Step:
    """One action `at_s` seconds into the round. `lasts_s` is the duration of a hold, an outage or a wait."""

    kind: Kind
    at_s: float
    pick: float
    lasts_s: float
    event: str = ""  # for CRASH_AT_EVENT: the journal event at which the agent is killed

    def __str__(self) -> str:
        at_event = f" {self.event}" if self.event else ""
        return f"{self.kind}{at_event} at {self.at_s:.2f} s, pick {self.pick:.3f}, lasts {self.lasts_s:.2f} s"


WEIGHTS: Final[dict[Kind, int]] = {
    Kind.LEASE: 8,
    Kind.LEASE_AND_HOLD: 5,
    Kind.LEASE_AND_FORGET: 4,
    Kind.RELEASE: 5,
    Kind.RESIZE: 5,
    Kind.SIDE_POOL: 4,
    Kind.UNASSIGN: 2,
    Kind.MALFORMED: 3,
    Kind.BUMP_GOOD: 5,
    Kind.BUMP_UNHEALTHY: 2,
    Kind.BUMP_DYING: 2,
    Kind.KILL_VM: 7,
    Kind.STOP_VM: 2,
    Kind.DELETE_FILES: 3,
    Kind.CRASH: 5,
    Kind.CRASH_AT_EVENT: 8,
    Kind.CRASH_WITH_VM: 4,
    Kind.OUTAGE: 4,
    Kind.FULL_DISK: 2,
}
SLOW: Final = frozenset({Kind.BUMP_UNHEALTHY, Kind.BUMP_DYING, Kind.STOP_VM, Kind.FULL_DISK})
"""Kinds from which the host needs many seconds to recover. A round has at most one of them."""
CRASH_EVENTS: Final = (
    "assignment-changed", "image-resolved", "image-pulled", "rollout", "vm-creating", "vm-starting", "vm-ready",
    "vm-failed", "vm-stopping", "vm-gone", "lease-granted", "lease-released", "lease-expired", "lease-broken",
    "template-saved",
)  # fmt: skip
"""Journal events at which the agent is killed. There is an effect between each of them and the next."""
ROUND_S: Final = 2.0
"""All steps of a round begin within this time."""


def draw_round(rng: Random) -> tuple[Step, ...]:
    """Return the steps of the next round, in the order of their start times."""
    steps: list[Step] = []
    for _ in range(rng.randint(2, 5)):
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        step = Step(
            kind=kind,
            at_s=rng.uniform(0, ROUND_S),
            pick=rng.random(),
            lasts_s=rng.uniform(0.2, 2.0),
            event=rng.choice(CRASH_EVENTS) if kind is Kind.CRASH_AT_EVENT else "",
        )
        if kind not in SLOW or not any(earlier.kind in SLOW for earlier in steps):
            steps.append(step)
    return tuple(sorted(steps, key=lambda step: step.at_s))
