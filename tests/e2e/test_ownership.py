"""Running VMs that an agent does not know are left alone: of another agent, or after a loss of the journal."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts.lib.anka_backend import AnkaBackend
from scripts.lib.host import Host
from scripts.lib.tart_backend import TartBackend
from tests.e2e.test_agent import condition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROBES = '[[pools.{pool}.probes]]\nkind = "agent"\n'


@pytest.fixture(params=[TartBackend, AnkaBackend], ids=["tart", "anka"])
async def mac(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    """A host that leased its only VM, on a simulated Mac with two slots."""
    directory = Path(tempfile.mkdtemp(prefix="hearth-test-"))
    host = Host(directory, request.param(directory))
    try:
        yield host
    finally:
        await host.close()


async def lease_one(host: Host) -> tuple[str, str]:
    """Return the VM and the lease of a host that has one of each."""
    assert isinstance(host.backend, TartBackend | AnkaBackend)
    images = await host.backend.make_images(host, ("1.0",))
    host.assign("small", images["1.0"], warm=1, probes=PROBES)
    await host.start()
    await host.wait_until_warm(1)
    lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 30})
    host.assign("small", images["1.0"], warm=0, probes=PROBES)
    return lease["vm"], lease["id"]


async def foreign_slots(host: Host, count: int) -> None:
    """Wait until the host counts that many slots of VMs of other owners."""
    await host.wait_until(lambda document, _: document["slots"]["foreign"] == count, timeout_s=60)


async def test_two_agents_on_one_mac_leave_the_vms_of_the_other_alone(mac: Host) -> None:
    vm, lease_id = await lease_one(mac)
    assert isinstance(mac.backend, TartBackend | AnkaBackend)
    second = Host(mac.directory / "second")
    second.configure(mac.backend.config)
    second.assignment.write_text(mac.assignment.read_text().replace("warm = 0", "warm = 1"))
    try:
        await second.start()
        await second.wait_until_warm(1)
        await foreign_slots(second, 1)
        await foreign_slots(mac, 1)
        assert (await mac.get(f"/v1/leases/{lease_id}"))["vm"] == vm
        assert len(mac.backend.processes()[vm]) == 1
        lines = second.read_log()
        assert not [line for line in lines if line["event"].startswith("stray-")]
    finally:
        await second.remove_all_vms()
        await second.close()


async def test_vms_of_a_lost_data_directory_are_left_alone(mac: Host) -> None:
    vm, _ = await lease_one(mac)
    await mac.kill()
    mac.data_dir.rename(mac.directory / "lost")
    await mac.start()
    await foreign_slots(mac, 1)
    assert len(mac.backend.processes()[vm]) == 1
    assert vm not in {one["name"] for one in (await mac.get("/v1/vms"))["vms"]}


@pytest.mark.qemu
async def test_vms_of_a_lost_journal_are_adopted_by_a_rebuild(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1)
    await host.start()
    (vm,) = await host.wait_until_warm(1)
    await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 30})
    pid = host.vm_pid(vm)
    await host.kill()
    for part in host.data_dir.glob("journal.sqlite*"):
        part.unlink()
    host.unassign()
    await host.start()
    reported = await condition(host, "UnknownVms", problem=True)
    assert vm in reported["message"]
    assert "hearth journal rebuild --force" in reported["message"]
    assert host.vm_pid(vm) == pid
    assert (await host.get("/v1/host"))["slots"]["used"] == len(host.vm_pids())
    await host.stop()
    await host.run_hearth("journal", "rebuild", "--force")
    await host.start()
    await condition(host, "UnknownVms", problem=False)
    states = {one["name"]: one["state"] for one in (await host.get("/v1/vms"))["vms"]}
    assert (states[vm], host.vm_pid(vm)) == ("leased", pid)


@pytest.mark.qemu
async def test_vms_survive_a_move_of_the_data_directory(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1)
    await host.start()
    (vm,) = await host.wait_until_warm(1)
    lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 30})
    host.assign("small", layout["1.0"], warm=0)
    pid = host.vm_pid(vm)
    await host.kill()
    host.data_dir = host.data_dir.rename(host.directory / "moved")
    host.config.write_text(host.config.read_text().replace('data_dir = "data"', 'data_dir = "moved"'))
    await host.start()
    assert (await host.get(f"/v1/leases/{lease['id']}"))["vm"] == vm
    assert host.vm_pid(vm) == pid
    result = await host.call("POST", f"/v1/leases/{lease['id']}/exec", {"argv": ["sh", "-c", "exit 3"]})
    assert result["exit_code"] == 3
