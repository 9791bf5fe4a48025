"""The tart driver against the quirks of Tart in docs/mac-contracts.md, on the simulator."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from agent.config import TartConfig
from agent.domain.model import Observed
from agent.hypervisors.contract import (
    GuestError,
    HypervisorError,
    HypervisorUnavailableError,
    SlotsTakenError,
    TemplatesUnsupportedError,
    VmExistsError,
    VmExit,
)
from agent.hypervisors.tart.driver import CONDITION, TartHypervisor
from agent.hypervisors.tart.processes import vm_run_by
from agent.hypervisors.tart.run_result import RunEnding, parse_run_result
from agent.hypervisors.tart.startup import SlotsLeakedError
from agent.processes.command import CommandError, CommandTimeoutError
from agent.processes.process import identify
from tests.hypervisors.rigs import GUEST_PORT, TartRig, spec
from tests.hypervisors.test_conformance import Exits, pid_of, start_vm
from tests.support.processes import eventually, gone
from tests.support.tart import MACOS, SIMULATOR, TartHome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.slow

NAME = spec().name
LONG_S = 20.0


@pytest.fixture
def rig(tart_rig: TartRig) -> TartRig:
    return tart_rig


@pytest.fixture
def home(rig: TartRig) -> TartHome:
    return rig.home


@pytest.fixture
async def short_timeout_driver(rig: TartRig) -> AsyncIterator[TartHypervisor]:
    """A driver with a short timeout, which the simulator keeps also on a loaded machine."""
    made = TartHypervisor(
        TartConfig(program=rig.program, home=rig.home.root, command_timeout_s=3), records_dir=rig.records
    )
    yield made
    await made.close()


async def tart(home: TartHome, *arguments: str) -> asyncio.subprocess.Process:
    """Start Tart without the agent, as an operator does."""
    return await asyncio.create_subprocess_exec(
        SIMULATOR, *arguments, env={**os.environ, "TART_HOME": str(home.root)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


def config_of(home: TartHome, name: str = NAME) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((home.root / "vms" / name / "config.json").read_text())
    return document


def commands(home: TartHome) -> list[str]:
    return [call["argv"][0] for call in home.calls()]


async def test_every_tart_call_disables_auto_prune(driver: TartHypervisor, rig: TartRig) -> None:
    """T5, T16. A clone sends no request to a registry. Without the setting, Tart deletes images on a full disk."""
    other = rig.home.add_image("2.0")
    os.truncate(rig.image.disk, 1 << 30)  # large, but sparse
    rig.home.set_faults(host={"free_bytes": 1 << 20})
    await start_vm(driver, rig, booted=True)
    await driver.address(NAME)
    await driver.suspend(NAME)
    await driver.delete(NAME)
    assert other.disk.exists()
    calls = rig.home.calls()
    assert {call["argv"][0] for call in calls} >= {
        "--version",
        "clone",
        "set",
        "run",
        "exec",
        "ip",
        "suspend",
        "delete",
    }
    assert all(call["no_auto_prune"] for call in calls)
    (clone,) = [call["argv"] for call in calls if call["argv"][0] == "clone"]
    assert clone == ["clone", f"registry.example:5000/tests/small@{rig.image.digest}", NAME]


async def test_simulator_prunes_images_by_default(home: TartHome, rig: TartRig) -> None:
    """T16: the simulator has the quirk that the driver avoids."""
    other = home.add_image("2.0")
    os.truncate(rig.image.disk, 1 << 30)
    home.set_faults(host={"free_bytes": 1 << 20})
    cloning = await tart(home, "clone", f"registry.example:5000/tests/small@{rig.image.digest}", "mine")
    assert await cloning.wait() == 0
    assert not other.disk.exists()


async def test_clone_has_its_own_mac_size_and_display(driver: TartHypervisor, rig: TartRig) -> None:
    """T8, T18. The first clone on a host would keep the image's MAC; `tart set` would reset the display's refit."""
    config_path = rig.image.directory / "config.json"
    config_path.write_text(json.dumps(MACOS | {"displayRefit": True}))
    await asyncio.gather(*(driver.clone(spec(number), rig.image) for number in (1, 2)))
    made = [config_of(rig.home, spec(number).name) for number in (1, 2)]
    assert len({config["macAddress"] for config in made} | {MACOS["macAddress"]}) == 3
    assert [(config["cpuCount"], config["memorySize"], config["displayRefit"]) for config in made] == [
        (1, 256 << 20, True)
    ] * 2


async def test_clone_reports_a_size_below_the_image_minimum(driver: TartHypervisor, rig: TartRig) -> None:
    config = rig.image.directory / "config.json"
    config.write_text(json.dumps(MACOS | {"cpuCountMin": 4}))
    with pytest.raises(CommandError, match="at least 4 CPUs"):
        await driver.clone(spec(), rig.image)
    with pytest.raises(HypervisorError, match="is incomplete"):
        await driver.start(spec())


async def test_clone_does_not_replace_a_foreign_vm(driver: TartHypervisor, rig: TartRig) -> None:
    """T10. `tart clone` would replace the VM, even while it runs."""
    rig.plant_foreign(NAME)
    with pytest.raises(VmExistsError):
        await driver.clone(spec(), rig.image)
    assert (rig.home.root / "vms" / NAME / "disk.img").read_text() == "precious"
    assert "clone" not in commands(rig.home)


async def test_clone_refuses_an_image_outside_the_cache(driver: TartHypervisor, rig: TartRig, tmp_path: Path) -> None:
    shutil.copytree(rig.image.directory, tmp_path / "elsewhere")
    strange = type(rig.image)(
        rig.image.digest, tmp_path / "elsewhere", rig.image.disk, rig.image.nvram, "darwin", "arm64"
    )
    with pytest.raises(HypervisorError, match="not in Tart's cache"):
        await driver.clone(spec(), strange)


async def test_guest_crash_is_reported_when_tart_exits_with_0(driver: TartHypervisor, rig: TartRig) -> None:
    """T4."""
    exits = Exits(driver)
    await start_vm(driver, rig)
    (guest,) = rig.home.guests(NAME)
    guest.kill()
    ended = await exits.next()
    assert (ended.name, ended.code) == (NAME, 1)
    assert "due to error: Error Domain=VZErrorDomain" in ended.detail


async def test_lost_network_is_reported_when_tart_exits_with_0(driver: TartHypervisor, rig: TartRig) -> None:
    """T4."""
    rig.home.set_faults(run={"network_loss_s": 0.1})
    exits = Exits(driver)
    await start_vm(driver, rig)
    ended = await exits.next()
    assert ended.code == 1
    assert "network attachment" in ended.detail


async def test_stop_requests_shutdown_before_the_power_cut(driver: TartHypervisor, rig: TartRig) -> None:
    """T6."""
    exits = Exits(driver)
    await start_vm(driver, rig, booted=True)
    await driver.stop(NAME, grace_s=LONG_S)
    assert await exits.next() == VmExit(NAME, 0, "guest has stopped the virtual machine")
    assert "stop" not in commands(rig.home)
    await driver.start(spec())
    rig.hang(NAME)
    await driver.stop(NAME, grace_s=0.4)
    assert commands(rig.home)[-1] == "stop"
    assert await exits.next() == VmExit(NAME, 0, "")


async def test_stop_keeps_the_snapshot_of_a_suspended_vm(driver: TartHypervisor, rig: TartRig) -> None:
    """T7. `tart stop` of a suspended VM deletes its snapshot."""
    await start_vm(driver, rig, booted=True)
    await driver.suspend(NAME)
    await driver.stop(NAME, grace_s=1)
    assert (await driver.inventory())[0].suspended
    await driver.resume(spec())


async def test_suspend_refuses_a_vm_without_suspendable(rig: TartRig) -> None:
    """T17. The VM would die, and `tart suspend` would report success."""
    config = TartConfig(program=rig.program, home=rig.home.root, suspendable=False)
    driver = TartHypervisor(config, records_dir=rig.records)
    assert not driver.capabilities.suspend
    pid = await start_vm(driver, rig)
    with pytest.raises(HypervisorError, match="without --suspendable"):
        await driver.suspend(NAME)
    assert await pid_of(driver, NAME) == pid
    await driver.close()


async def test_linux_guest_is_started_without_suspendable(driver: TartHypervisor, rig: TartRig) -> None:
    """T22. Tart refuses the flag for them."""
    linux = rig.home.add_image("linux", config={"os": "linux"})
    await driver.clone(spec(), linux)
    await driver.start(spec())
    await driver.ping(NAME, timeout_s=LONG_S)
    with pytest.raises(HypervisorError, match="only macOS guests"):
        await driver.suspend(NAME)


async def test_suspend_reports_a_vm_that_died(driver: TartHypervisor, rig: TartRig) -> None:
    """T17. `tart suspend` has returned with success before that."""
    rig.home.set_faults(run={"die_at": "suspending"})
    await start_vm(driver, rig, booted=True)
    with pytest.raises(HypervisorError, match="ended without saving its snapshot: .*creating a snapshot"):
        await driver.suspend(NAME)
    with pytest.raises(TemplatesUnsupportedError):
        await driver.save_template(NAME, "template")


async def test_vm_boots_after_a_resume_from_a_corrupt_snapshot(driver: TartHypervisor, rig: TartRig) -> None:
    await start_vm(driver, rig, booted=True)
    await driver.suspend(NAME)
    rig.corrupt_snapshot(NAME)
    with pytest.raises(HypervisorError, match="Failed to restore the machine state"):
        await driver.resume(spec())
    await driver.start(spec())
    await driver.ping(NAME, timeout_s=LONG_S)


async def test_exit_code_is_that_of_the_guest_command(driver: TartHypervisor, rig: TartRig) -> None:
    """T1, T19. 1, 2 and 64 are Tart's own codes too, and its errors are not the command's output."""
    await start_vm(driver, rig, booted=True)
    for code in (0, 1, 2, 64, 127):
        done = await driver.execute(NAME, ("/bin/sh", "-c", f"echo out; echo err >&2; exit {code}"), timeout_s=20)
        assert (done.exit_code, done.stdout, done.stderr) == (code, b"out\n", b"err\n")
    flood = await driver.execute(
        NAME,
        ("/bin/sh", "-c", "yes=$(/bin/head -c 3000000 /dev/zero); /bin/head -c 3000000 /dev/zero; exit 3"),
        timeout_s=20,
    )
    assert flood.exit_code == 3
    assert flood.truncated
    (guest,) = rig.home.guests(NAME)
    guest.suspend()
    with pytest.raises(GuestError, match="did not answer"):
        await driver.execute(NAME, ("true",), timeout_s=0.3)


async def test_hung_tart_raises_command_timeout(driver: TartHypervisor, rig: TartRig) -> None:
    await start_vm(driver, rig, booted=True)
    rig.home.set_faults(exec={"hang": True}, **{"--version": {"hang": True}})
    with pytest.raises(CommandTimeoutError):
        await driver.execute(NAME, ("true",), timeout_s=0.3)


async def test_guest_without_agent_is_reached_by_its_lease(driver: TartHypervisor, rig: TartRig) -> None:
    """T20. The DHCP lease needs no agent. `tart ip` takes a second to report that there is no address."""
    unhealthy = rig.home.add_image("3.0", unhealthy=True)
    await driver.clone(spec(), unhealthy)
    await driver.start(spec())
    address = await driver.address(NAME)
    assert address.host.startswith("127.")
    assert address.ports == {22: 22, GUEST_PORT: GUEST_PORT}
    with pytest.raises(GuestError, match=r"did not answer within 3 s.*control socket"):
        await driver.ping(NAME, timeout_s=3)


async def test_missing_address_raises_guest_error(
    driver: TartHypervisor, rig: TartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.hypervisors.tart.driver.ADDRESS_S", 0.5)
    rig.home.set_faults(ip={"no_ip": True})
    await start_vm(driver, rig, booted=True)
    with pytest.raises(GuestError, match="no address yet"):
        await driver.address(NAME)


async def test_third_vm_is_refused_when_a_foreign_vm_runs(driver: TartHypervisor, rig: TartRig) -> None:
    """T15. Foreign VMs count against the slots. That is not a leaked slot."""
    rig.plant_foreign("foreign")
    folder = rig.home.root / "vms" / "foreign"
    shutil.copy(rig.image.directory / "config.json", folder)
    foreign = await tart(rig.home, "run", "--no-graphics", "foreign")
    await eventually((folder / "control.sock").exists)
    await start_vm(driver, rig)
    await driver.clone(spec(2), rig.image)
    exits = Exits(driver)
    message = r"2 VMs run.*exceeds the system limit \(other running VMs: foreign, hearth"
    with pytest.raises(SlotsTakenError, match=message) as refused:
        await driver.start(spec(2))
    assert not isinstance(refused.value, SlotsLeakedError)
    assert exits.is_empty(), "an exit would be attributed to the guest"
    assert Observed("foreign", ours=False, running=True, pid=foreign.pid) in await driver.inventory()
    assert [fact.reason for fact in await driver.health()] == [""]
    foreign.terminate()
    await foreign.wait()
    await driver.start(spec(2))


async def test_leaked_slot_is_a_condition_until_it_is_freed(driver: TartHypervisor, rig: TartRig) -> None:
    """T15. The Mac refuses a second VM although only one runs."""
    rig.home.set_faults(run={"leak": True, "times": 1})
    await start_vm(driver, rig)
    await driver.stop(NAME, grace_s=1)
    (leaked,) = [
        process for process in psutil.process_iter(["cmdline"]) if str(rig.home.root) in (process.info["cmdline"] or ())
    ]
    await driver.start(spec())
    await driver.clone(spec(2), rig.image)
    with pytest.raises(SlotsLeakedError, match=rf"only 1 of its 2 run.*\b{leaked.pid}\b.*restart the Mac"):
        await driver.start(spec(2))
    (fact,) = await driver.health()
    assert (fact.condition, fact.reason) == (CONDITION, "SlotsLeaked")
    assert str(leaked.pid) in fact.message
    process = identify(leaked.pid)
    leaked.kill()
    assert process
    await gone([process])
    await driver.start(spec(2))
    assert [fact.reason for fact in await driver.health()] == [""]


async def test_inventory_works_with_a_damaged_foreign_vm(driver: TartHypervisor, rig: TartRig) -> None:
    """T11, T12. The VM makes `tart list` and every clone fail. The error of a clone contains Tart's message."""
    await start_vm(driver, rig)
    rig.plant_foreign("broken")
    assert [vm.name for vm in await driver.inventory()] == ["broken", NAME]
    listing = await tart(rig.home, "list", "--format", "json")
    _, err = await listing.communicate()
    assert listing.returncode == 1
    with pytest.raises(CommandError) as refused:
        await driver.clone(spec(2), rig.image)
    assert err.decode().strip() in str(refused.value)


