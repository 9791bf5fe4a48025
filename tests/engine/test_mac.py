"""A host with the limits of a Mac: two VMs of all owners, no suspend, no templates, and more pools than slots."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import pytest

from agent.domain.breaker import BreakerKey, Scope
from agent.domain.events import EventKind
from agent.domain.model import Cause, HostLimits, PoolSpec, VmSize
from agent.domain.states import VmState
from agent.engine import engine as engine_module
from agent.hypervisors.contract import Capabilities
from agent.hypervisors.simulated import Behaviour, SimulatedHost, uniform
from tests.domain.simulation import Host, digest
from tests.engine.test_convergence import POOLS, running, tiny_image, until

if TYPE_CHECKING:
    from pathlib import Path


SLOTS: Final = 2
STEPS: Final = 10_000
MAC: Final = Capabilities(execute=False, suspend=False, templates=False, counts_foreign_slots=True)


class Mac:
    """Four pools on two slots, in time of their own: the real planner and intents, and every effect at random."""

    def __init__(self, seed: int, *, can_suspend: bool) -> None:
        self.rng = random.Random(seed)
        pools = tuple(
            PoolSpec(
                name, f"reg/{name}:1", warm=warm, priority=priority, size=VmSize(1, 1000), standby=1, lease_ttl_s=600,
                canary_attempts=50,  # clones and VMs fail here whatever their version
            )
            for name, warm, priority in (("a", 1, 0), ("b", 1, 0), ("c", 2, 1), ("d", 0, 0))
        )  # fmt: skip
        self.host = Host(limits=HostLimits(SLOTS, 64, 64000), pools=pools, most_running=SLOTS, can_suspend=can_suspend)
        self.host.registry = {pool.image: digest(pool.name) for pool in pools}
        self.requested = 0

    def step(self) -> None:
        """Let one event happen, and run a reconcile pass."""
        host, rng = self.host, self.rng
        host.now_s += rng.choice((0.1, 1.0, 10.0, 30.0))
        match rng.randrange(12):
            case 0 if len(host.requests) < 6:
                host.request_lease(rng.choice("abcd"))
                self.requested += 1
            case 1 if host.leases:
                host.release(rng.choice(sorted(host.leases)))
            case 2 if host.running and rng.random() < 0.3:
                host.die(rng.choice(sorted(host.running)))
            case 3 if host.foreign:
                host.foreign -= 1
            case 4 if self.running < SLOTS and rng.random() < 0.2:
                host.foreign += 1
            case 5:
                host.observe()
            case _:
                self.advance()
        host.reconcile()

    def advance(self) -> None:
        """Let an effect end, and startup probes pass."""
        host, rng = self.host, self.rng
        if host.in_flight:
            host.finish(rng.choice(sorted(host.in_flight)), ok=rng.random() < 0.95)
        for name in list(host.vms):
            host.pass_probes(name)

    @property
    def running(self) -> int:
        return len(self.host.running) + self.host.foreign

    @property
    def served(self) -> int:
        return len(self.host.served)


@pytest.mark.parametrize(
    ("can_suspend", "steps"), [pytest.param(False, STEPS, marks=pytest.mark.slow), (True, STEPS // 4)]
)
def test_two_slot_host_serves_every_request_of_four_pools(can_suspend: bool, steps: int) -> None:
    mac = Mac(seed=1, can_suspend=can_suspend)
    for _ in range(steps):
        mac.step()
        assert mac.running <= SLOTS
        assert sum(vm.holds_slot for vm in mac.host.vms.values()) <= SLOTS
    mac.host.foreign = 0
    for _ in range(steps):
        if not mac.host.requests:
            break
        for lease in list(mac.host.leases):
            mac.host.release(lease)
        mac.host.now_s += 30
        mac.host.observe()
        mac.advance()
        mac.host.reconcile()
    assert not mac.host.requests
    assert mac.served == mac.requested > steps / 40


async def test_requests_of_more_pools_than_slots_are_all_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole engine on a simulated Mac that refuses a third VM, while a VM of another owner starts and ends."""
    monkeypatch.setattr(engine_module, "OBSERVE_PERIOD_S", 0.2)
    layout = await tiny_image(tmp_path)
    names = ("a", "b", "c", "d")
    text = "".join(POOLS.format(name=name, layout=layout, warm=1, standby=1) for name in names)
    (tmp_path / "assignment.toml").write_text(text)
    behaviour = Behaviour(clone_s=uniform(0, 0.005), boot_s=uniform(0, 0.01), shutdown_s=uniform(0, 0.005))
    simulated = SimulatedHost(behaviour=behaviour, rng=random.Random(1), capabilities=MAC, max_running=SLOTS)
    async with running(tmp_path, simulated, slots=SLOTS) as engine:

        async def job(number: int) -> None:
            pool = names[number % len(names)]
            lease = await engine.leases.acquire(pool, holder="job", ttl_s=60, wait_s=60, idempotency_key=None)
            assert simulated.running <= SLOTS
            await engine.leases.release(lease.id)

        async def run_foreign_vm() -> None:
            while True:
                if simulated.running < SLOTS:
                    simulated.foreign["foreign"] = True
                await asyncio.sleep(0.3)
                simulated.foreign.clear()
                await asyncio.sleep(0.3)

        other = asyncio.create_task(run_foreign_vm())
        await asyncio.gather(*(job(number) for number in range(40)))
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        assert all(vm.snapshot is None for vm in simulated.vms.values()), "a host without suspend suspends nothing"


async def test_start_without_a_slot_does_not_count_against_the_image(tmp_path: Path) -> None:
    layout = await tiny_image(tmp_path)
    (tmp_path / "assignment.toml").write_text(POOLS.format(name="a", layout=layout, warm=1, standby=0))
    simulated = SimulatedHost(capabilities=MAC, max_running=1)
    async with running(tmp_path, simulated, slots=1) as engine:
        await until(lambda: any(vm.state is VmState.READY for vm in engine.host.world().vms))
        (ready,) = (vm.name for vm in engine.host.world().vms)
        image = engine.host.world().vms[0].image
        simulated.foreign["foreign"] = False
        simulated.end_process(simulated.vms[ready], 1)
        simulated.foreign["foreign"] = True  # it started first
        await until(lambda: engine.host.world().foreign_slots == 1)  # observed immediately, before the next period
        failed = [event for _, event in await engine.history.events(after=0) if event.kind is EventKind.VM_FAILED]
        first, *others = (event.cause for event in failed)
        assert (first, set(others)) == (Cause.EXITED, {Cause.SLOTS_TAKEN})  # another try may precede the observation
        world = engine.host.world()
        key = BreakerKey(Scope.IMAGE, image)
        assert key not in world.breakers or world.breakers[key].failures == 1
        assert world.rollouts["a"].serving == image
