"""Whose fault a failure is, and what the operator is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.domain.breaker import HOST_BREAKER, Breaker
from agent.domain.conditions import conditions
from agent.domain.failure_attribution import FREE_FAILURES
from agent.domain.model import Cause, Condition, HostLimits, PoolSpec
from agent.domain.states import VmState
from tests.domain.simulation import Host, digest, serving_host


def two_pools() -> Host:
    """Return a settled host with two pools, each with a proven version of its own."""
    pools = (PoolSpec("a", "reg/a:1", warm=1), PoolSpec("b", "reg/b:1", warm=1))
    host = Host(limits=HostLimits(4, 64, 65536), pools=pools)
    host.registry = {"reg/a:1": digest("a"), "reg/b:1": digest("b")}
    host.settle()
    return host


def kill_young(host: Host, pool: str) -> None:
    """Let the one VM of a pool die right after it was proven, and its replacement get ready."""
    (victim,) = host.in_state(pool, VmState.READY)
    host.vms[victim.name] = replace(victim, ready_at_s=host.now_s)
    host.die(victim.name)


def replace_all(host: Host) -> None:
    for _ in range(6):
        host.turn()
        for resource in list(host.flying):
            host.land(resource)
        for name in list(host.vms):
            host.prove(name)
        host.now_s += 1


def breaker(host: Host, key: str) -> Breaker:
    return host.tables[Breaker].get(key, Breaker(key))  # type: ignore[no-any-return]


def condition(host: Host, kind: str) -> Condition:
    return next(one for one in conditions(host.world()) if one.type == kind)


def test_proven_versions_of_two_images_that_fail_together_are_the_hosts_fault() -> None:
    host = two_pools()
    for pool in ("a", "b", "a", "b"):
        kill_young(host, pool)
        replace_all(host)
    assert breaker(host, HOST_BREAKER).failures == 3  # from the second image on
    assert breaker(host, HOST_BREAKER).is_open(host.now_s - 6)


def test_one_image_that_fails_is_that_images_fault_alone() -> None:
    host = two_pools()
    for _ in range(3):
        kill_young(host, "a")
        replace_all(host)
    assert breaker(host, digest("a")).failures == 3
    assert breaker(host, HOST_BREAKER).failures == 0
    assert condition(host, "HostHealthy").problem is False


def test_a_version_on_trial_that_fails_says_nothing_about_the_host() -> None:
    host = two_pools()
    kill_young(host, "a")
    host.registry["reg/b:1"] = digest("b2")
    host.bad.add(digest("b2"))
    host.settle()
    assert breaker(host, digest("b2")).failures > 0
    assert breaker(host, HOST_BREAKER).failures == 0


def fail_clones(host: Host, count: int) -> None:
    for _ in range(count):
        host.turn()
        for resource in list(host.flying):
            host.land(resource, ok=resource not in host.vms or host.vms[resource].state is not VmState.CREATING)


def test_clones_that_cannot_be_made_open_the_hosts_breaker_with_the_way_out() -> None:
    host = serving_host(warm=1, slots=4)
    host.die(next(iter(host.vms)))
    fail_clones(host, 12)
    told = condition(host, "HostHealthy")
    assert told.problem
    assert "this host's own fault" in told.message
    assert "tried again by itself" in told.message
    assert breaker(host, HOST_BREAKER).failures == FREE_FAILURES + 1
    assert not any(vm.state is VmState.CREATING for vm in host.vms.values())
    host.settle()
    assert not condition(host, "HostHealthy").problem


def test_an_image_whose_vms_keep_failing_is_named_with_the_way_out() -> None:
    host = two_pools()
    for _ in range(3):
        kill_young(host, "a")
        if breaker(host, digest("a")).failures < 3:
            replace_all(host)
    told = condition(host, "ImagesFailing")
    assert told.problem
    assert "sha256:a: 3 VMs failed" in told.message
    assert "hearth rollout retry" in told.message
    host.settle()
    assert not condition(host, "ImagesFailing").problem


@pytest.mark.parametrize(("stuck", "host_failures"), [(1, 0), (2, 1)])
def test_vms_that_cannot_be_torn_down_are_told_and_several_are_the_hosts_fault(stuck: int, host_failures: int) -> None:
    host = serving_host(warm=2, slots=4)
    names = sorted(host.vms)[:stuck]
    for name in names:
        host.die(name)
    host.turn()
    for name in names:
        host.land(name, ok=False)
    told = condition(host, "SlotsLeaked")
    assert told.problem
    assert all(name in told.message for name in names)
    assert breaker(host, HOST_BREAKER).failures == host_failures
    host.settle()
    assert not condition(host, "SlotsLeaked").problem


def test_an_image_this_host_cannot_run_is_not_the_hosts_fault() -> None:
    host = serving_host(warm=1, slots=2)
    (name,) = host.vms
    host.vms[name] = replace(host.vms[name], state=VmState.CREATING, ready_at_s=None)
    host.fail(name, Cause.IMAGE_UNFIT)
    assert breaker(host, digest("v1")).failures == 1
    assert breaker(host, HOST_BREAKER).failures == 0