async def test_inventory_does_not_depend_on_tart_list(driver: TartHypervisor, rig: TartRig) -> None:
    rig.home.set_faults(list={"omit": [NAME], "invent": [spec(2).name]})
    await start_vm(driver, rig)
    assert [vm.name for vm in await driver.inventory()] == [NAME]


async def test_vm_without_its_lock_is_found_and_stopped(driver: TartHypervisor, rig: TartRig) -> None:
    """T21. A replaced configuration has no lock: Tart reports the VM as stopped, and would delete it."""
    exits = Exits(driver)
    pid = await start_vm(driver, rig)
    await driver.close()
    config = rig.home.root / "vms" / NAME / "config.json"
    config.with_name("new").write_text(config.read_text())
    config.with_name("new").rename(config)

    other = rig.driver()
    assert await pid_of(other, NAME) == pid
    with pytest.raises(HypervisorError, match="still runs"):
        await other.delete(NAME)
    shutil.rmtree(config.parent)
    (listed,) = await other.inventory()
    assert (listed.running, "config.json" in listed.damaged) == (True, True)
    await other.stop(NAME, grace_s=0)
    await other.delete(NAME)
    assert rig.traces(NAME) == []
    await other.close()
    assert exits.is_empty()


async def test_files_of_an_interrupted_clone_can_be_deleted(driver: TartHypervisor, rig: TartRig) -> None:
    """T12. Tart cannot see a VM without a disk, so it cannot delete it either."""
    rig.home.set_faults(clone={"half_done": True})
    with pytest.raises(CommandError, match="No space left"):
        await driver.clone(spec(), rig.image)
    assert await driver.inventory() == (Observed(NAME, ours=True, running=False),)
    await driver.delete(NAME)
    assert "delete" not in commands(rig.home)
    assert rig.traces(NAME) == []


