"""The conformance suite: tests every driver against the contract in `agent.hypervisors.contract`."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from agent.domain.model import Observed
from agent.hypervisors.contract import (
    ForeignVmError,
    GuestError,
    HypervisorError,
    VmExistsError,
    VmExit,
    VmNotFoundError,
    VmNotRunningError,
)
from tests.hypervisors.rigs import GUEST_PORT, REAL_MAC, spec
from tests.support.processes import open_fds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.hypervisors.contract import Hypervisor
    from tests.hypervisors.rigs import Rig

BOOT_S = 240.0 if REAL_MAC else 60.0
EVENT_S = 2.0
"""How long an exit may take to be reported on a busy machine. These tests do not poll, so it comes from an event."""


class Exits:
    """The exits that a driver reports."""

    def __init__(self, driver: Hypervisor) -> None:
        self._queue: asyncio.Queue[VmExit] = asyncio.Queue()
        driver.on_exit(self._queue.put_nowait)

    async def next(self) -> VmExit:
        return await asyncio.wait_for(self._queue.get(), 20)

    def is_empty(self) -> bool:
        return self._queue.empty()


async def start_vm(driver: Hypervisor, rig: Rig, *, booted: bool = False) -> int:
    """Clone and start the test's VM, and return its pid."""
    await driver.clone(spec(), rig.image)
    await driver.start(spec())
    if booted:
        await driver.ping(spec().name, timeout_s=BOOT_S)
    return await pid_of(driver, spec().name)


async def pid_of(driver: Hypervisor, name: str) -> int:
    (vm,) = [vm for vm in await driver.inventory() if vm.name == name]
    assert vm.running
    assert vm.pid is not None
    return vm.pid


def skip_unless_suspend_is_supported(driver: Hypervisor) -> None:
    if not driver.capabilities.suspend:
        pytest.skip(f"{driver.name} cannot suspend VMs")


async def test_inventory_is_empty_without_vms(driver: Hypervisor) -> None:
    assert await driver.inventory() == ()


async def test_complete_vm_life_leaves_no_process_and_no_file(driver: Hypervisor, rig: Rig) -> None:
    exits, name = Exits(driver), spec().name
    await driver.clone(spec(), rig.image)
    (listed,) = await driver.inventory()
    assert listed == Observed(name, ours=True, running=False)
    assert listed.image == rig.image.digest
    await driver.start(spec())
    await driver.ping(name, timeout_s=BOOT_S)

    assert (await driver.execute(name, ("false",), timeout_s=20)).exit_code == 1
    results = await asyncio.gather(
        *(driver.execute(name, ("echo", "number", str(number)), timeout_s=30) for number in range(5)),
        *(driver.ping(name, timeout_s=30) for _ in range(5)),
    )
    assert [result.stdout for result in results if result] == [f"number {number}\n".encode() for number in range(5)]
    address = await driver.address(name)
    assert set(address.ports) == set(spec().ports)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{address.host}:{address.ports[GUEST_PORT]}/") as response,
    ):
        assert response.status == 200
    assert exits.is_empty()

    await driver.stop(name, grace_s=30)
    ended = await exits.next()
    assert (ended.name, ended.code) == (name, 0 if rig.reports_exit_codes else None), "the guest shut itself down"
    assert await driver.inventory() == (Observed(name, ours=True, running=False),)
    await driver.delete(name)
    assert await driver.inventory() == ()
    assert rig.traces(name) == []


async def test_clone_refuses_a_taken_name(driver: Hypervisor, rig: Rig) -> None:
    pid = await start_vm(driver, rig)
    with pytest.raises(VmExistsError, match=spec().name):
        await driver.clone(spec(), rig.image)
    assert await pid_of(driver, spec().name) == pid


