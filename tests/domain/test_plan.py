"""The planner's rules, each by an example on a simulated host."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from agent.domain import rules
from agent.domain.actions import CreateVm, DestroyVm, EvictImage, MarkFailed, PullImage, RemoveStray, ResolveImage
from agent.domain.breaker import Breaker, registry_key
from agent.domain.events import EventKind
from agent.domain.facts import ResolveFailed
from agent.domain.health import TOOL_MARGIN_S
from agent.domain.model import Cause, HostLimits, Image, Mode, PoolSpec, Resolution, VmSize
from agent.domain.names import vm_name
from agent.domain.plan import next_due_s, plan
from agent.domain.rollout import Phase
from agent.domain.states import VmState
from tests.domain.simulation import Host, assigned, digest, serving_host

ULID = "01j00000000000000000000000"


def test_new_pool_is_resolved_pulled_tried_then_filled() -> None:
    host = Host(pools=(PoolSpec("ci", "reg/ci:latest", warm=2),), registry={"reg/ci:latest": digest("v1")})

    assert host.reconcile().actions == (ResolveImage("reg/ci:latest"),)
    host.finish("reg/ci:latest")
    assert host.reconcile().actions == (PullImage("reg/ci:latest", digest("v1")),)
    host.finish(digest("v1"))
    (canary,) = host.reconcile().actions
    assert isinstance(canary, CreateVm)
    host.finish(canary.vm)
    assert host.reconcile().actions == ()  # nothing more before the canary is ready
    host.pass_probes(canary.vm)
    (second,) = host.reconcile().actions
    assert isinstance(second, CreateVm)


def test_settled_host_plans_nothing() -> None:
    host = serving_host()
    assert host.reconcile().actions == ()
    assert host.reconcile().actions == ()


def test_dead_vm_is_replaced_when_its_slot_is_free() -> None:
    host = serving_host()
    victim = next(iter(host.vms))
    host.die(victim)
    assert host.reconcile().actions == (DestroyVm(victim, "exited", evidence=True),)
    host.finish(victim)
    (creation,) = host.reconcile().actions
    assert isinstance(creation, CreateVm)


def test_replacement_starts_during_teardown_with_a_free_slot() -> None:
    host = serving_host(slots=3)
    host.die(next(iter(host.vms)))
    assert {type(action) for action in host.reconcile().actions} == {DestroyVm, CreateVm}


def test_listing_finds_vm_that_exited_without_a_report() -> None:
    host = serving_host()
    victim = next(iter(host.vms))
    host.vanish(victim)
    assert host.reconcile().actions == ()
    host.observe()
    (lost,) = host.reconcile().actions
    assert isinstance(lost, MarkFailed)
    assert (lost.vm, lost.failure.cause) == (victim, Cause.LOST)


def test_vm_without_its_files_is_marked_failed() -> None:
    host = serving_host()
    victim = next(iter(host.vms))
    host.damaged.add(victim)
    host.observe()
    (found, *_) = host.reconcile().actions
    assert isinstance(found, MarkFailed)
    assert (found.vm, found.failure.cause) == (victim, Cause.DAMAGED)
    host.settle()
    assert victim not in host.vms
    assert len(host.in_state("ci", VmState.READY)) == 2


def test_holder_of_damaged_vm_is_notified_once() -> None:
    host = serving_host()
    host.request_lease("ci")
    host.reconcile()
    (lease,) = host.leases.values()
    host.damaged.add(lease.vm)
    for _ in range(3):
        host.observe()
        host.reconcile()
    assert host.events.count(EventKind.VM_UNHEALTHY_WHILE_LEASED) == 1
    assert host.vms[lease.vm].state is VmState.LEASED
    host.release(lease.id)
    host.settle()
    assert lease.vm not in host.vms


def test_stray_is_removed() -> None:
    host = serving_host()
    stray = vm_name("ci", ULID)
    host.files.add(stray)
    host.observe()
    assert host.reconcile().actions == (RemoveStray(stray),)


def test_vm_removed_during_the_listing_is_not_a_stray() -> None:
    host = serving_host()
    victim = next(iter(host.vms))
    host.observe()
    host.vms.pop(victim)
    assert not any(isinstance(action, RemoveStray) for action in host.reconcile().actions)


def test_clone_interrupted_by_a_restart_is_replaced() -> None:
    host = Host(pools=(PoolSpec("ci", "reg/ci:latest"),), registry={"reg/ci:latest": digest("v1")})
    host.images[digest("v1")] = Image(digest("v1"))
    host.reconcile()
    host.finish("reg/ci:latest")
    host.reconcile()
    (half_made,) = host.in_flight
    host.restart_agent()
    host.settle()
    assert half_made not in host.files
    assert len(host.in_state("ci", VmState.READY)) == 1


def test_restart_keeps_ready_and_leased_vms() -> None:
    host = serving_host()
    host.request_lease("ci")
    host.reconcile()
    before = dict(host.vms)
    host.restart_agent()
    host.observe()
    assert host.reconcile().actions == ()
    assert host.vms == before


def test_waiting_requests_are_granted_in_order() -> None:
    host = serving_host(warm=2)
    for _ in range(3):
        host.request_lease("ci")
    host.reconcile()
    assert [lease.id for lease in host.leases.values()] == _first_waiters(host, 2)
    assert len(host.requests) == 1


def _first_waiters(host: Host, count: int) -> list[str]:
    number = int(host.requests[0].id[1:])
    return [f"w{number - count + index}" for index in range(count)]


def test_released_vm_is_not_leased_again() -> None:
    host = serving_host()
    host.request_lease("ci")
    host.reconcile()
    (lease,) = host.leases.values()
    host.release(lease.id)
    host.settle()
    assert lease.vm not in host.vms
    assert len(host.in_state("ci", VmState.READY)) == 2


def test_expired_lease_ends_with_its_vm() -> None:
    host = serving_host()
    host.request_lease("ci")
    host.reconcile()
    (lease,) = host.leases.values()
    host.now_s = lease.expires_at_s
    host.reconcile()
    assert not host.leases
    assert host.vms[lease.vm].state is VmState.STOPPING


def test_lease_breaks_when_its_vm_fails() -> None:
    host = serving_host()
    host.request_lease("ci")
    host.reconcile()
    (lease,) = host.leases.values()
    host.die(lease.vm)
    assert not host.leases
    assert EventKind.LEASE_BROKEN in host.events


def test_new_version_passes_its_canary_before_the_old_one_ends() -> None:
    host = serving_host(warm=2, slots=2, min_ready=1)
    host.registry["reg/ci:latest"] = digest("v2")
    host.now_s += 301  # the tag is resolved again
    host.reconcile()
    host.finish("reg/ci:latest")
    host.reconcile()
    assert len(host.in_state("ci", VmState.READY, digest("v1"))) == 2  # the old one serves while the new is pulled
    host.finish(digest("v2"))
    host.reconcile()  # retires an old VM
    assert len(host.in_state("ci", VmState.READY, digest("v1"))) == 1
    host.settle()
    assert len(host.in_state("ci", VmState.READY, digest("v2"))) == 2
    assert host.rollouts["ci"].phase is Phase.SERVING
    assert host.rollouts["ci"].previous == digest("v1")


def test_bad_version_is_rolled_back_and_quarantined() -> None:
    host = serving_host(warm=2, slots=2, min_ready=1)
    host.registry["reg/ci:latest"] = digest("v2")
    host.bad.add(digest("v2"))
    host.now_s += 301
    host.settle()
    rollout = host.rollouts["ci"]
    assert (rollout.phase, rollout.serving) == (Phase.ROLLED_BACK, digest("v1"))
    assert rollout.quarantined == (digest("v2"),)
    assert len(host.in_state("ci", VmState.READY, digest("v1"))) == 2


def test_quarantined_version_is_not_tried_when_assigned_again() -> None:
    host = serving_host()
    host.bad.add(digest("v2"))
    for version in ("v2", "v1", "v2"):
        host.registry["reg/ci:latest"] = digest(version)
        host.now_s += 301
        host.settle()
    failures = host.events.count(EventKind.VM_FAILED)
    assert host.rollouts["ci"].phase is Phase.ROLLED_BACK
    assert failures == host.pools[0].canary_attempts


def test_version_failing_during_promotion_is_rolled_back() -> None:
    host = serving_host(warm=2, slots=3)
    host.registry["reg/ci:latest"] = digest("v2")
    host.now_s += 301
    for _ in range(60):
        host.reconcile()
        for resource in list(host.in_flight):
            host.finish(resource)
        for name in list(host.vms):
            host.pass_probes(name)
        for vm in host.in_state("ci", VmState.READY, digest("v2")):
            host.reconcile()
            host.die(vm.name)
        host.now_s += 301
        if host.rollouts["ci"].phase is Phase.ROLLED_BACK:
            break
    host.settle()
    assert host.rollouts["ci"].serving == digest("v1")
    assert len(host.in_state("ci", VmState.READY, digest("v1"))) == 2


def test_leased_vms_of_the_old_version_stay() -> None:
    host = serving_host(warm=1, slots=2)
    host.request_lease("ci")
    host.reconcile()
    (lease,) = host.leases.values()
    host.registry["reg/ci:latest"] = digest("v2")
    host.pools = (replace(host.pools[0], lease_ttl_s=10**9),)
    host.tables[type(lease)][lease.id] = replace(lease, expires_at_s=10**12)
    host.now_s += 301
    host.settle()
    assert host.vms[lease.vm].state is VmState.LEASED
    assert host.in_state("ci", VmState.READY)[0].image == digest("v2")


def test_unassigned_pool_is_emptied() -> None:
    host = serving_host()
    host.pools = ()
    host.settle()
    assert not host.vms
    assert not host.files


def test_lowered_warm_target_retires_the_surplus() -> None:
    host = serving_host(warm=2)
    assigned(host, warm=1)
    host.settle()
    assert len(host.vms) == 1


def test_higher_priority_is_filled_first() -> None:
    pools = (PoolSpec("low", "reg/a:1", warm=2), PoolSpec("high", "reg/b:1", warm=2, priority=5))
    host = Host(pools=pools, registry={"reg/a:1": digest("a"), "reg/b:1": digest("b")})
    host.settle()
    assert len(host.in_state("high", VmState.READY)) == 2
    assert not host.in_state("low", VmState.READY)
    assert "OverAssigned" in {condition.type for condition in host.reconcile().conditions if condition.status == "true"}


def test_pools_of_one_priority_alternate() -> None:
    pools = (PoolSpec("a", "reg/a:1", warm=2), PoolSpec("b", "reg/b:1", warm=2))
    host = Host(pools=pools, registry={"reg/a:1": digest("a"), "reg/b:1": digest("b")})
    host.settle()
    assert [len(host.in_state(pool, VmState.READY)) for pool in ("a", "b")] == [1, 1]


def test_pool_maximum_includes_leased_vms() -> None:
    host = serving_host(warm=1, slots=4, max=2)
    for _ in range(3):
        host.request_lease("ci")
    host.settle()
    assert len(host.leases) == 2
    assert len(host.requests) == 1
    assert len(host.vms) == 2


def test_pools_of_different_sizes_share_processors_and_memory() -> None:
    pools = (
        PoolSpec("large", "reg/a:1", warm=2, size=VmSize(4, 8192), priority=1),
        PoolSpec("small", "reg/b:1", warm=9, size=VmSize(1, 1024)),
    )
    host = Host(
        limits=HostLimits(20, 11, 20000), pools=pools, registry={"reg/a:1": digest("a"), "reg/b:1": digest("b")}
    )
    host.settle()
    assert [len(host.in_state(pool, VmState.READY)) for pool in ("large", "small")] == [2, 3]  # 11 processors, 19 GiB
    used = host.used()
    assert (used.cpus, used.memory_mib) == (11, 2 * 8192 + 3 * 1024)


@pytest.mark.parametrize("leased", [0, 1, 2])
def test_rollout_proceeds_within_slots_and_leases(leased: int) -> None:
    """With no slot free an idle VM frees its slot; leased VMs stay, and the old version serves until then."""
    host = serving_host(warm=2, slots=2)
    for _ in range(leased):
        host.request_lease("ci")
    host.reconcile()
    for lease in list(host.leases.values()):
        host.tables[type(lease)][lease.id] = replace(lease, expires_at_s=10**12)
    host.registry["reg/ci:latest"] = digest("v2")
    host.now_s += 301
    host.settle()
    assert len(host.in_state("ci", VmState.LEASED, digest("v1"))) == leased
    assert len(host.in_state("ci", VmState.READY, digest("v2"))) == 2 - leased
    assert host.rollouts["ci"].phase is (Phase.CANARY if leased == 2 else Phase.SERVING)
    for lease_id in list(host.leases):
        host.release(lease_id)
    host.settle()
    assert host.rollouts["ci"].phase is Phase.SERVING
    assert len(host.in_state("ci", VmState.READY, digest("v2"))) == 2


def test_rollout_uses_a_free_slot_before_it_retires_vms() -> None:
    host = serving_host(warm=2, slots=3)
    host.registry["reg/ci:latest"] = digest("v2")
    host.now_s += 301
    while not any(isinstance(action, CreateVm) for action in host.in_flight.values()):
        host.reconcile()
        for resource, action in list(host.in_flight.items()):
            if not isinstance(action, CreateVm):
                host.finish(resource)
    assert len(host.in_state("ci", VmState.READY, digest("v1"))) == 2


def test_foreign_vms_hold_slots() -> None:
    host = Host(pools=(PoolSpec("ci", "reg/a:1", warm=2),), registry={"reg/a:1": digest("a")})
    host.images[digest("a")] = Image(digest("a"))
    host.reconcile()
    host.finish("reg/a:1")
    world = replace(host.world(), foreign_slots=2)
    assert not any(isinstance(action, CreateVm) for action in plan(world).actions)


def test_draining_host_keeps_only_leased_vms() -> None:
    host = serving_host()
    host.request_lease("ci")
    host.reconcile()
    host.set_mode(Mode.DRAINING)
    host.reconcile()
    assert {vm.state for vm in host.vms.values()} == {VmState.LEASED, VmState.STOPPING}


@pytest.mark.parametrize("used_by", ["target", "previous", "vm", "nobody"])
def test_only_unused_images_are_evicted(used_by: str) -> None:
    host = serving_host()
    image = Image(digest("other"))
    host.images[image.digest] = image
    rollout = host.rollouts["ci"]
    if used_by == "previous":
        host.rollouts["ci"] = replace(rollout, previous=image.digest)
    elif used_by == "target":
        host.rollouts["ci"] = replace(rollout, target=image.digest)
    elif used_by == "vm":
        name, vm = next(iter(host.vms.items()))
        host.vms[name] = replace(vm, image=image.digest)
    assert not any(isinstance(action, EvictImage) for action in plan(host.world()).actions)
    full = plan(replace(host.world(), disk_full=True, excess_bytes=1, resolutions={})).actions
    assert any(isinstance(action, EvictImage) for action in full) == (used_by == "nobody")


@pytest.mark.parametrize(("excess_mib", "gone"), [(0, ""), (1, "a"), (10, "a"), (11, "ab"), (25, "abc"), (999, "abc")])
def test_evictions_free_no_more_than_needed(excess_mib: int, gone: str) -> None:
    host = serving_host()
    for used_at_s, name in ((3.0, "c"), (1.0, "a"), (2.0, "b")):
        image = Image(digest(name), allocated_bytes=10 << 20, last_used_at_s=used_at_s)
        host.images[image.digest] = image
    actions = plan(replace(host.world(), excess_bytes=excess_mib << 20, resolutions={})).actions
    assert [action.digest for action in actions if isinstance(action, EvictImage)] == [digest(name) for name in gone]


def test_nothing_is_created_or_pulled_on_a_full_disk() -> None:
    host = serving_host()
    host.die(next(iter(host.vms)))
    host.reconcile()
    host.finish(next(iter(host.in_flight)))
    actions = plan(replace(host.world(), disk_full=True)).actions
    assert not any(isinstance(action, CreateVm | PullImage) for action in actions)


def test_failing_image_is_retried_after_a_delay() -> None:
    host = serving_host(warm=1, slots=1)
    for _ in range(4):
        (vm,) = host.vms.values()
        host.die(vm.name)
        host.reconcile()
        host.finish(vm.name)
        host.reconcile()
        if not host.in_flight:
            break
        host.finish(next(iter(host.in_flight)))
        host.pass_probes(next(iter(host.vms)))
    assert not host.in_flight  # the third young VM to die opened the breaker
    host.now_s += 10
    assert any(isinstance(action, CreateVm) for action in host.reconcile().actions)


def test_memory_limits_vms() -> None:
    host = Host(
        limits=HostLimits(slots=10, cpus=100, memory_mib=9000),
        pools=(PoolSpec("ci", "reg/a:1", warm=5),),
        registry={"reg/a:1": digest("a")},
    )
    host.settle()
    assert len(host.vms) == 2


def test_host_full_of_leases_needs_no_operator() -> None:
    host = serving_host()
    for _ in range(2):
        host.request_lease("ci")
    host.reconcile()
    (ready,) = (found for found in host.reconcile().conditions if found.type == "Ready")
    assert (ready.reason, ready.problem) == ("FullOfLeases", False)


def test_vm_is_marked_failed_when_its_startup_probes_do_not_end() -> None:
    """One round of probes after the deadline, whatever stopped the task that runs them."""
    host = serving_host()
    host.die(next(iter(host.vms)))
    host.reconcile()
    (victim,) = host.in_flight
    host.finish(victim)
    (creation,) = host.reconcile().actions
    assert isinstance(creation, CreateVm)
    host.finish(creation.vm)
    pool, since_s = host.pools[0], host.now_s
    round_s = sum(probe.timeout_s + TOOL_MARGIN_S for probe in pool.probes)
    due_s = since_s + pool.startup_deadline_s + 2 * round_s

    host.now_s = due_s - 0.01
    assert not any(isinstance(action, MarkFailed) for action in host.reconcile().actions)
    assert next_due_s(host.world()) == due_s
    host.now_s = due_s
    assert plan(replace(host.world(), began_s=due_s)).decisions == (), "an agent that just began probes it first"
    (found, *_) = host.reconcile().actions
    assert isinstance(found, MarkFailed)
    assert (found.vm, found.failure.cause) == (creation.vm, Cause.STARTUP_DEADLINE)


def many_pools(count: int, *registries: str) -> Host:
    """Return a host with many pools, each with an image of its own."""
    pools = tuple(PoolSpec(f"ci{n}", f"{registries[n % len(registries)]}/ci{n}:v1") for n in range(count))
    return Host(pools=pools, registry={pool.image: digest(f"v{n}") for n, pool in enumerate(pools)})


def test_queries_and_pulls_are_bounded_together_and_per_registry() -> None:
    host = many_pools(100, "one", "two", "three")
    first = host.reconcile().actions
    assert len(first) == rules.QUERIES
    queries = Counter(action.resource.partition("/")[0] for action in first)
    assert max(queries.values()) <= rules.QUERIES_OF_REGISTRY
    assert host.reconcile().actions == (), "no place is free"
    for _ in range(100):
        for resource in list(host.in_flight):
            if isinstance(host.in_flight[resource], ResolveImage):
                host.finish(resource)
        host.reconcile()
    pulls = [effect for effect in host.in_flight.values() if isinstance(effect, PullImage)]
    assert len(pulls) == rules.PULLS
    assert len(host.tables[Resolution]) == 100


def test_hung_registry_leaves_places_for_another() -> None:
    host = many_pools(100, "hung", "fine")
    for _ in range(100):
        host.reconcile()
        for resource in list(host.in_flight):
            if not resource.startswith("hung/") and isinstance(host.in_flight[resource], ResolveImage):
                host.finish(resource)
    assert len(host.tables[Resolution]) == 50


def test_outage_of_a_registry_is_one_event_and_one_back_off() -> None:
    """While a registry does not answer, all its references wait together, and one query at a time tries it again."""
    host = many_pools(60, "down")
    host.reconcile()
    queried = 0
    for _ in range(200):
        for resource in list(host.in_flight):
            host.in_flight.pop(resource)
            host.record(ResolveFailed(resource, "no answer", outage=True))
            queried += 1
        before_s, host.now_s = host.now_s, host.now_s + 15
        host.reconcile()
        assert len(host.in_flight) <= 1, f"{len(host.in_flight)} queries {host.now_s - before_s} s after a failure"
    assert host.events.count(EventKind.IMAGE_RESOLVE_FAILED) == 1
    assert queried < rules.QUERIES_OF_REGISTRY + 40
    assert registry_key("down/ci0:v1") in host.tables[Breaker]

    for _ in range(100):
        for resource in list(host.in_flight):
            if isinstance(host.in_flight[resource], ResolveImage):
                host.finish(resource)
        host.now_s += 700
        host.reconcile()
    assert all(not known.error for known in host.tables[Resolution].values())
    assert registry_key("down/ci0:v1") not in host.tables[Breaker]


def test_failure_of_one_reference_does_not_delay_its_registry() -> None:
    host = many_pools(2, "reg")
    host.reconcile()
    host.in_flight.pop("reg/ci0:v1")
    host.record(ResolveFailed("reg/ci0:v1", "no answer", outage=True))
    host.finish("reg/ci1:v1")
    assert registry_key("reg/ci0:v1") not in host.tables[Breaker]
    host.in_flight["reg/ci1:v1"] = ResolveImage("reg/ci1:v1")
    host.in_flight.pop("reg/ci1:v1")
    host.record(ResolveFailed("reg/ci1:v1", "manifest unknown"))
    assert registry_key("reg/ci0:v1") not in host.tables[Breaker], "the registry answered"
    assert host.events.count(EventKind.IMAGE_RESOLVE_FAILED) == 2


def test_message_names_only_some_of_many_pools() -> None:
    host = many_pools(200, "reg")
    host.reconcile()
    ready = next(condition for condition in host.reconcile().conditions if condition.type == "Ready")
    assert ready.message.endswith("and 190 more")