@pytest.mark.parametrize("step", ["locked", "copied disk.img", "moved"])
async def test_killed_clone_leaves_no_temporary_files(driver: TartHypervisor, rig: TartRig, step: str) -> None:
    """T14. The next command of Tart removes the clone's files in Tart's `tmp`."""
    rig.home.set_faults(clone={"die_at": step})
    with pytest.raises(CommandError):
        await driver.clone(spec(), rig.image)
    rig.home.set_faults()
    await driver.delete(NAME)
    await start_vm(driver, rig)
    assert list((rig.home.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("command", ["clone", "set"])
async def test_clone_raises_when_tart_has_no_effect(driver: TartHypervisor, rig: TartRig, command: str) -> None:
    rig.home.set_faults(**{command: {"garbage": True}})
    with pytest.raises(HypervisorError, match=f"tart {command}` reported success"):
        await driver.clone(spec(), rig.image)


async def test_warnings_on_stderr_are_ignored(driver: TartHypervisor, rig: TartRig) -> None:
    """T3."""
    noise = {"noise": True}
    rig.home.set_faults(clone=noise, set=noise, run=noise, exec=noise, ip=noise, stop=noise, delete=noise)
    await start_vm(driver, rig, booted=True)
    assert (await driver.execute(NAME, ("echo", "hello"), timeout_s=20)).stdout == b"hello\n"
    await driver.address(NAME)
    await driver.stop(NAME, grace_s=1)
    await driver.delete(NAME)


@pytest.mark.parametrize("fault", ["hang", "hang_on_term"])
async def test_hung_tart_is_killed_with_its_group(
    short_timeout_driver: TartHypervisor, rig: TartRig, fault: str
) -> None:
    rig.home.set_faults(clone={fault: True})
    with pytest.raises(CommandTimeoutError, match="did not end in 3 s"):
        await short_timeout_driver.clone(spec(), rig.image)
    (call,) = rig.home.calls()
    assert not psutil.pid_exists(call["pid"])
    rig.home.set_faults(delete={fault: True})
    await short_timeout_driver.delete(NAME)
    assert rig.traces(NAME) == []


async def test_stop_and_delete_work_without_a_working_tart(short_timeout_driver: TartHypervisor, rig: TartRig) -> None:
    await start_vm(short_timeout_driver, rig, booted=True)
    rig.home.set_faults(exec={"hang": True}, stop={"hang_on_term": True}, delete={"fail": "no"})
    await short_timeout_driver.stop(NAME, grace_s=0.5)
    await short_timeout_driver.delete(NAME)
    assert rig.traces(NAME) == []


async def test_failed_start_is_reported_and_leaves_no_process(
    driver: TartHypervisor, short_timeout_driver: TartHypervisor, rig: TartRig
) -> None:
    await driver.clone(spec(), rig.image)
    for faults, message in (
        ({"die_at": "locked"}, "ended immediately: no output"),
        ({"die_at": "slot taken"}, "ended immediately"),
        ({"fail": "Failed to lock auxiliary storage."}, "still runs in a process"),
        ({"hang_on_term": True}, "has not started the VM in 3 s"),
        ({"garbage": True}, "ended immediately"),
    ):
        rig.home.set_faults(run=faults)
        with pytest.raises(HypervisorError, match=message):
            await short_timeout_driver.start(spec())
        assert rig.home.runs(NAME) == []
    rig.home.set_faults()
    await driver.start(spec())
    await driver.ping(NAME, timeout_s=LONG_S)


async def test_stop_ends_a_paused_tart_run(driver: TartHypervisor, rig: TartRig) -> None:
    pid = await start_vm(driver, rig, booted=True)
    os.kill(pid, signal.SIGSTOP)
    await driver.stop(NAME, grace_s=0.4)
    await driver.delete(NAME)
    assert rig.traces(NAME) == []


async def test_preflight_reports_a_missing_or_broken_tart(rig: TartRig) -> None:
    missing = TartHypervisor(TartConfig(program="no-such-tart", home=rig.home.root), records_dir=rig.records)
    with pytest.raises(HypervisorUnavailableError, match="brew install"):
        await missing.preflight()
    rig.home.set_faults(**{"--version": {"garbage": True}})
    with pytest.raises(HypervisorUnavailableError, match="reports an unknown version"):
        await rig.driver().preflight()
    rig.home.set_faults()
    driver = rig.driver()
    await driver.preflight()
    assert driver.version == "2.30.0"


def test_run_result_is_parsed_from_the_last_run() -> None:
    before = "# hearth: 1\nguest has stopped the virtual machine due to error: x\n# hearth: 2\n"
    assert parse_run_result(before, 0) == parse_run_result("", 0)
    full = parse_run_result(f"{before}VZErrorDomain Code=6 The maximum supported number of active virtual machines", 1)
    assert (full.ending, full.code) == (RunEnding.NO_SLOT, 1)
    assert parse_run_result("a\nb\n\nc\nd\n", None).message == "b | c | d"


@pytest.mark.parametrize(
    ("argv", "vm"),
    [
        (["/opt/homebrew/bin/tart", "run", "--no-graphics", "a"], "a"),
        (["python3", "-S", "/x/tart", "run", "a"], "a"),
        (["tart", "clone", "run", "a"], None),
        (["vim", "tart", "runs", "a"], None),
        ([], None),
    ],
)
def test_tart_run_is_recognised_by_its_arguments(argv: list[str], vm: str | None) -> None:
    assert vm_run_by(argv, "/usr/local/bin/tart") == vm
