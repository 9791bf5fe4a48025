"""The whole engine on the simulated hypervisor, with VMs that fail in every simulated way, until it settles."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from agent import app
from agent.config import AssignmentConfig, Config, HostConfig, ImagesConfig
from agent.domain.errors import RefusedError
from agent.domain.events import EventKind
from agent.domain.model import Cause
from agent.domain.states import VmState
from agent.engine import engine as engine_module
from agent.engine.leases import NoVmFreeError
from agent.hypervisors.simulated import Behaviour, SimulatedHost, SimulatedHypervisor
from agent.hypervisors.simulated.behaviour import constant, uniform
from agent.images.service import open_images
from agent.images.vmconfig import Hardware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent.domain.model import Lease
    from agent.engine.engine import Parts

POOLS = """
[pools.{name}]
image = "oci-layout:{layout}:v1"
warm = {warm}
cpus = 1
memory_mib = 128
startup_period_s = 0.02
startup_deadline_s = 1.0
stop_grace_s = 0.05
standby = {standby}
canary_attempts = 10

[[pools.{name}.probes]]
kind = "agent"
period_s = 0.05
timeout_s = 0.1
failures = 2
"""

FAULTY = Behaviour(
    clone_s=uniform(0, 0.02),
    boot_s=uniform(0, 0.1),
    clone_fails=0.1,
    clone_breaks=0.1,
    start_fails=0.1,
    resume_fails=0.1,
    save_fails=0.1,
    lacks_hook=0.1,
    never_boots=0.1,
    ignores_shutdown=0.2,
    stop_fails=0.1,
    delete_fails=0.1,
    dies=0.2,
    dies_after_s=uniform(0, 1),
    hangs=0.2,
    hangs_after_s=uniform(0, 1),
)
HEALTHY = Behaviour(boot_s=constant(0.02))


@asynccontextmanager
async def running(path: Path, simulated: SimulatedHost, *, slots: int) -> AsyncIterator[Parts]:
    """Run an engine on a simulated host; its journal and images are real. Breakers never delay anything."""
    config = Config(
        data_dir=path / "data",
        host=HostConfig(slots=slots, memory_mib=65536, cpus=1000, disk_reserve_mib=0),
        assignment=AssignmentConfig(file=path / "assignment.toml"),
        images=ImagesConfig(),
    )
    async with AsyncExitStack() as stack:
        built = await app.build(config, stack, hypervisor=SimulatedHypervisor(simulated), jitter=lambda: 0.0)
        await built.engine.load()
        await built.engine.start()
        loop = asyncio.create_task(built.engine.run())
        try:
            yield built.engine.parts
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            await built.engine.stop()


async def until(holds: Callable[[], bool], *, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - some of what is waited for has no event
            await asyncio.sleep(0.01)


async def tiny_image(path: Path) -> Path:
    """Push a disk of 1 MiB to an OCI layout."""
    disk = path / "disk.img"
    disk.write_bytes(random.Random(1).randbytes(1 << 20))
    async with open_images(Config(data_dir=path / "scratch")) as images:
        await images.push(disk, f"oci-layout:{path}/layout:v1", hardware=Hardware("linux", "amd64", 1, 128))
    return path / "layout"


async def keep_leasing(engine: Parts, pool: str, served: list[Lease]) -> None:
    """Lease and release repeatedly, as jobs do."""
    while True:
        try:
            lease = await engine.leases.acquire(pool, holder="job", ttl_s=60, wait_s=1, idempotency_key=None)
        except NoVmFreeError:
            continue
        served.append(lease)
        await asyncio.sleep(0.02)
        with contextlib.suppress(RefusedError):  # its VM failed before
            await engine.leases.release(lease.id)


@pytest.mark.parametrize("seed", range(3))
async def test_engine_settles_after_any_failures(tmp_path: Path, seed: int) -> None:
    layout = await tiny_image(tmp_path)
    text = POOLS.format(name="a", layout=layout, warm=2, standby=1)
    text += POOLS.format(name="b", layout=layout, warm=1, standby=0)
    (tmp_path / "assignment.toml").write_text(text)
    simulated = SimulatedHost(behaviour=FAULTY, rng=random.Random(seed))
    async with running(tmp_path, simulated, slots=5) as engine:
        served: list[Lease] = []
        jobs = asyncio.create_task(keep_leasing(engine, "a", served))
        await until(lambda: len(served) >= 10)
        jobs.cancel()
        await asyncio.gather(jobs, return_exceptions=True)
        assert len({lease.vm for lease in served}) == len(served)  # no VM serves two leases

        simulated.behaviour = HEALTHY
        for vm in simulated.vms.values():
            vm.behaviour = HEALTHY

        def settled() -> bool:
            world = engine.host.world()
            ready = [vm.pool for vm in world.vms if vm.state is VmState.READY]
            return (sorted(ready), len(world.busy)) == (["a", "a", "b"], 0) and set(simulated.vms) == {
                vm.name for vm in world.vms
            }

        for lease in engine.host.world().leases:
            with contextlib.suppress(RefusedError):  # its VM failed before
                await engine.leases.release(lease.id)
        await until(settled)


async def test_fifty_vms_are_kept_warm(tmp_path: Path) -> None:
    layout = await tiny_image(tmp_path)
    (tmp_path / "assignment.toml").write_text(POOLS.format(name="many", layout=layout, warm=50, standby=0))
    async with running(tmp_path, SimulatedHost(behaviour=HEALTHY), slots=50) as engine:
        await until(lambda: sum(vm.state is VmState.READY for vm in engine.host.world().vms) == 50)


async def test_no_vm_is_leased_before_the_first_pass(tmp_path: Path) -> None:
    layout = await tiny_image(tmp_path)
    (tmp_path / "assignment.toml").write_text(POOLS.format(name="a", layout=layout, warm=1, standby=0))
    simulated = SimulatedHost(behaviour=HEALTHY)
    async with running(tmp_path, simulated, slots=1) as engine:
        await until(lambda: any(vm.state is VmState.READY for vm in engine.host.world().vms))
    (dead,) = simulated.vms
    simulated.crash(dead)

    async with running(tmp_path, simulated, slots=1) as engine:
        lease = await engine.leases.acquire("a", holder="job", ttl_s=60, wait_s=30, idempotency_key=None)
        assert lease.vm != dead


async def test_damaged_vm_is_replaced_or_its_holder_notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "OBSERVE_PERIOD_S", 0.05)
    layout = await tiny_image(tmp_path)
    (tmp_path / "assignment.toml").write_text(POOLS.format(name="a", layout=layout, warm=1, standby=0))
    simulated = SimulatedHost(behaviour=HEALTHY)
    async with running(tmp_path, simulated, slots=2) as engine:
        lease = await engine.leases.acquire("a", holder="job", ttl_s=60, wait_s=30, idempotency_key=None)
        await until(lambda: any(vm.state is VmState.READY for vm in engine.host.world().vms))
        (idle,) = (vm.name for vm in engine.host.world().vms if vm.state is VmState.READY)
        simulated.damage(idle)
        simulated.damage(lease.vm)

        await until(lambda: idle not in simulated.vms)
        await until(lambda: any(vm.state is VmState.READY for vm in engine.host.world().vms))
        events = {(event.kind, event.vm): event.cause for _, event in await engine.history.events(after=0)}
        assert events[EventKind.VM_FAILED, idle] == Cause.DAMAGED
        assert events[EventKind.VM_UNHEALTHY_WHILE_LEASED, lease.vm] == Cause.DAMAGED
        (leased,) = (vm for vm in engine.host.world().vms if vm.name == lease.vm)
        assert leased.reported_failure is not None
        assert leased.reported_failure.cause is Cause.DAMAGED
        assert (await engine.leases.get(lease.id)).vm == lease.vm, "the holder decides whether to continue"


async def test_vm_boots_when_its_template_fails(tmp_path: Path) -> None:
    layout = await tiny_image(tmp_path)
    (tmp_path / "assignment.toml").write_text(POOLS.format(name="a", layout=layout, warm=2, standby=0))
    simulated = SimulatedHost(behaviour=HEALTHY)
    async with running(tmp_path, simulated, slots=2) as engine:

        def warm_with_template() -> bool:
            ready = [vm for vm in engine.host.world().vms if vm.state is VmState.READY]
            return len(ready) == 2 and bool(engine.host.world().templates) and not engine.host.world().busy

        await until(warm_with_template)
        before = {vm.name for vm in engine.host.world().vms}
        simulated.behaviour = Behaviour(boot_s=constant(0.02), resume_fails=1)
        simulated.crash(min(before))
        await until(lambda: min(before) not in simulated.vms and warm_with_template())
        (new,) = {vm.name for vm in engine.host.world().vms} - before
        events = [(event.kind, event.detail) for event in await engine.history.of_vm(new)]
        kinds = [kind for kind, _ in events]
        assert kinds == ["vm-creating", "vm-resume-failed", "vm-starting", "vm-ready"]
        assert ("vm-starting", "by a boot") in events
        assert any(engine.host.world().breakers), "the template is not used until its breaker closes"
