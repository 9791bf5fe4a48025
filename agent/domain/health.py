"""What probe answers mean. Pure: the engine asks the questions and feeds the answers in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent.domain.model import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.model import ProbeSpec

ERROR_BUDGET: Final = 3
"""A probe that cannot be asked is given this many times the patience of one that answers wrong: the tool may be at
fault and not the guest, but a VM nobody can ask about cannot stay in a warm pool for ever."""


class Outcome(StrEnum):
    """One answer to one probe."""

    PASS = "pass"
    FAIL = "fail"  # the guest answered wrong or not at all
    ERROR = "error"  # the question could not be put: the tool hung, access was denied


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One answer, with the detail a person needs to believe it."""

    probe: str
    outcome: Outcome
    detail: str
    at_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """The verdict that a live VM must be replaced."""

    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Streak:
    """Answers in a row of one probe that were not a pass."""

    fails: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """The streaks of every probe of one live VM."""

    streaks: Mapping[str, Streak] = field(default_factory=dict)


def observe(health: Health, probe: ProbeSpec, result: ProbeResult) -> tuple[Health, Unhealthy | None]:
    """Return the health after one liveness answer, and the verdict if that answer was one too many.

    A fail counts towards `probe.failures`; an error counts apart, towards `ERROR_BUDGET` times as many; a pass clears
    both. A VM that goes on failing is judged again each time its patience is used up anew.
    """
    before = health.streaks.get(probe.name, Streak())
    match result.outcome:
        case Outcome.PASS:
            streak = Streak()
        case Outcome.FAIL:
            streak = replace(before, fails=before.fails + 1)
        case Outcome.ERROR:
            streak = replace(before, errors=before.errors + 1)
    after = Health({**health.streaks, probe.name: streak})
    return after, _verdict(probe, streak, result)


def _verdict(probe: ProbeSpec, streak: Streak, result: ProbeResult) -> Unhealthy | None:
    if streak.fails and streak.fails % probe.failures == 0:
        return Unhealthy(Cause.PROBE_FAILED, f"{probe.name} failed {streak.fails} times in a row: {result.detail}")
    if streak.errors and streak.errors % (probe.failures * ERROR_BUDGET) == 0:
        return Unhealthy(Cause.PROBE_ERROR, f"{probe.name} could not be asked {streak.errors} times: {result.detail}")
    return None
