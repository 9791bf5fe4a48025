"""The conformance suite for templates: several VMs start from one snapshot, each with its own identity."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.domain.model import Observed, VmSize
from agent.hypervisors.contract import HypervisorError, TemplatesUnsupportedError, VmNotFoundError, VmNotRunningError
from tests.hypervisors.rigs import spec
from tests.hypervisors.test_conformance import Exits, pid_of, start_vm

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.hypervisors.contract import Hypervisor, VmSpec
    from tests.hypervisors.rigs import Rig

HOOK = "/etc/hearth/on-resume"
SAVED_FILE = "/in-snapshot"
TEMPLATE = "sha256-of-the-image-1x256"


@pytest.fixture(autouse=True)
async def _skip_unless_templates_are_supported(driver: Hypervisor) -> None:
    if not driver.capabilities.templates:
        pytest.skip(f"{driver.name} does not support templates")


async def run_in_vm(driver: Hypervisor, name: str, *argv: str) -> str:
    result = await driver.execute(name, argv, timeout_s=30)
    assert result.exit_code == 0, result
    return result.stdout.decode().strip()


async def start_from_template(driver: Hypervisor, rig: Rig, number: int) -> VmSpec:
    """Clone and start one VM from the template."""
    vm = spec(number)
    await driver.clone(vm, rig.image, template=TEMPLATE)
    await driver.start(vm)
    return vm


async def remove_vm(driver: Hypervisor, rig: Rig, name: str) -> None:
    await driver.stop(name, grace_s=0)
    await driver.delete(name)
    assert rig.traces(name) == []


async def test_vms_from_one_template_have_their_own_identity(
    driver: Hypervisor, new_driver: Callable[[], Hypervisor], rig: Rig
) -> None:
    pid, first = await start_vm(driver, rig, booted=True), spec()
    await driver.execute(first.name, ("touch", SAVED_FILE), timeout_s=20)
    assert await driver.templates() == frozenset()
    await driver.save_template(first.name, TEMPLATE)
    assert await pid_of(driver, first.name) == pid
    await driver.ping(first.name, timeout_s=20)
    assert await driver.templates() == await new_driver().templates() == {TEMPLATE}

    await driver.clone(spec(2), rig.image, template=TEMPLATE)
    assert (await driver.inventory())[1] == Observed(spec(2).name, ours=True, running=False, suspended=True)
    await driver.start(spec(2))
    others = await asyncio.gather(start_from_template(driver, rig, 3), start_from_template(driver, rig, 4))
    clones = [spec(2), *others]
    assert [await run_in_vm(driver, vm.name, "hostname") for vm in clones] == [vm.name for vm in clones]
    for vm in clones:
        await run_in_vm(driver, vm.name, "ls", SAVED_FILE)
        await run_in_vm(driver, vm.name, "touch", f"/only-in-{vm.name}")
    assert (await driver.execute(clones[0].name, ("ls", f"/only-in-{clones[1].name}"), timeout_s=20)).exit_code != 0
    ports = [port for vm in (first, *clones) for port in (await driver.address(vm.name)).ports.values()]
    assert len(set(ports)) == 8
    with pytest.raises(HypervisorError, match="started from a template"):
        await driver.save_template(clones[0].name, "another")

    await remove_vm(driver, rig, first.name)
    await driver.drop_template(TEMPLATE)
    await driver.drop_template(TEMPLATE)
    assert await driver.templates() == frozenset()
    exits = Exits(driver)
    rig.kill(clones[0].name)
    assert (await exits.next()).name == clones[0].name
    await remove_vm(driver, rig, clones[0].name)
    for vm in clones[1:]:
        await driver.ping(vm.name, timeout_s=20)
        await run_in_vm(driver, vm.name, "ls", SAVED_FILE)
    with pytest.raises(HypervisorError, match=TEMPLATE):
        await driver.clone(spec(5), rig.image, template=TEMPLATE)
    assert [vm.name for vm in await driver.inventory()] == [vm.name for vm in clones[1:]]

    survivor = clones[1]
    await driver.suspend(survivor.name)
    await driver.resume(survivor)
    assert await run_in_vm(driver, survivor.name, "hostname") == survivor.name
    await run_in_vm(driver, survivor.name, "ls", f"/only-in-{survivor.name}")
    await driver.suspend(survivor.name)
    await driver.start(survivor)  # its snapshot is used up, so it boots
    await driver.ping(survivor.name, timeout_s=60)
    assert (await driver.execute(survivor.name, ("ls", SAVED_FILE), timeout_s=20)).exit_code != 0


async def test_save_template_refuses_a_guest_without_hook(driver: Hypervisor, rig: Rig) -> None:
    with pytest.raises(VmNotFoundError):
        await driver.save_template(spec().name, TEMPLATE)
    pid = await start_vm(driver, rig, booted=True)
    await driver.execute(spec().name, ("rm", HOOK), timeout_s=20)
    with pytest.raises(TemplatesUnsupportedError, match=spec().name):
        await driver.save_template(spec().name, TEMPLATE)
    assert await pid_of(driver, spec().name) == pid
    assert await driver.templates() == frozenset()
    await driver.ping(spec().name, timeout_s=20)
    await driver.stop(spec().name, grace_s=0)
    with pytest.raises(VmNotRunningError):
        await driver.save_template(spec().name, TEMPLATE)


async def test_vm_boots_after_a_start_from_a_corrupt_template(driver: Hypervisor, rig: Rig) -> None:
    await start_vm(driver, rig, booted=True)
    await driver.save_template(spec().name, TEMPLATE)
    other = spec(2)
    await driver.clone(other, rig.image, template=TEMPLATE)
    rig.corrupt_snapshot(other.name)
    with pytest.raises(HypervisorError, match=other.name):
        await driver.start(other)
    assert not (await driver.inventory())[1].running
    await remove_vm(driver, rig, other.name)
    await driver.clone(other, rig.image)
    await driver.start(other)
    await pid_of(driver, other.name)
    await remove_vm(driver, rig, other.name)

    # The template still works for a VM of its size.
    await start_from_template(driver, rig, 3)
    larger = replace(spec(4), size=VmSize(cpus=1, memory_mib=300))
    with pytest.raises(HypervisorError, match=larger.name):
        await driver.clone(larger, rig.image, template=TEMPLATE)
        await driver.start(larger)
    await remove_vm(driver, rig, larger.name)
    elsewhere = replace(rig.image, digest="sha256:other", disk=rig.image.disk.with_name("other"))
    with pytest.raises(HypervisorError, match=TEMPLATE):
        await driver.clone(spec(5), elsewhere, template=TEMPLATE)
