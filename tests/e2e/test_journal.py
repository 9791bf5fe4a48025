"""A destroyed journal with real guests: refused, then rebuilt without a lost or shared VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scripts.lib.host import Host

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


async def test_destroyed_journal_is_rebuilt_from_running_vms(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1)
    await host.start()
    await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 100})
    await host.wait_until(lambda _, vms: sorted(vm["state"] for vm in vms) == ["leased", "ready"])
    names = {vm["name"] for vm in (await host.get("/v1/vms"))["vms"]}
    images = {vm["image"] for vm in (await host.get("/v1/vms"))["vms"]}
    pids = {name: host.vm_pid(name) for name in names}
    await host.kill()

    journal = host.data_dir / "journal.sqlite"
    journal.with_name("journal.sqlite-wal").unlink(missing_ok=True)
    journal.write_bytes(b"\x00" * 8192)
    code, _, err = await host.run_hearth("run", "--config", str(host.config), check=False)
    assert code == 69
    assert "hearth journal rebuild" in err
    assert "2 VMs adopted" in (await host.run_hearth("journal", "rebuild"))[1]

    await host.start()
    vms = {vm["name"]: vm for vm in (await host.get("/v1/vms"))["vms"]}
    assert {name: host.vm_pid(name) for name in vms} == pids
    # Neither VM is known to be idle, so neither is leased again, and a holder can continue to use its VM.
    assert {vm["state"] for vm in vms.values()} == {"leased"}
    assert {vm["image"] for vm in vms.values()} == images
    assert (await host.run_hearth("lease", "small", "--wait", "1s", check=False))[0] == 5
    for vm in vms.values():
        await host.run_hearth("release", vm["lease"]["id"])
    fresh = await host.wait_until_warm(1)
    assert not names & set(fresh)
    assert await host.remove_all_vms() == []
