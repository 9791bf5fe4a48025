"""Rollouts: the soak, the watch after the promotion, retry and undo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.domain.events import EventKind
from agent.domain.model import HostLimits, PoolSpec, ProbeKind, ProbeSpec
from agent.domain.plan import next_due_s
from agent.domain.rollout import WATCH_S, Phase, Rollout, retry, soak_time_s, undo
from agent.domain.states import VmState
from tests.domain.simulation import Host, assigned, digest, serving_host

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


# -- soak, and the watch after the promotion

OLD, NEW = digest("v1"), digest("v2")


def deploy(host: Host) -> None:
    """Let one canary of version v2 become ready next to the ready VMs of v1."""
    host.registry["reg/ci:latest"] = NEW
    host.now_s += 301
    while not host.in_state("ci", VmState.READY, NEW):
        step(host)


def step(host: Host, *, seconds: float = 0.0) -> None:
    """Run one pass, and let its effects and probes succeed."""
    host.now_s += seconds
    host.observe()
    host.reconcile()
    for resource in list(host.in_flight):
        host.finish(resource)
    for name in list(host.vms):
        host.pass_probes(name)


@pytest.mark.parametrize(
    ("pool", "expected_s"),
    [
        ({}, 60.0),
        ({"soak_s": 5.0}, 5.0),
        ({"soak_s": 0.0}, 0.0),
        ({"probes": (ProbeSpec(ProbeKind.AGENT, period_s=60.0, failures=4), ProbeSpec(ProbeKind.AGENT))}, 480.0),
        ({"probes": ()}, 60.0),
    ],
)
def test_soak_time_defaults_to_twice_the_slowest_probe(pool: dict[str, Any], expected_s: float) -> None:
    assert soak_time_s(PoolSpec("ci", "reg/ci:latest", **pool)) == expected_s


def test_version_is_promoted_after_its_soak() -> None:
    host = serving_host(slots=3)
    deploy(host)
    step(host)
    assert host.rollouts["ci"].phase is Phase.CANARY
    due_s = host.rollouts["ci"].soak_until_s
    assert due_s is not None
    assert next_due_s(host.world()) == due_s, "the reconciler must wake at the end of the soak"
    host.now_s = due_s - 0.001
    step(host)
    assert (host.rollouts["ci"].phase, host.rollouts["ci"].serving) == (Phase.CANARY, OLD)
    host.now_s = due_s
    step(host)
    assert (host.rollouts["ci"].phase, host.rollouts["ci"].serving) == (Phase.PROMOTING, NEW)


def test_first_version_of_a_pool_needs_no_soak() -> None:
    host = Host(limits=HostLimits(2, 64, 65536), pools=(PoolSpec("ci", "reg/ci:latest", warm=2),))
    host.registry["reg/ci:latest"] = OLD
    began_s = host.now_s
    while len(host.in_state("ci", VmState.READY, OLD)) < 2:
        step(host)
    assert host.now_s == began_s


def test_crash_in_the_soak_never_empties_the_pool() -> None:
    """Each canary becomes ready and dies 12 s later."""
    host = serving_host(slots=3)
    deploy(host)
    while host.rollouts["ci"].phase is not Phase.ROLLED_BACK:
        for vm in host.in_state("ci", VmState.READY, NEW):
            if host.now_s - vm.since_s >= 12:
                host.die(vm.name)
        step(host, seconds=1)
        assert len(host.in_state("ci", VmState.READY, OLD)) == 2
    assert host.rollouts["ci"].quarantined == (NEW,)
    assert host.events.count(EventKind.VM_FAILED) == host.pools[0].canary_attempts


def test_soak_starts_again_after_a_failure() -> None:
    host = serving_host(slots=3)
    deploy(host)
    step(host)
    first = host.rollouts["ci"].soak_until_s
    host.now_s += 50
    (canary,) = host.in_state("ci", VmState.READY, NEW)
    host.die(canary.name)
    while not host.in_state("ci", VmState.READY, NEW):
        step(host)
    step(host)
    second = host.rollouts["ci"].soak_until_s
    assert first is not None
    assert second == host.now_s + 60 > first


def test_leased_canary_is_not_multiplied() -> None:
    host = serving_host(slots=4, warm=2)
    deploy(host)
    for _ in range(3):  # two leases take the serving version, the third one the canary
        host.request_lease("ci")
    step(host)
    assert [vm.image for vm in host.vms.values() if vm.state is VmState.LEASED].count(NEW) == 1
    for _ in range(5):
        step(host)
    assert [vm.image for vm in host.vms.values()].count(NEW) == 1


def promoted(**pool: Any) -> Host:
    host = serving_host(slots=3, soak_s=0.0, **pool)
    deploy(host)
    while host.rollouts["ci"].phase is not Phase.SERVING:
        step(host)
    return host


def crash_once(host: Host, *, after_s: float = 120.0) -> None:
    """Let the oldest ready VM of v2 die, and its replacement become ready."""
    host.now_s += after_s
    host.die(min(host.in_state("ci", VmState.READY, NEW), key=lambda vm: vm.created_at_s).name)
    for _ in range(10):
        step(host, seconds=1)


def test_promoted_version_that_fails_repeatedly_is_rolled_back() -> None:
    host = promoted(warm=1, rollback_after=3)
    for number in range(1, 4):
        assert host.rollouts["ci"].phase is Phase.SERVING
        crash_once(host)
        assert host.rollouts["ci"].failures == number
    host.settle()
    assert (host.rollouts["ci"].phase, host.rollouts["ci"].serving) == (Phase.ROLLED_BACK, OLD)
    assert len(host.in_state("ci", VmState.READY, OLD)) == len(host.vms) == 1


def test_failures_after_the_watch_do_not_roll_back() -> None:
    host = promoted(warm=1, rollback_after=2)
    host.now_s += WATCH_S
    for _ in range(4):
        crash_once(host)
    assert (host.rollouts["ci"].phase, host.rollouts["ci"].failures) == (Phase.SERVING, 0)


def test_failures_at_the_same_time_count_once() -> None:
    """A restart of the host ends all VMs."""
    host = promoted(warm=2, rollback_after=2)
    for vm in host.in_state("ci", VmState.READY, NEW):
        host.die(vm.name)
    assert host.rollouts["ci"].failures == 1
    for _ in range(10):
        step(host, seconds=1)
    assert host.rollouts["ci"].phase is Phase.SERVING


def test_vm_that_its_job_ends_does_not_count() -> None:
    host = promoted(warm=1, rollback_after=1)
    host.now_s += 300
    host.request_lease("ci")
    step(host)
    (vm,) = (vm for vm in host.vms.values() if vm.state is VmState.LEASED)
    host.die(vm.name)
    step(host)
    assert (host.rollouts["ci"].phase, host.rollouts["ci"].failures) == (Phase.SERVING, 0)
