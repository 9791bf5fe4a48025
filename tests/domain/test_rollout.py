"""Rollouts taken in hand: tried again, undone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.domain.rollout import Phase, Rollout, retry, undo
from agent.domain.states import VmState
from tests.domain.simulation import assigned, digest, serving_host

SERVING = Rollout("ci", "new", "new", Phase.SERVING, 1.0, previous="old")
ON_TRIAL = Rollout("ci", "new", "old", Phase.CANARY, 1.0, failures=1, reason="exited")
ROLLED_BACK = Rollout("ci", "new", "old", Phase.ROLLED_BACK, 1.0, failures=2, reason="no", quarantined=("x", "new"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (SERVING, SERVING),
        (ON_TRIAL, replace(ON_TRIAL, failures=0, reason="", since_s=9.0)),
        (ROLLED_BACK, Rollout("ci", "new", "old", Phase.PULLING, 9.0, quarantined=("x",))),
    ],
)
def test_retry_starts_another_trial(before: Rollout, after: Rollout) -> None:
    assert retry(before, 9.0) == after


@pytest.mark.parametrize(
    ("before", "serving", "previous"),
    [
        (SERVING, "old", None),
        (replace(SERVING, phase=Phase.PROMOTING), "old", None),
        (ON_TRIAL, "old", None),
        (replace(ON_TRIAL, phase=Phase.PULLING, previous="older"), "old", "older"),
    ],
)
def test_undo_returns_and_quarantines(before: Rollout, serving: str, previous: str | None) -> None:
    after = undo(before, reason="it smells", now_s=9.0)
    assert after is not None
    assert (after.phase, after.serving, after.previous) == (Phase.ROLLED_BACK, serving, previous)
    assert (after.quarantined, after.reason) == (("new",), "it smells")


@pytest.mark.parametrize(
    "before", [replace(SERVING, previous=None), replace(ON_TRIAL, serving=None), ROLLED_BACK], ids=str
)
def test_undo_returns_none_without_a_previous_version(before: Rollout) -> None:
    assert undo(before, reason="", now_s=9.0) is None


def test_undone_version_is_not_tried_until_retried() -> None:
    host = serving_host()
    host.registry["reg/ci:latest"] = digest("v2")
    host.settle()
    assert host.rollouts["ci"].serving == digest("v2")

    assert host.undo("ci")
    host.settle()
    assert len(host.in_state("ci", VmState.READY, digest("v1"))) == len(host.vms) == 2

    host.retry("ci")
    host.settle()
    assert host.rollouts["ci"].phase is Phase.SERVING
    assert len(host.in_state("ci", VmState.READY, digest("v2"))) == len(host.vms) == 2


def test_newer_version_replaces_an_undone_one() -> None:
    host = serving_host()
    host.registry["reg/ci:latest"] = digest("v2")
    host.settle()
    assert host.undo("ci")
    host.registry["reg/ci:latest"] = digest("v3")
    host.settle()
    assert len(host.in_state("ci", VmState.READY, digest("v3"))) == 2
    assigned(host, image="reg/ci:again")
    host.registry["reg/ci:again"] = digest("v2")
    host.settle()
    assert host.rollouts["ci"].phase is Phase.ROLLED_BACK


def test_failed_version_is_tried_again_after_retry() -> None:
    host = serving_host(canary_attempts=1)
    host.bad.add(digest("v2"))
    host.registry["reg/ci:latest"] = digest("v2")
    host.settle()
    assert host.rollouts["ci"].phase is Phase.ROLLED_BACK
    host.bad.clear()  # for example, the network failed
    host.retry("ci")
    host.settle()
    assert len(host.in_state("ci", VmState.READY, digest("v2"))) == 2
