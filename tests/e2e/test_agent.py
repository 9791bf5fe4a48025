"""The whole agent on real guests: fill, crash, rollout, teardown, configuration errors."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from agent.domain.names import vm_name

if TYPE_CHECKING:
    from scripts.lib.host import Document, Host

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

CONDITION_TIMEOUT_S = 20


async def condition(host: Host, kind: str, *, problem: bool, timeout_s: float = CONDITION_TIMEOUT_S) -> Document:
    """Wait until a condition is, or is not, a problem; return it."""

    def holds(document: Document, _: list[Document]) -> bool:
        return any(one["type"] == kind and one["problem"] == problem for one in document["conditions"])

    document = await host.wait_until(holds, timeout_s=timeout_s)
    return next(one for one in document["conditions"] if one["type"] == kind)


async def test_agent_adopts_survivor_when_killed_with_a_vm(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"])
    await host.start()
    victim, survivor = await host.wait_until_warm(2)
    pid = host.vm_pid(survivor)

    victims_pid = host.vm_pid(victim)
    os.kill(host.pid, signal.SIGSTOP)  # otherwise the agent sees the VM's end before it is killed
    os.kill(victims_pid, signal.SIGKILL)
    await host.kill()
    await host.start()

    names = await host.wait_until_warm(2, without=victim)
    assert survivor in names
    assert host.vm_pid(survivor) == pid
    assert await host.metric("hearth_vms_adopted_total") == 1
    failures = [line for line in host.read_log() if line["event"] == "vm-failed"]
    assert [(line["vm"], line["cause"]) for line in failures] == [(victim, "lost")]


async def test_teardown_removes_process_files_and_row(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1)
    await host.start()
    (name,) = await host.wait_until_warm(1)
    assert host.journal_keys("vms") == [name]
    assert any((host.data_dir / "vms").rglob("*"))
    assert len(host.vm_processes()) == 1

    assert await host.remove_all_vms() == []
    assert await host.stop() == 0
    assert host.vm_processes() == []


async def test_lease_survives_agent_crash(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1)
    await host.start()
    await host.wait_until_warm(1)
    lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 30})
    pid = host.vm_pid(lease["vm"])

    await host.kill()
    await host.start()

    assert (await host.get(f"/v1/leases/{lease['id']}"))["vm"] == lease["vm"]
    assert host.vm_pid(lease["vm"]) == pid
    await host.call("DELETE", f"/v1/leases/{lease['id']}")
    names = await host.wait_until_warm(1, without=lease["vm"])
    assert lease["vm"] not in names


async def test_lease_waits_for_vm_and_breaks_when_vm_dies(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1, text="max = 1")
    await host.start()
    lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "early", "wait_s": 100})
    refused = await host.run_hearth("lease", "small", "--wait", "0.2", check=False)
    assert refused[0] == 5
    assert "no VM of pool 'small' became ready within 0.2 s" in refused[2]
    unknown = await host.run_hearth("lease", "nope", check=False)
    assert unknown[0] == 4
    assert "there is no pool 'nope' on this host" in unknown[2]

    os.kill(host.vm_pid(lease["vm"]), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r'410.*lease-ended.*"reason":"broken".*"cause":"exited"'):
        while True:
            await host.get(f"/v1/leases/{lease['id']}")
    with pytest.raises(RuntimeError, match="404.*lease-not-found"):
        await host.get("/v1/leases/01jx4c8h2m9v3k5n7p1q0r2s4t")


async def test_unhealthy_version_is_rolled_back(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], text="min_ready = 1")
    await host.start()
    good = (await host.get("/v1/vms"))["vms"]
    await host.wait_until_warm(2)
    good = (await host.get("/v1/vms"))["vms"][0]["image"]

    text = "min_ready = 1\ncanary_attempts = 1"
    host.assign(
        "small", layout["unhealthy"], text=text, probes='[[pools.{pool}.probes]]\nkind = "agent"\ntimeout_s = 1'
    )
    aside = host.assignment.read_text().replace("startup_deadline_s = 120", "startup_deadline_s = 8")
    host.write_assignment(aside)
    reported = await condition(host, "RolledBack", problem=True)
    assert "startup-deadline" in reported["message"]
    host.write_assignment(aside.replace("startup_deadline_s = 8", "startup_deadline_s = 120"))
    await host.wait_until_warm(2, image=good)
    ready = [line for line in host.read_log() if line["event"] == "vm-ready"]
    assert {line["image"] for line in ready} == {good}


async def test_crash_loop_after_ready_never_empties_the_pool(host: Host, layout: dict[str, str]) -> None:
    """The new version becomes ready and powers off 12 s later, within its soak."""
    host.assign("small", layout["1.0"])
    await host.start()
    old = await host.wait_until_warm(2)
    host.assign("small", layout["dying"], soak_s=60, text="canary_attempts = 1")
    await condition(host, "RolledBack", problem=True, timeout_s=120)
    vms = (await host.get("/v1/vms"))["vms"]
    survivors = {vm["name"] for vm in vms if vm["state"] == "ready"} & set(old)
    assert survivors, "a VM of the old version must stay ready all the time"
    lines = host.read_log()
    failed = [line for line in lines if line["event"] == "vm-failed"]
    assert [line["cause"] for line in failed] == ["exited"]
    assert failed[0]["vm"] in {line["vm"] for line in lines if line["event"] == "vm-ready"}
    await host.wait_until_warm(2, image=vms[0]["image"])


async def test_stray_vm_is_removed_and_foreign_vm_is_not(host: Host) -> None:
    """A VM directory with Hearth's name and without a row is removed; one with another name is left untouched."""
    foreign = host.data_dir / "vms" / "other-vm"
    stray = host.data_dir / "vms" / vm_name("small", "01j00000000000000000000000")
    for directory in (foreign, stray):
        directory.mkdir(parents=True)
        (directory / "disk.qcow2").write_bytes(b"precious")
    await host.start()
    await host.wait_until(lambda *_: not stray.exists(), timeout_s=30)
    assert (foreign / "disk.qcow2").read_bytes() == b"precious"


