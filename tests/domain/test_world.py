"""The small parts of the planner: names that carry identity, what fits, and when to look again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.breaker import HOST_BREAKER, Breaker
from agent.domain.capacity import Limit, startable
from agent.domain.due import next_due_s
from agent.domain.model import HostLimits, HostMode, Lease, Mode, PoolSpec, Resolution, Vm, VmSize, World
from agent.domain.names import PREFIX, parse, vm_name
from agent.domain.states import VmState

NOW_S = 1_000_000.0
POOL = PoolSpec("ci", "reg/ci:1", size=VmSize(2, 4096), max_age_s=500.0, max_idle_s=100.0)
WORLD = World(NOW_S, 0.5, HostLimits(slots=3, cpus=16, memory_mib=65536), pools=(POOL,))
ULIDS = st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=26, max_size=26)
POOLS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


@given(pool=POOLS, ulid=ULIDS)
@settings(max_examples=30)
def test_a_name_tells_whose_vm_it_is_and_of_which_pool(pool: str, ulid: str) -> None:
    parts = parse(vm_name(pool, ulid.upper()))
    assert parts is not None
    assert (parts.prefix, parts.pool, parts.ulid) == (PREFIX, pool, ulid)


@pytest.mark.parametrize("name", ["", "hearth", "hearth-ci", "hearth--" + "0" * 26, "other-ci-" + "0" * 26, "macos-15"])
def test_other_names_are_not_ours(name: str) -> None:
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
        ({"breakers": {HOST_BREAKER: Breaker(HOST_BREAKER, open_until_s=NOW_S + 1)}}, 0, Limit.UNHEALTHY),
    ],
)
def test_what_binds_is_named(changes: dict[str, object], count: int, limit: Limit) -> None:
    assert startable(replace(WORLD, **changes), POOL) == (count, limit)  # type: ignore[arg-type]


def test_a_pools_own_maximum_binds() -> None:
    assert startable(WORLD, replace(POOL, max=2)) == (2, Limit.POOL_MAX)


def test_the_next_look_is_when_the_first_thing_runs_out() -> None:
    ready = Vm("v", "ci", "sha256:v1", VmState.READY, POOL.size, NOW_S - 480, NOW_S, ready_at_s=NOW_S - 10)
    resolution = Resolution("reg/ci:1", "sha256:v1", NOW_S - 100)
    world = replace(WORLD, resolutions={"reg/ci:1": resolution})
    assert next_due_s(world) == NOW_S + 200  # it is asked again
    world = replace(world, breakers={"x": Breaker("x", open_until_s=NOW_S + 150)})
    assert next_due_s(world) == NOW_S + 150
    world = replace(world, vms=(replace(ready, created_at_s=NOW_S),))
    assert next_due_s(world) == NOW_S + 90  # it will have idled for too long
    world = replace(world, vms=(ready,))
    assert next_due_s(world) == NOW_S + 20  # it will be too old
    world = replace(world, leases=(Lease("l", "ci", "v", "job", 60, NOW_S, NOW_S + 5),))
    assert next_due_s(world) == NOW_S + 5
    assert next_due_s(WORLD) is None
