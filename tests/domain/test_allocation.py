"""Allocation when not all pools fit: requests first, then priorities, then the pool that was short for the longest."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.actions import CreateVm, DestroyVm
from agent.domain.model import HostLimits, Mode, PoolSpec, VmSize
from agent.domain.states import VmState
from tests.domain.simulation import Host, digest

SMALL, LARGE = VmSize(1, 1000), VmSize(1, 4000)


def contended(*pools: PoolSpec, slots: int = 1, memory_mib: int = 64000) -> Host:
    """Return a settled host with those pools, each serving an image of its own, and then too few slots for all."""
    host = Host(limits=HostLimits(20, 64, 128000), pools=pools)
    host.registry = {pool.image: digest(pool.name) for pool in pools}
    host.settle()
    host.set_mode(Mode.DRAINING)
    host.settle()
    host.limits = HostLimits(slots, 64, memory_mib)
    host.set_mode(Mode.OPEN)
    host.settle()
    return host


def pool(name: str, **fields: object) -> PoolSpec:
    return replace(PoolSpec(name, f"reg/{name}:1", size=SMALL), **fields)  # type: ignore[arg-type]


def use_up(host: Host, name: str) -> str:
    """Let the one VM of a pool die, and return the pool that is given its slot."""
    (vm,) = (vm for vm in host.vms.values() if vm.pool == name)
    host.die(vm.name)
    for _ in range(3):
        host.now_s += 700  # past every breaker
        created = [action.pool.name for action in host.reconcile().actions if isinstance(action, CreateVm)]
        for resource in list(host.in_flight):
            host.finish(resource)
        if created:
            (successor,) = created
            for vm_name in list(host.vms):
                host.pass_probes(vm_name)
            return successor
    raise AssertionError("no pool was given the slot")


def test_longest_short_pool_is_next() -> None:
    host = contended(pool("a"), pool("b"), pool("c"))
    order = ["a"]
    for _ in range(6):
        order.append(use_up(host, order[-1]))
    assert order == ["a", "b", "c", "a", "b", "c", "a"]


def test_pool_given_a_vm_goes_behind_its_equals() -> None:
    host = contended(pool("a", warm=4), pool("b", warm=4), slots=2)
    host.rollouts["a"] = replace(host.rollouts["a"], short_since_s=host.now_s - 100)
    host.rollouts["b"] = replace(host.rollouts["b"], short_since_s=host.now_s - 50)
    host.limits = HostLimits(4, 64, 64000)
    created = [action.pool.name for action in host.reconcile().actions if isinstance(action, CreateVm)]
    assert created == ["a", "b"]


def test_restart_keeps_the_order_of_short_pools() -> None:
    host = contended(pool("a"), pool("b"), pool("c"))
    assert use_up(host, "a") == "b"
    host.restart_agent()
    assert use_up(host, "b") == "c"


def test_priority_precedes_time_short() -> None:
    host = contended(pool("a"), pool("b"))
    host.pools = (*host.pools, pool("urgent", priority=1))
    host.registry["reg/urgent:1"] = digest("urgent")
    host.settle()
    assert [vm.pool for vm in host.vms.values()] == ["urgent"]


def test_request_preempts_idle_vm_of_higher_priority() -> None:
    host = contended(pool("warm", priority=5, warm=2), pool("cold", warm=0), slots=2)
    assert len(host.in_state("warm", VmState.READY)) == 2
    host.request_lease("cold")
    preempted = [action for action in host.reconcile().actions if isinstance(action, DestroyVm)]
    assert len(preempted) == 1, "one slot for one request"
    assert "a lease request for pool cold needs its slot" in preempted[0].reason
    host.settle()
    assert [lease.pool for lease in host.leases.values()] == ["cold"]
    assert len(host.in_state("warm", VmState.READY)) == 1


def test_request_preempts_for_the_canary_of_a_new_pool() -> None:
    host = contended(pool("warm", priority=1, warm=2), slots=2)
    host.registry["reg/new:1"] = digest("new")
    host.pools = (*host.pools, pool("new", warm=0))
    host.settle()
    for _ in range(2):
        host.request_lease("new")
    host.settle()
    assert {lease.pool for lease in host.leases.values()} == {"new"}


def test_vm_that_a_request_waits_for_is_not_preempted() -> None:
    host = contended(pool("a", warm=0), pool("b", warm=0))
    host.request_lease("a")
    host.reconcile()
    (booting,) = host.in_flight
    host.finish(booting)
    host.now_s += 1
    host.request_lease("b")
    assert not any(isinstance(action, DestroyVm) for action in host.reconcile().actions)
    host.pass_probes(booting)
    host.reconcile()
    assert [lease.pool for lease in host.leases.values()] == ["a"]


def test_longest_waiting_request_of_all_pools_is_first() -> None:
    host = contended(pool("a", warm=0), pool("b", warm=0), slots=1)
    for name in ("b", "a", "b"):
        host.request_lease(name)
        host.now_s += 1
    served = []
    while host.requests:
        host.settle()
        (lease,) = host.leases.values()
        served.append(lease.pool)
        host.release(lease.id)
    assert served == ["b", "a", "b"]


def test_large_request_is_not_overtaken_by_smaller_ones() -> None:
    host = contended(pool("large", warm=0, size=LARGE), pool("small", warm=4), slots=8, memory_mib=4000)
    host.request_lease("large")
    host.now_s += 1
    for _ in range(3):
        host.request_lease("small")
    host.reconcile()  # the small VMs that are ready are granted nevertheless
    assert len(host.leases) == 3
    host.settle()
    assert [waiter.pool for waiter in host.requests] == ["large"]
    assert not host.in_state("small", VmState.READY), "the room is kept for who waits longest"
    for lease in list(host.leases):
        host.release(lease)
    host.settle()
    assert [lease.pool for lease in host.leases.values()] == ["large"]


def test_later_request_does_not_take_the_slot_of_an_earlier_one() -> None:
    host = contended(pool("large", warm=0, size=LARGE), pool("small", warm=0), slots=8, memory_mib=4500)
    host.request_lease("small")
    host.settle()
    for name in ("large", "small"):
        host.now_s += 1
        host.request_lease(name)
    assert not any(isinstance(action, CreateVm) for action in host.reconcile().actions)
    (lease,) = host.leases
    host.release(lease)
    host.settle()
    assert [one.pool for one in host.leases.values()] == ["large"]


@pytest.mark.slow
@given(
    count=st.integers(2, 4),
    slots=st.integers(1, 3),
    warm=st.integers(1, 3),
    picks=st.lists(st.integers(0, 999), min_size=20, max_size=60),
)
@settings(max_examples=60, deadline=None)
def test_every_short_pool_is_given_a_vm(count: int, slots: int, warm: int, picks: list[int]) -> None:
    """While a pool is short, each other pool of its priority is given at most one VM before it is given one itself."""
    host = contended(*(pool(f"p{number}", warm=warm) for number in range(count)), slots=slots)
    passed: Counter[str] = Counter()
    for pick in picks:
        host.now_s += 700
        names = sorted(host.running)
        if names:
            host.die(names[pick % len(names)])
        for _ in range(2):
            host.now_s += 1
            short = {one.name for one in host.pools if _idle(host, one.name) < warm}
            for action in host.reconcile().actions:
                if isinstance(action, CreateVm):
                    passed.update(short - {action.pool.name})
                    passed[action.pool.name] = 0
            for name in {one.name for one in host.pools} - short:
                passed[name] = 0
            for resource in list(host.in_flight):
                host.finish(resource)
            for name in list(host.vms):
                host.pass_probes(name)
        assert max(passed.values(), default=0) < count


def _idle(host: Host, name: str) -> int:
    return sum(vm.pool == name and vm.is_alive for vm in host.vms.values())


def test_spare_that_does_not_fit_keeps_no_slot_from_a_canary() -> None:
    """A pool that lacks a standby VM waits; a canary of lower priority takes the slot that fits it."""
    host = Host(limits=HostLimits(3, 8, 9000), can_suspend=True)
    high = pool("high", warm=2, standby=1, priority=1, size=LARGE)
    host.registry = {"reg/high:1": digest("high"), "reg/low:1": digest("low")}
    host.pools = (high,)
    host.settle()
    host.pools = (high, pool("low", warm=0))
    host.settle()
    assert host.rollouts["low"].serving == digest("low")