async def test_last_good_assignment_is_kept_over_restart(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1)
    await host.start()
    names = await host.wait_until_warm(1)

    host.write_assignment('[pools.small]\nimage = "oci-layout:/r:1"\nwarm = 3\nmax = 2\n')
    reported = await condition(host, "AssignmentValid", problem=True)
    assert "assignment.toml: pools.small: max is 2 but warm is 3: raise max or lower warm" in reported["message"]
    host.write_assignment("[pools.small\n")
    await host.kill()
    await host.start()
    reported = await condition(host, "AssignmentValid", problem=True)
    assert "assignment.toml is not valid TOML" in reported["message"]
    assert "line 1" in reported["message"]
    assert await host.wait_until_warm(1) == names
    document = await host.get("/v1/assignment")
    assert document["pools"]["small"]["warm"] == 1


async def test_unknown_image_is_reported_in_condition(host: Host) -> None:
    host.assign("small", f"oci-layout:{host.directory}/nowhere:1.0")
    await host.start()
    reported = await condition(host, "ImagesAvailable", problem=True)
    assert "nowhere" in reported["message"]
    assert (await host.get("/v1/vms"))["vms"] == []


async def test_second_agent_on_same_data_dir_refuses_to_start(host: Host) -> None:
    await host.start()
    code, _, err = await host.run_hearth("run", "--config", str(host.config), check=False)
    assert code == 69
    assert f"an agent (process {host.pid}) already uses {host.data_dir}" in err
    assert (await host.get("/v1/vms"))["vms"] == []  # the first agent still answers


async def test_port_in_use_is_named_in_error(host: Host) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        host.config.write_text(host.config.read_text().replace("port = 0", f"port = {port}"))
        code, _, err = await host.run_hearth("run", "--config", str(host.config), check=False)
    assert code == 69
    assert f"127.0.0.1:{port}" in err


async def test_missing_qemu_package_is_named_in_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(host.directory))
    code, _, err = await host.run_hearth("run", "--config", str(host.config), check=False)
    assert code == 69
    assert "qemu-system-x86" in err


async def test_bad_configuration_error_names_file_and_key(host: Host) -> None:
    host.config.write_text("[host]\nslotz = 2\n")
    code, _, err = await host.run_hearth("run", "--config", str(host.config), check=False)
    assert code == 78
    assert "hearth.toml: host.slotz: unknown key" in err
