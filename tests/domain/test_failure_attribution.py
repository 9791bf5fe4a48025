"""Attribution of failures, and the conditions that report them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.domain.breaker import HOST_KEY, Breaker, BreakerKey, Scope
from agent.domain.conditions import conditions
from agent.domain.failure_attribution import FREE_FAILURES
from agent.domain.model import Cause, Condition, HostLimits, PoolSpec
from agent.domain.states import VmState
from tests.domain.simulation import Host, digest, serving_host


def two_pools() -> Host:
    """Return a settled host with two pools, each serving a version of its own."""
    pools = (PoolSpec("a", "reg/a:1", warm=1), PoolSpec("b", "reg/b:1", warm=1))
    host = Host(limits=HostLimits(4, 64, 65536), pools=pools)
    host.registry = {"reg/a:1": digest("a"), "reg/b:1": digest("b")}
    host.settle()
    return host


def kill_young(host: Host, pool: str) -> None:
    """Let the one VM of a pool die right after it became ready."""
    (victim,) = host.in_state(pool, VmState.READY)
    host.vms[victim.name] = replace(victim, ready_at_s=host.now_s)
    host.die(victim.name)


def replace_all(host: Host) -> None:
    for _ in range(6):
        host.reconcile()
        for resource in list(host.in_flight):
            host.finish(resource)
        for name in list(host.vms):
            host.pass_probes(name)
        host.now_s += 1


def version(name: str) -> BreakerKey:
    return BreakerKey(Scope.IMAGE, digest(name))


def breaker(host: Host, key: BreakerKey) -> Breaker:
    return host.tables[Breaker].get(key, Breaker(key))  # type: ignore[no-any-return]


def condition(host: Host, kind: str) -> Condition:
    return next(found for found in conditions(host.world()) if found.type == kind)


def test_host_breaker_counts_when_two_serving_versions_fail() -> None:
    host = two_pools()
    for pool in ("a", "b", "a", "b"):
        kill_young(host, pool)
        replace_all(host)
    assert breaker(host, HOST_KEY).failures == 3  # from the second image on
    assert breaker(host, HOST_KEY).is_open(host.now_s - 6)


def test_host_breaker_ignores_one_failing_version() -> None:
    host = two_pools()
    for _ in range(3):
        kill_young(host, "a")
        replace_all(host)
    assert breaker(host, version("a")).failures == 3
    assert breaker(host, HOST_KEY).failures == 0
    assert condition(host, "HostHealthy").problem is False


def test_host_breaker_ignores_a_failing_canary() -> None:
    host = two_pools()
    kill_young(host, "a")
    host.registry["reg/b:1"] = digest("b2")
    host.bad.add(digest("b2"))
    host.settle()
    assert breaker(host, version("b2")).failures > 0
    assert breaker(host, HOST_KEY).failures == 0


def fail_clones(host: Host, count: int) -> None:
    for _ in range(count):
        host.reconcile()
        for resource in list(host.in_flight):
            host.finish(resource, ok=resource not in host.vms or host.vms[resource].state is not VmState.CREATING)


def test_host_unhealthy_when_clones_fail() -> None:
    host = serving_host(warm=1, slots=4)
    host.die(next(iter(host.vms)))
    fail_clones(host, 12)
    found = condition(host, "HostHealthy")
    assert found.problem
    assert "The cause is this host" in found.message
    assert "retries automatically" in found.message
    assert breaker(host, HOST_KEY).failures == FREE_FAILURES + 1
    assert not any(vm.state is VmState.CREATING for vm in host.vms.values())
    host.settle()
    assert not condition(host, "HostHealthy").problem


def test_images_failing_names_the_version_with_the_remedy() -> None:
    host = two_pools()
    for _ in range(3):
        kill_young(host, "a")
        if breaker(host, version("a")).failures < 3:
            replace_all(host)
    found = condition(host, "ImagesFailing")
    assert found.problem
    assert "sha256:a: 3 VMs failed" in found.message
    assert "hearth rollout retry" in found.message
    host.settle()
    assert not condition(host, "ImagesFailing").problem


@pytest.mark.parametrize(("leaked", "host_failures"), [(1, 0), (2, 1)])
def test_slots_leaked_names_vms_that_cannot_be_torn_down(leaked: int, host_failures: int) -> None:
    host = serving_host(warm=2, slots=4)
    names = sorted(host.vms)[:leaked]
    for name in names:
        host.die(name)
    host.reconcile()
    for name in names:
        host.finish(name, ok=False)
    found = condition(host, "SlotsLeaked")
    assert found.problem
    assert all(name in found.message for name in names)
    assert breaker(host, HOST_KEY).failures == host_failures
    host.settle()
    assert not condition(host, "SlotsLeaked").problem


def test_unfit_image_counts_for_the_image_only() -> None:
    host = serving_host(warm=1, slots=2)
    (name,) = host.vms
    host.vms[name] = replace(host.vms[name], state=VmState.CREATING, ready_at_s=None)
    host.fail(name, Cause.IMAGE_UNFIT)
    assert breaker(host, version("v1")).failures == 1
    assert breaker(host, HOST_KEY).failures == 0
