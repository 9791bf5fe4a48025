"""Health: consecutive failed probes make a VM unhealthy; probes that cannot be run do so later."""

from __future__ import annotations

import pytest

from agent.domain.health import ERROR_BUDGET, Health, Outcome, ProbeResult, Unhealthy, add_result
from agent.domain.model import Cause, ProbeKind, ProbeSpec

PROBE = ProbeSpec(ProbeKind.AGENT, failures=3)
OTHER = ProbeSpec(ProbeKind.HTTP, port=80, failures=3)


def results_of(answers: str, probe: ProbeSpec = PROBE) -> list[Unhealthy | None]:
    """Add results, one letter each: `p`ass, `f`ail, `e`rror."""
    outcomes = {"p": Outcome.PASS, "f": Outcome.FAIL, "e": Outcome.ERROR}
    health, found = Health(), []
    for answer in answers:
        health, unhealthy = add_result(health, probe, ProbeResult(probe.name, outcomes[answer], "no answer", 1.0, 0.1))
        found.append(unhealthy)
    return found


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ("fff", Cause.PROBE_FAILED),
        ("ff", None),
        ("ffpff", None),
        ("ffpfff", Cause.PROBE_FAILED),
        ("e" * 3 * ERROR_BUDGET, Cause.PROBE_ERROR),
        ("e" * (3 * ERROR_BUDGET - 1), None),
        ("eefeef", None),
        ("eefeeff", Cause.PROBE_FAILED),  # an error neither counts as a fail nor resets the count
    ],
)
def test_unhealthy_after_consecutive_fails(answers: str, cause: Cause | None) -> None:
    *before, last = results_of(answers)
    assert before == [None] * len(before)
    assert (last.cause if last else None) == cause


def test_continued_failure_is_reported_again() -> None:
    assert [bool(unhealthy) for unhealthy in results_of("ffffff")] == [False, False, True, False, False, True]


def test_probes_are_counted_separately() -> None:
    health = Health()
    for probe in (PROBE, OTHER, PROBE, OTHER):
        health, unhealthy = add_result(health, probe, ProbeResult(probe.name, Outcome.FAIL, "no", 1.0, 0.1))
        assert unhealthy is None


def test_reason_names_the_probe_and_its_detail() -> None:
    (*_, unhealthy) = results_of("fff", OTHER)
    assert unhealthy == Unhealthy(Cause.PROBE_FAILED, "http:80/ failed 3 times in a row: no answer")