async def test_only_one_of_two_concurrent_clones_of_a_name_succeeds(driver: Hypervisor, rig: Rig) -> None:
    done = await asyncio.gather(*(driver.clone(spec(), rig.image) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in done if result] == [VmExistsError]
    await driver.start(spec())


async def test_incomplete_vm_is_listed_and_can_only_be_deleted(driver: Hypervisor, rig: Rig) -> None:
    name = spec().name
    rig.make_incomplete(name)
    assert await driver.inventory() == (Observed(name, ours=True, running=False),)
    with pytest.raises(VmExistsError):
        await driver.clone(spec(), rig.image)
    with pytest.raises(HypervisorError):
        await driver.start(spec())
    await driver.stop(name, grace_s=1)
    await driver.delete(name)
    assert await driver.inventory() == ()
    assert rig.traces(name) == []
    await driver.clone(spec(), rig.image)


async def test_stop_and_delete_succeed_when_repeated(driver: Hypervisor, rig: Rig) -> None:
    name = spec().name
    await driver.stop(name, grace_s=5)
    await driver.delete(name)
    await start_vm(driver, rig)
    for _ in range(2):
        await driver.stop(name, grace_s=0)
    for _ in range(2):
        await driver.delete(name)
    assert rig.traces(name) == []


async def test_start_succeeds_when_the_vm_runs(driver: Hypervisor, rig: Rig) -> None:
    pid = await start_vm(driver, rig)
    await driver.start(spec())
    assert await pid_of(driver, spec().name) == pid


async def test_delete_refuses_a_running_vm(driver: Hypervisor, rig: Rig) -> None:
    pid = await start_vm(driver, rig)
    with pytest.raises(HypervisorError, match="still runs"):
        await driver.delete(spec().name)
    assert await pid_of(driver, spec().name) == pid


async def test_errors_distinguish_unknown_and_stopped_vms(driver: Hypervisor, rig: Rig) -> None:
    name = spec().name
    with pytest.raises(VmNotFoundError):
        await driver.start(spec())
    for expected in (VmNotFoundError, VmNotRunningError):
        with pytest.raises(expected):
            await driver.ping(name, timeout_s=1)
        with pytest.raises(expected):
            await driver.execute(name, ("true",), timeout_s=1)
        with pytest.raises(expected):
            await driver.address(name)
        with pytest.raises(expected):
            await driver.suspend(name)
        if expected is VmNotFoundError:
            await driver.clone(spec(), rig.image)


async def test_concurrent_vms_are_independent(driver: Hypervisor, rig: Rig) -> None:
    specs = [spec(number) for number in range(1, rig.slots + 1)]
    await asyncio.gather(*(driver.clone(vm, rig.image) for vm in specs))
    await asyncio.gather(*(driver.start(vm) for vm in specs))
    addresses = [await driver.address(vm.name) for vm in specs]
    endpoints = [(address.host, port) for address in addresses for port in address.ports.values()]
    assert len(set(endpoints)) == len(endpoints) == 2 * rig.slots
    await driver.stop(specs[0].name, grace_s=0)
    await driver.delete(specs[0].name)
    listed = await driver.inventory()
    assert [(vm.name, vm.running) for vm in listed] == [(vm.name, True) for vm in specs[1:]]


async def test_exit_of_a_killed_vm_is_reported_immediately(driver: Hypervisor, rig: Rig) -> None:
    exits = Exits(driver)
    await start_vm(driver, rig)
    started_s = time.monotonic()
    rig.kill(spec().name)
    assert (await exits.next()).code == (-9 if rig.reports_exit_codes else None)
    assert time.monotonic() - started_s < EVENT_S
    assert await driver.inventory() == (Observed(spec().name, ours=True, running=False),)
    with pytest.raises(VmNotRunningError):
        await driver.ping(spec().name, timeout_s=1)


async def test_new_driver_adopts_running_vms(
    driver: Hypervisor, new_driver: Callable[[], Hypervisor], rig: Rig
) -> None:
    name = spec().name
    pid = await start_vm(driver, rig, booted=True)
    before = await driver.address(name)
    await driver.close()

    adopter = new_driver()
    exits = Exits(adopter)
    assert await pid_of(adopter, name) == pid
    assert await adopter.address(name) == before
    await adopter.ping(name, timeout_s=20)
    started_s = time.monotonic()
    rig.kill(name)
    assert (await exits.next()).name == name
    assert time.monotonic() - started_s < EVENT_S
    assert exits.is_empty(), "an exit is reported once"


async def test_new_driver_stops_a_running_vm_without_an_inventory(
    driver: Hypervisor, new_driver: Callable[[], Hypervisor], rig: Rig
) -> None:
    await start_vm(driver, rig)
    await driver.close()
    other = new_driver()
    await other.stop(spec().name, grace_s=0)
    await other.delete(spec().name)
    assert rig.traces(spec().name) == []


async def test_hung_vm_fails_pings_in_time_and_can_be_stopped(driver: Hypervisor, rig: Rig) -> None:
    name = spec().name
    await start_vm(driver, rig, booted=True)
    rig.hang(name)
    started_s = time.monotonic()
    with pytest.raises(GuestError, match=r"did not answer.*0\.3 s"):
        await driver.ping(name, timeout_s=0.3)
    with pytest.raises(GuestError, match=r"did not answer.*0\.3 s"):
        await driver.execute(name, ("true",), timeout_s=0.3)
    assert time.monotonic() - started_s < 2
    assert (await driver.inventory())[0].running
    started_s = time.monotonic()
    await driver.stop(name, grace_s=1)
    assert time.monotonic() - started_s < 4
    await driver.delete(name)
    assert rig.traces(name) == []


async def test_ping_of_a_booting_guest_raises_guest_error(driver: Hypervisor, rig: Rig) -> None:
    await start_vm(driver, rig)
    with pytest.raises(GuestError):
        await driver.ping(spec().name, timeout_s=0.01)


async def test_suspended_vm_resumes_with_its_state(driver: Hypervisor, rig: Rig) -> None:
    skip_unless_suspend_is_supported(driver)
    name = spec().name
    pid = await start_vm(driver, rig, booted=True)
    with pytest.raises(HypervisorError, match="no snapshot"):
        await driver.resume(spec())
    assert await pid_of(driver, name) == pid
    await driver.execute(name, ("touch", "/in-snapshot"), timeout_s=20)
    await driver.suspend(name)
    assert await driver.inventory() == (Observed(name, ours=True, running=False, suspended=True),)
    await driver.resume(spec())
    await driver.ping(name, timeout_s=30)
    assert not (await driver.inventory())[0].suspended
    assert (await driver.execute(name, ("ls", "/in-snapshot"), timeout_s=20)).exit_code == 0
    assert set((await driver.address(name)).ports) == set(spec().ports)
    await driver.suspend(name)
    await driver.delete(name)
    assert rig.traces(name) == []


async def test_snapshot_cannot_be_resumed_after_a_boot(driver: Hypervisor, rig: Rig) -> None:
    skip_unless_suspend_is_supported(driver)
    await start_vm(driver, rig)
    await driver.suspend(spec().name)
    await driver.start(spec())
    await driver.stop(spec().name, grace_s=0)
    with pytest.raises(HypervisorError, match="no snapshot"):
        await driver.resume(spec())
    assert await driver.inventory() == (Observed(spec().name, ours=True, running=False),)


async def test_evidence_covers_running_ended_and_unknown_vms(driver: Hypervisor, rig: Rig, tmp_path: Path) -> None:
    name = spec().name
    await driver.evidence(name, tmp_path / "unknown")
    await start_vm(driver, rig, booted=True)
    await driver.evidence(name, tmp_path / "alive")
    rig.hang(name)
    await driver.evidence(name, tmp_path / "hung")
    await driver.stop(name, grace_s=0)
    await driver.evidence(name, tmp_path / "dead")
    for state, alive in (("unknown", False), ("alive", True), ("hung", True), ("dead", False)):
        assert f'"running": {str(alive).lower()}' in (tmp_path / state / "state.json").read_text()
    for state in ("alive", "hung", "dead"):
        assert (tmp_path / state / rig.console).stat().st_size > 0


async def test_foreign_vms_are_listed_and_left_untouched(driver: Hypervisor, rig: Rig) -> None:
    rig.plant_foreign("foreign")
    before = rig.traces("foreign")
    assert await driver.inventory() == (Observed("foreign", ours=False, running=False),)
    with pytest.raises(ForeignVmError):
        await driver.stop("foreign", grace_s=0)
    with pytest.raises(ForeignVmError):
        await driver.delete("foreign")
    assert await driver.inventory() == (Observed("foreign", ours=False, running=False),)
    assert rig.traces("foreign") == before


async def test_cancelled_clone_can_be_listed_and_removed(driver: Hypervisor, rig: Rig) -> None:
    for delay_ms in (1, 3, 6, 10):
        clone = asyncio.create_task(driver.clone(spec(), rig.image))
        for _ in range(delay_ms):
            await asyncio.sleep(0.001)
        clone.cancel()
        await asyncio.wait([clone])
        await driver.delete(spec().name)
        assert await driver.inventory() == ()
        assert rig.traces(spec().name) == []


async def test_cancelled_start_can_be_listed_and_stopped(driver: Hypervisor, rig: Rig) -> None:
    name = spec().name
    await driver.clone(spec(), rig.image)
    for delay_ms in (1, 3, 6, 20):
        start = asyncio.create_task(driver.start(spec()))
        for _ in range(delay_ms):
            await asyncio.sleep(0.001)
        start.cancel()
        await asyncio.wait([start])
        await driver.stop(name, grace_s=0)
        assert await driver.inventory() == (Observed(name, ours=True, running=False),)
    await driver.delete(name)
    assert rig.traces(name) == []


async def test_closed_driver_leaves_vms_running(
    new_driver: Callable[[], Hypervisor], driver: Hypervisor, rig: Rig
) -> None:
    before = open_fds()
    other = new_driver()
    exits = Exits(other)
    await driver.clone(spec(), rig.image)
    await other.start(spec())
    pid = await pid_of(other, spec().name)
    await other.close()
    assert await pid_of(driver, spec().name) == pid
    own = Exits(driver)
    rig.kill(spec().name)
    await own.next()
    assert exits.is_empty()
    assert open_fds() == before
