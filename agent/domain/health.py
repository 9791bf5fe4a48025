"""Health of live VMs: when failed probe results make a VM unhealthy. Pure: the engine runs the probes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from agent.domain.model import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.model import ProbeSpec

ERROR_BUDGET: Final = 3
"""A probe that cannot be run is repeated this many times as often as one that fails: the cause may be the tool and not
the guest, but a VM that cannot be probed must not stay in a warm pool."""

TOOL_MARGIN_S: Final = 5.0
"""How much longer than the timeout of a probe a driver may take before the probe ends as an error."""


class Outcome(StrEnum):
    """How one run of a probe ended."""

    PASS = "pass"
    FAIL = "fail"  # the guest gave a wrong answer or none
    ERROR = "error"  # the probe could not be run: the tool hung, access was denied


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One run of a probe, with the detail that explains its outcome."""

    probe: str
    outcome: Outcome
    detail: str
    at_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """Why a live VM must be replaced."""

    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Streak:
    """Consecutive runs of one probe that did not pass."""

    fails: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """The streaks of every probe of one live VM."""

    streaks: Mapping[str, Streak] = field(default_factory=dict)


def add_result(health: Health, probe: ProbeSpec, result: ProbeResult) -> tuple[Health, Unhealthy | None]:
    """Return the health after one liveness result, and why the VM is unhealthy if that result was one too many.

    A fail counts towards `probe.failures`; an error counts separately, towards `ERROR_BUDGET` times as many; a pass
    resets both. A VM that continues to fail is reported again after each further `probe.failures` fails.
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
    return after, _unhealthy_after(probe, streak, result)


def _unhealthy_after(probe: ProbeSpec, streak: Streak, result: ProbeResult) -> Unhealthy | None:
    if streak.fails and streak.fails % probe.failures == 0:
        return Unhealthy(Cause.PROBE_FAILED, f"{probe.name} failed {streak.fails} times in a row: {result.detail}")
    if streak.errors and streak.errors % (probe.failures * ERROR_BUDGET) == 0:
        return Unhealthy(Cause.PROBE_ERROR, f"{probe.name} could not be run {streak.errors} times: {result.detail}")
    return None
