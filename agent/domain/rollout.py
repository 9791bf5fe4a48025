"""How a new image version takes over a pool: pulled, proven on one VM, then rolled through, or rolled back.

Pure: the planner advances the rollout record from what it sees; the record is kept in the journal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a rollout is."""

    PULLING = "pulling"
    CANARY = "canary"
    PROMOTING = "promoting"
    SERVING = "serving"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class Rollout:
    """The versions of one pool. `serving` is the last proven version, `target` the one the assignment asks for."""

    pool: str
    target: str | None
    serving: str | None
    phase: Phase
    since_s: float
    canary_failures: int = 0
    reason: str = ""
