"""The simulated hypervisor: drawn durations and failures, reproducible by seed."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import aiohttp
import pytest

from agent.domain.model import Observed
from agent.hypervisors.contract import (
    Capabilities,
    GuestError,
    HypervisorError,
    SlotsTakenError,
    TemplatesUnsupportedError,
    VmExit,
)
from agent.hypervisors.simulated import (
    Behaviour,
    Clock,
    SimulatedHost,
    SimulatedHypervisor,
    constant,
    lognormal,
    uniform,
)
from tests.hypervisors.rigs import GUEST_PORT, local_image, spec
from tests.support.processes import open_fds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAME = spec().name
IMAGE = local_image(Path("/images/disk.img"))


class Setup:
    """A simulated host with its driver, and the exits that the driver reported."""

    def __init__(self, behaviour: Behaviour | None = None, *, serve: bool = False) -> None:
        self.host = SimulatedHost(behaviour=behaviour or Behaviour(), rng=Random(1), serve=serve)
        self.driver = SimulatedHypervisor(self.host)
        self.exits: asyncio.Queue[VmExit] = asyncio.Queue()
        self.driver.on_exit(self.exits.put_nowait)

    async def start(self) -> None:
        await self.driver.clone(spec(), IMAGE)
        await self.driver.start(spec())

    async def listed(self) -> list[tuple[str, bool]]:
        return [(vm.name, vm.running) for vm in await self.driver.inventory()]


@pytest.fixture(autouse=True)
async def _check_open_files() -> AsyncIterator[None]:
    before = open_fds()
    yield
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    assert open_fds() == before


async def test_failed_clone_leaves_no_files() -> None:
    setup = Setup(Behaviour(clone_fails=1))
    with pytest.raises(HypervisorError, match="cannot be cloned"):
        await setup.driver.clone(spec(), IMAGE)
    assert await setup.listed() == []


async def test_broken_clone_leaves_an_incomplete_vm() -> None:
    setup = Setup(Behaviour(clone_breaks=1))
    with pytest.raises(HypervisorError, match="cloned incompletely"):
        await setup.driver.clone(spec(), IMAGE)
    assert await setup.listed() == [(NAME, False)]


async def test_start_fails_with_its_probability() -> None:
    setup = Setup(Behaviour(start_fails=1))
    with pytest.raises(HypervisorError, match="cannot be started"):
        await setup.start()
    assert await setup.listed() == [(NAME, False)]


async def test_guest_never_boots_with_its_probability() -> None:
    setup = Setup(Behaviour(never_boots=1))
    await setup.start()
    with pytest.raises(GuestError):
        await setup.driver.ping(NAME, timeout_s=0.2)
    assert await setup.listed() == [(NAME, True)]


async def test_vm_dies_after_its_drawn_time() -> None:
    setup = Setup(Behaviour(dies=1, dies_after_s=constant(0.05)))
    await setup.start()
    assert (await asyncio.wait_for(setup.exits.get(), 5)).code == 1
    assert await setup.listed() == [(NAME, False)]


async def test_guest_hangs_after_its_drawn_time() -> None:
    setup = Setup(Behaviour(boot_s=constant(0), hangs=1, hangs_after_s=constant(0.1)))
    await setup.start()
    await setup.driver.ping(NAME, timeout_s=5)
    await asyncio.gather(*setup.host.vms[NAME].process.scheduled, return_exceptions=True)  # type: ignore[union-attr]
    with pytest.raises(GuestError):
        await setup.driver.ping(NAME, timeout_s=0.05)
    assert setup.exits.empty()


async def test_stop_and_delete_fail_with_their_probability() -> None:
    setup = Setup(Behaviour(stop_fails=1, delete_fails=1))
    await setup.start()
    with pytest.raises(HypervisorError, match="cannot be stopped"):
        await setup.driver.stop(NAME, grace_s=0)
    assert await setup.listed() == [(NAME, True)]
    setup.host.crash(NAME)
    with pytest.raises(HypervisorError, match="cannot be deleted"):
        await setup.driver.delete(NAME)
    assert await setup.listed() == [(NAME, False)]


@pytest.mark.parametrize(("behaviour", "code"), [(Behaviour(), 0), (Behaviour(ignores_shutdown=1), -9)])
async def test_stop_kills_a_guest_that_ignores_shutdown(behaviour: Behaviour, code: int) -> None:
    setup = Setup(behaviour)
    await setup.start()
    await setup.driver.ping(NAME, timeout_s=5)
    await setup.driver.stop(NAME, grace_s=0.2)
    assert setup.exits.get_nowait().code == code


async def test_guest_without_hook_cannot_become_a_template() -> None:
    setup = Setup(Behaviour(lacks_hook=1))
    await setup.start()
    with pytest.raises(TemplatesUnsupportedError):
        await setup.driver.save_template(NAME, "template")


async def test_save_template_and_resume_fail_with_their_probability() -> None:
    setup = Setup(Behaviour(save_fails=1))
    await setup.start()
    with pytest.raises(HypervisorError, match="no template"):
        await setup.driver.save_template(NAME, "template")
    setup.host.vms[NAME].behaviour = setup.host.behaviour = Behaviour(resume_fails=1)
    await setup.driver.save_template(NAME, "template")
    await setup.driver.clone(spec(2), IMAGE, template="template")
    await setup.driver.suspend(NAME)
    for resuming in (setup.driver.start(spec(2)), setup.driver.resume(spec())):
        with pytest.raises(HypervisorError, match="cannot resume"):
            await resuming
    assert await setup.listed() == [(NAME, False), (spec(2).name, False)]


async def test_start_from_a_template_resumes_without_a_boot() -> None:
    setup = Setup(Behaviour(boot_s=constant(0.2), resume_s=constant(0.05)))
    await setup.start()
    await setup.driver.save_template(NAME, "template")
    await setup.driver.clone(spec(2), IMAGE, template="template")
    setup.host.vms[spec(2).name].behaviour = Behaviour(never_boots=1, resume_s=constant(0.05))
    started_s = time.monotonic()
    await setup.driver.start(spec(2))
    assert time.monotonic() - started_s >= 0.05
    await setup.driver.ping(spec(2).name, timeout_s=0.01)


async def test_driver_has_the_capabilities_of_its_host() -> None:
    setup = Setup()
    setup.host.capabilities = Capabilities(execute=True, suspend=False, templates=False, counts_foreign_slots=True)
    assert setup.driver.capabilities.counts_foreign_slots
    await setup.start()
    with pytest.raises(HypervisorError, match="cannot be suspended"):
        await setup.driver.suspend(NAME)
    with pytest.raises(TemplatesUnsupportedError):
        await setup.driver.save_template(NAME, "template")
    assert await setup.listed() == [(NAME, True)]


async def test_behaviour_depends_on_the_image() -> None:
    setup = Setup()
    setup.host.behaviours = {IMAGE.digest: Behaviour(start_fails=1)}
    with pytest.raises(HypervisorError):
        await setup.start()
    other = local_image(Path("/images/other.img"))
    await setup.driver.clone(spec(2), other)
    await setup.driver.start(spec(2))


async def test_inventory_shows_vanished_and_foreign_vms() -> None:
    setup = Setup()
    await setup.start()
    setup.host.vanish(NAME)
    setup.host.foreign["foreign"] = True
    assert await setup.driver.inventory() == (Observed("foreign", ours=False, running=True),)
    assert setup.exits.get_nowait().name == NAME


async def test_damaged_vm_runs_on() -> None:
    setup = Setup()
    await setup.start()
    setup.host.damage(NAME)
    (listed,) = await setup.driver.inventory()
    assert (listed.running, listed.damaged) == (True, "its files are gone")


async def test_foreign_vms_count_against_the_slots() -> None:
    setup = Setup()
    setup.host.max_running, setup.host.foreign = 2, {"foreign": True, "stopped": False}
    await setup.start()
    await setup.driver.clone(spec(2), IMAGE)
    with pytest.raises(SlotsTakenError):
        await setup.driver.start(spec(2))
    setup.host.foreign.clear()
    await setup.driver.start(spec(2))


async def test_clock_can_run_faster_than_real_time() -> None:
    setup = Setup(Behaviour(clone_s=constant(30), start_s=constant(10), boot_s=constant(120)))
    setup.host.clock = Clock(sleep=lambda seconds: asyncio.sleep(seconds / 1000))
    started_s = time.monotonic()
    await setup.start()
    await setup.driver.ping(NAME, timeout_s=300)
    assert 0.16 <= time.monotonic() - started_s < 5


async def test_same_seed_draws_the_same_failures() -> None:
    async def draw() -> list[str]:
        setup = Setup(Behaviour(clone_s=constant(0), clone_fails=0.3, clone_breaks=0.3))
        outcomes = []
        for number in range(20):
            try:
                await setup.driver.clone(spec(number), IMAGE)
                outcomes.append("made")
            except HypervisorError as error:
                outcomes.append(error.message.removeprefix(spec(number).name))
        return outcomes

    first = await draw()
    assert first == await draw()
    assert len(set(first)) == 3


def test_durations_follow_their_distribution() -> None:
    rng = Random(1)
    assert constant(2.5)(rng) == 2.5
    assert all(1 <= uniform(1, 2)(rng) <= 2 for _ in range(100))
    boots = [lognormal(30, 0.5)(rng) for _ in range(2000)]
    assert statistics.median(boots) == pytest.approx(30, rel=0.1)
    assert max(boots) > 90


async def test_guest_serves_its_ports_until_it_hangs() -> None:
    setup = Setup(Behaviour(boot_s=constant(0.2)), serve=True)
    await setup.start()
    address = await setup.driver.address(NAME)
    url = f"http://{address.host}:{address.ports[GUEST_PORT]}/"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            assert (response.status, (await response.text()).strip()) == (200, IMAGE.digest)
        setup.host.hang(NAME)
        with pytest.raises(TimeoutError):
            await session.get(url, timeout=aiohttp.ClientTimeout(total=0.2))
        setup.host.crash(NAME)
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(url)


async def test_fifty_vms_run_concurrently() -> None:
    setup = Setup(Behaviour(clone_s=uniform(0, 0.05), start_s=uniform(0, 0.05), boot_s=uniform(0, 0.1)))
    specs = [spec(number) for number in range(50)]
    started_s = time.monotonic()
    await asyncio.gather(*(setup.driver.clone(vm, IMAGE) for vm in specs))
    await asyncio.gather(*(setup.driver.start(vm) for vm in specs))
    await asyncio.gather(*(setup.driver.ping(vm.name, timeout_s=5) for vm in specs))
    ports = {port for vm in specs for port in (await setup.driver.address(vm.name)).ports.values()}
    assert len(ports) == 100
    await asyncio.gather(*(setup.driver.stop(vm.name, grace_s=1) for vm in specs))
    await asyncio.gather(*(setup.driver.delete(vm.name) for vm in specs))
    assert await setup.listed() == []
    assert setup.exits.qsize() == 50
    assert time.monotonic() - started_s < 5
