"""The invariants of the planner, held over random histories of a host."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.domain.actions import CreateVm, DestroyVm, GrantLease, PullImage, SaveTemplate, SuspendVm
from agent.domain.model import HostLimits, Mode, PoolSpec, VmSize
from agent.domain.rollout import Phase
from agent.domain.states import VmState
from tests.domain.simulation import Host, digest

if TYPE_CHECKING:
    from agent.domain.plan import Plan

POOLS = ("a", "b", "c")
picks = st.integers(min_value=0, max_value=999)


class HostMachine(RuleBasedStateMachine):
    """A host with up to three pools, with all events in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.most: dict[str, int] = {}
        self.host = Host(limits=HostLimits(slots=3, cpus=8, memory_mib=9000), can_suspend=True, can_use_templates=True)
        for name in POOLS:
            self.host.registry[f"reg/{name}:latest"] = digest(f"{name}-1")

    @rule(
        pool=st.sampled_from(POOLS),
        warm=st.integers(0, 3),
        min_ready=st.integers(0, 1),
        priority=st.integers(0, 1),
        memory_mib=st.sampled_from([1000, 4000]),
        standby=st.integers(0, 2),
        max_age_s=st.sampled_from([None, 500.0]),
        max_idle_s=st.sampled_from([None, 350.0]),
        most=st.sampled_from([0, 0, 1, 3]),
    )
    def assign(
        self,
        pool: str,
        warm: int,
        min_ready: int,
        priority: int,
        memory_mib: int,
        standby: int,
        max_age_s: float | None,
        max_idle_s: float | None,
        most: int,
    ) -> None:
        most = max(most, warm) if most else 0
        spec = PoolSpec(
            pool, f"reg/{pool}:latest", warm=warm, min_ready=min(warm, min_ready), priority=priority,
            size=VmSize(1, memory_mib), standby=standby, max_age_s=max_age_s, max_idle_s=max_idle_s, max=most,
        )  # fmt: skip
        self.host.pools = (*(other for other in self.host.pools if other.name != pool), spec)

    @rule(pool=st.sampled_from(POOLS))
    def unassign(self, pool: str) -> None:
        self.host.pools = tuple(other for other in self.host.pools if other.name != pool)

    @rule(pool=st.sampled_from(POOLS), version=st.integers(1, 4), bad=st.booleans())
    def publish(self, pool: str, version: int, bad: bool) -> None:
        image = digest(f"{pool}-{version}")
        self.host.registry[f"reg/{pool}:latest"] = image
        if bad and version > 1:
            self.host.bad.add(image)

    @rule(seconds_s=st.sampled_from([0.1, 5.0, 60.0, 301.0, 4000.0]))
    def wait(self, seconds_s: float) -> None:
        self.host.now_s += seconds_s

    @rule()
    def reconcile(self) -> None:
        leased = {lease.vm for lease in self.host.leases.values() if lease.expires_at_s > self.host.now_s}
        ready = self._ready_of_serving()
        plan = self.host.reconcile()
        self._leaves_leases_alone(plan, leased)
        self._keeps_its_mode(plan)
        self._keeps_the_disk(plan)
        for condition in plan.conditions:
            assert condition.reason.isalpha()
            assert condition.message or not condition.problem, "a problem has a message with its remedy"
        self._keeps_min_ready(plan, ready)

    @precondition(lambda self: self.host.in_flight)
    @rule(pick=picks, ok=st.booleans())
    def finish_effect(self, pick: int, ok: bool) -> None:
        resources = sorted(self.host.in_flight)
        self.host.finish(resources[pick % len(resources)], ok=ok)

    @precondition(lambda self: self.host.vms)
    @rule(pick=picks)
    def pass_probes(self, pick: int) -> None:
        names = sorted(self.host.vms)
        self.host.pass_probes(names[pick % len(names)])

    @precondition(lambda self: self.host.running)
    @rule(pick=picks, is_reported=st.booleans())
    def die(self, pick: int, is_reported: bool) -> None:
        names = sorted(self.host.running)
        name = names[pick % len(names)]
        (self.host.die if is_reported else self.host.vanish)(name)

    @precondition(lambda self: self.host.files)
    @rule(pick=picks)
    def damage(self, pick: int) -> None:
        names = sorted(self.host.files)
        self.host.damaged.add(names[pick % len(names)])

    @rule(pool=st.sampled_from(POOLS))
    def request_lease(self, pool: str) -> None:
        if any(spec.name == pool for spec in self.host.pools):
            self.host.request_lease(pool)

    @precondition(lambda self: self.host.leases)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        leases = sorted(self.host.leases)
        self.host.release(leases[pick % len(leases)])

    @rule(mode=st.sampled_from(Mode))
    def set_mode(self, mode: Mode) -> None:
        self.host.set_mode(mode)

    @rule(full=st.booleans())
    def fill_disk(self, full: bool) -> None:
        self.host.disk_full = full

    @precondition(lambda self: self.host.rollouts)
    @rule(pick=picks, undo=st.booleans())
    def command_rollout(self, pick: int, undo: bool) -> None:
        pools = sorted(self.host.rollouts)
        pool = pools[pick % len(pools)]
        self.host.undo(pool) if undo else self.host.retry(pool)

    @rule()
    def observe(self) -> None:
        self.host.observe()

    @rule()
    def restart_agent(self) -> None:
        self.host.restart_agent()

    @invariant()
    def nothing_is_overcommitted(self) -> None:
        used, limits = self.host.used(), self.host.limits
        assert used.slots <= limits.slots
        assert used.memory_mib <= limits.memory_mib
        assert used.cpus <= limits.cpus

    @invariant()
    def no_pool_grows_beyond_its_maximum(self) -> None:
        """A maximum that was lowered since is kept to by what comes after."""
        for pool in self.host.pools:
            made = [vm for vm in self.host.vms.values() if vm.pool == pool.name and vm.holds_slot]
            self.most[pool.name] = max(pool.max, len(made) if pool.max < self.most.get(pool.name, 0) else 0)
            assert not pool.max or len(made) <= self.most[pool.name]

    @invariant()
    def leases_and_vms_agree(self) -> None:
        leased = {vm.name: vm.lease_id for vm in self.host.vms.values() if vm.state is VmState.LEASED}
        assert leased == {lease.vm: lease.id for lease in self.host.leases.values()}

    def teardown(self) -> None:
        """With a healthy host and registry the plan reaches the assignment and then plans nothing."""
        host = self.host
        host.requests = [waiter for waiter in host.requests if any(pool.name == waiter.pool for pool in host.pools)]
        for lease in list(host.leases):
            host.release(lease)
        host.disk_full = False
        host.set_mode(Mode.DRAINING)
        host.settle()
        assert not host.vms
        host.set_mode(Mode.OPEN)
        host.pools = tuple(replace(pool, max_age_s=None, max_idle_s=None) for pool in host.pools)
        host.settle()
        assert set(host.vms) == host.files == host.running | host.suspended
        assert {vm.state for vm in host.vms.values()} <= {VmState.READY, VmState.STANDBY}
        wanted = [(max(1, pool.warm), pool.size.memory_mib) for pool in host.pools]  # warm 0: still a canary
        slots, memory_mib = sum(count for count, _ in wanted), sum(count * mib for count, mib in wanted)
        if slots > host.limits.slots or memory_mib > host.limits.memory_mib:
            return
        for pool in host.pools:
            rollout = host.rollouts[pool.name]
            if rollout.phase is Phase.SERVING:
                assert len(host.in_state(pool.name, VmState.READY, rollout.target)) == pool.warm
            else:
                assert rollout.phase is Phase.ROLLED_BACK
                assert rollout.target in host.bad or rollout.failures >= pool.canary_attempts or rollout.reason
                serving = len(host.in_state(pool.name, VmState.READY, rollout.serving))
                assert serving == (pool.warm if rollout.serving else 0)

    def _ready_of_serving(self) -> dict[str, int]:
        return {
            pool: len(self.host.in_state(pool, VmState.READY, rollout.serving))
            for pool, rollout in self.host.rollouts.items()
            if rollout.serving
        }

    def _leaves_leases_alone(self, plan: Plan, leased: set[str]) -> None:
        destroyed = {action.vm for action in plan.actions if isinstance(action, DestroyVm)}
        assert not destroyed & leased & {lease.vm for lease in self.host.leases.values()}

    def _keeps_its_mode(self, plan: Plan) -> None:
        """A host that is not open grants no lease, and a draining one creates no VM."""
        if not self.host.mode.takes_leases:
            assert not any(isinstance(action, GrantLease) for action in plan.actions)
        if self.host.mode.mode is Mode.DRAINING:
            assert not any(isinstance(action, CreateVm) for action in plan.actions)

    def _keeps_the_disk(self, plan: Plan) -> None:
        """Effects that need disk space do not start on a full disk."""
        if self.host.disk_full:
            assert not any(
                isinstance(action, CreateVm | PullImage | SuspendVm | SaveTemplate) for action in plan.actions
            )

    def _keeps_min_ready(self, plan: Plan, before: dict[str, int]) -> None:
        """A rollout never takes the ready VMs below `min_ready`, where they were at or above it."""
        retired = {action.vm for action in plan.actions if isinstance(action, DestroyVm)}
        for pool in self.host.pools:
            phase = self.host.rollouts[pool.name].phase
            if phase not in (Phase.CANARY, Phase.PROMOTING):
                continue
            stay = [vm for vm in self.host.vms.values() if vm.pool == pool.name and vm.state is VmState.READY]
            gone = [
                vm for vm in self.host.vms.values() if vm.pool == pool.name and vm.name in retired and not vm.failure
            ]
            if before.get(pool.name, 0) >= pool.min_ready and any(vm.ready_at_s for vm in gone):
                granted = sum(lease.pool == pool.name for lease in self.host.leases.values())
                assert len(stay) >= pool.min_ready or granted


TestHost = HostMachine.TestCase
TestHost.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
