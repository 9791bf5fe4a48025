"""Names of VMs, capacity, and the next moment to plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.breaker import HOST_KEY, Breaker, BreakerKey, Scope
from agent.domain.capacity import Limit, startable
from agent.domain.model import HostLimits, HostMode, Lease, Mode, PoolSpec, ProbeKind, ProbeSpec, Resolution, Vm, VmSize
from agent.domain.names import PREFIX, parse, vm_name
from agent.domain.plan import next_due_s
from agent.domain.states import VmState
from agent.domain.world import World

NOW_S = 1_000_000.0
POOL = PoolSpec("ci", "reg/ci:1", size=VmSize(2, 4096), max_age_s=500.0, max_idle_s=100.0)
WORLD = World(NOW_S, 0.5, HostLimits(slots=3, cpus=16, memory_mib=65536), pools=(POOL,))
ULIDS = st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=26, max_size=26)
POOLS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


def test_can_lease_excludes_busy_and_unleasable_vms() -> None:
    ready = Vm("v", "ci", "sha256:v1", VmState.READY, POOL.size, NOW_S, NOW_S)
    assert WORLD.can_lease(ready)
    assert not WORLD.can_lease(replace(ready, state=VmState.LEASED))
    assert not replace(WORLD, busy=frozenset({"v"})).can_lease(ready)
    assert not replace(WORLD, unleasable=frozenset({"v"})).can_lease(ready)


@given(pool=POOLS, ulid=ULIDS)
@settings(max_examples=30)
def test_vm_name_carries_owner_and_pool(pool: str, ulid: str) -> None:
    parts = parse(vm_name(pool, ulid.upper()))
    assert parts is not None
    assert (parts.prefix, parts.pool, parts.ulid) == (PREFIX, pool, ulid)


@pytest.mark.parametrize("name", ["", "hearth", "hearth-ci", "hearth--" + "0" * 26, "other-ci-" + "0" * 26, "macos-15"])
def test_parse_refuses_foreign_names(name: str) -> None:
    assert parse(name) is None


@pytest.mark.parametrize(
    ("changes", "count", "limit"),
    [
        ({}, 3, Limit.SLOTS),
        ({"foreign_slots": 2}, 1, Limit.SLOTS),
        ({"limits": HostLimits(9, 5, 65536)}, 2, Limit.CPUS),
        ({"limits": HostLimits(9, 99, 5000)}, 1, Limit.MEMORY),
        ({"disk_full": True}, 0, Limit.DISK),
        ({"mode": HostMode(Mode.DRAINING)}, 0, Limit.DRAINING),
        ({"breakers": {HOST_KEY: Breaker(HOST_KEY, open_until_s=NOW_S + 1)}}, 0, Limit.UNHEALTHY),
    ],
)
def test_startable_names_the_binding_limit(changes: dict[str, object], count: int, limit: Limit) -> None:
    assert startable(replace(WORLD, **changes), POOL) == (count, limit)  # type: ignore[arg-type]


def test_startable_respects_pool_maximum() -> None:
    assert startable(WORLD, replace(POOL, max=2)) == (2, Limit.POOL_MAX)


def test_leased_vm_of_an_unassigned_pool_keeps_its_probes() -> None:
    probes = (ProbeSpec(ProbeKind.TCP, 22),)
    leased = Vm("v", "gone", "sha256:v1", VmState.LEASED, POOL.size, NOW_S, NOW_S, lease_id="l")
    world = replace(WORLD, vms=(leased,), leases=(Lease("l", "gone", "v", "job", 60, NOW_S, NOW_S, probes=probes),))
    spec = world.pool_of(leased)
    assert spec is not None
    assert spec.probes == probes
    assert world.pool_of(replace(leased, pool="ci")) == POOL
    assert world.pool_of(replace(leased, lease_id=None)) is None


def test_next_due_is_the_earliest_end() -> None:
    ready = Vm("v", "ci", "sha256:v1", VmState.READY, POOL.size, NOW_S - 480, NOW_S, ready_at_s=NOW_S - 10)
    resolution = Resolution("reg/ci:1", "sha256:v1", NOW_S - 100)
    world = replace(WORLD, resolutions={"reg/ci:1": resolution})
    assert next_due_s(world) == NOW_S + 200  # the reference is resolved again
    key = BreakerKey(Scope.IMAGE, "x")
    world = replace(world, breakers={key: Breaker(key, open_until_s=NOW_S + 150)})
    assert next_due_s(world) == NOW_S + 150
    world = replace(world, vms=(replace(ready, created_at_s=NOW_S),))
    assert next_due_s(world) == NOW_S + 90  # the VM reaches max_idle_s
    world = replace(world, vms=(ready,))
    assert next_due_s(world) == NOW_S + 20  # the VM reaches max_age_s
    world = replace(world, leases=(Lease("l", "ci", "v", "job", 60, NOW_S, NOW_S + 5),))
    assert next_due_s(world) == NOW_S + 5
    assert next_due_s(WORLD) is None
