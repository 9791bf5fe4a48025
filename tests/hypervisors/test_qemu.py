"""The qemu driver beyond the contract, with real VMs: crashes at any step, lost files, error messages."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.domain.model import Observed
from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.qemu import driver as driver_module
from agent.hypervisors.qemu import layout
from agent.hypervisors.qemu.clone import UnfitImageError
from agent.processes.process import ProcessIdentity, identify
from tests.hypervisors.rigs import local_image, spec
from tests.hypervisors.test_conformance import EVENT_S, Exits, pid_of, start_vm
from tests.support.processes import eventually, gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.hypervisors.contract import Hypervisor
    from tests.hypervisors.rigs import QemuRig

pytestmark = pytest.mark.qemu

NAME = spec().name
AGENT = textwrap.dedent("""
    import asyncio, os, signal, sys
    from pathlib import Path
    from agent.hypervisors.qemu import clone, driver
    from tests.hypervisors.rigs import QemuRig, local_image, spec

    def kill_self(*_arguments, **_named):
        os.killpg(0, signal.SIGKILL)

    async def main(folder, disk, step):
        if step == "cloning":
            clone._publish = kill_self
        if step == "starting":
            driver.wait_until_up = kill_self
        rig = QemuRig(Path(folder), local_image(Path(disk)))
        hypervisor = rig.driver()
        await hypervisor.clone(spec(), rig.image)
        await hypervisor.start(spec())
        kill_self()

    asyncio.run(main(*sys.argv[1:]))
""")


@pytest.fixture
def rig(qemu_rig: QemuRig) -> QemuRig:
    return qemu_rig


async def kill_agent_during(step: str, rig: QemuRig) -> None:
    """Run a separate agent that kills itself and its process group at one step of making the test's VM."""
    argv = [sys.executable, "-c", AGENT, str(rig.folder), str(rig.image.disk), step]
    agent = await asyncio.to_thread(
        subprocess.run, argv, start_new_session=True, check=False, timeout=60, capture_output=True
    )
    assert agent.returncode == -signal.SIGKILL, agent.stderr


def process_of(rig: QemuRig) -> ProcessIdentity:
    (process,) = rig.processes(NAME)
    identity = identify(process.pid)
    assert identity is not None
    return identity


@pytest.mark.parametrize("step", ["starting", "running"])
async def test_vm_is_adopted_after_its_agent_was_killed(step: str, rig: QemuRig, driver: Hypervisor) -> None:
    await kill_agent_during(step, rig)
    process = process_of(rig)
    exits = Exits(driver)
    assert await driver.inventory() == (Observed(NAME, ours=True, running=True, pid=process.pid),)
    address = await driver.address(NAME)
    assert set(address.ports) == set(spec().ports)
    rig.kill(NAME)
    async with asyncio.timeout(EVENT_S):
        assert (await exits.next()).name == NAME
    await driver.delete(NAME)
    assert rig.traces(NAME) == []


async def test_clone_is_removable_after_its_agent_was_killed(rig: QemuRig, driver: Hypervisor) -> None:
    await kill_agent_during("cloning", rig)
    assert await driver.inventory() == (Observed(NAME, ours=True, running=False),)
    await driver.delete(NAME)
    assert await driver.inventory() == ()
    assert rig.traces(NAME) == []


@pytest.mark.parametrize("adopted", [False, True])
async def test_running_vm_without_files_is_found_and_stopped(
    adopted: bool, rig: QemuRig, driver: Hypervisor, new_driver: Callable[[], Hypervisor]
) -> None:
    pid = await start_vm(driver, rig)
    shutil.rmtree(rig.vms / NAME)
    if adopted:
        await driver.close()
        driver = new_driver()
    (listed,) = await driver.inventory()
    assert (listed.running, listed.pid) == (True, pid)
    assert "is gone" in listed.damaged
    process = process_of(rig)
    await driver.stop(NAME, grace_s=0.5)
    await gone([process])
    await driver.delete(NAME)
    assert await driver.inventory() == ()


async def test_foreign_qemu_process_is_listed_and_left_untouched(rig: QemuRig, driver: Hypervisor) -> None:
    folder = rig.vms / "by-hand"
    folder.mkdir(parents=True)
    argv = ["qemu-system-x86_64", "-pidfile", str(folder / layout.PID_FILE), "-nodefaults", "-display", "none", "-S"]
    foreign = subprocess.Popen(argv)
    try:
        assert await driver.inventory() == (Observed("by-hand", ours=False, running=True, pid=foreign.pid),)
        with pytest.raises(HypervisorError):
            await driver.stop("by-hand", grace_s=0)
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


async def test_failed_start_reports_the_output_of_qemu(rig: QemuRig, driver: Hypervisor) -> None:
    exits = Exits(driver)
    await driver.clone(spec(), rig.image)
    (rig.vms / NAME / layout.DISK).write_bytes(b"not a disk")
    with pytest.raises(HypervisorError, match=rf"{NAME} ended immediately after its start: .*qcow2"):
        await driver.start(spec())
    ended = await exits.next()
    assert ended.code == 1
    assert "qcow2" in ended.detail
    assert await driver.inventory() == (Observed(NAME, ours=True, running=False),)
    await driver.delete(NAME)
    assert rig.traces(NAME) == []


async def test_clone_of_a_missing_image_raises(rig: QemuRig, driver: Hypervisor, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="no-such-disk"):
        await driver.clone(spec(), local_image(tmp_path / "no-such-disk"))
    await driver.delete(NAME)
    assert rig.traces(NAME) == []


async def test_clone_refuses_images_for_other_machines(rig: QemuRig, driver: Hypervisor) -> None:
    with pytest.raises(UnfitImageError, match="is for darwin"):
        await driver.clone(spec(), local_image(rig.image.disk, system="darwin"))
    with pytest.raises(UnfitImageError, match="is for arm64"):
        await driver.clone(spec(), local_image(rig.image.disk, arch="arm64"))
    assert rig.traces(NAME) == []


async def test_snapshot_is_removed_by_a_resume(rig: QemuRig, driver: Hypervisor) -> None:
    pid = await start_vm(driver, rig, booted=True)
    await driver.suspend(NAME)
    assert (rig.vms / NAME / layout.SNAPSHOT).stat().st_size > 100_000
    await driver.resume(spec())
    assert await pid_of(driver, NAME) != pid
    assert not (rig.vms / NAME / layout.SNAPSHOT).exists()
    with pytest.raises(HypervisorError, match="no snapshot"):
        await driver.resume(spec())


async def test_resume_from_a_corrupt_snapshot_leaves_no_process(rig: QemuRig, driver: Hypervisor) -> None:
    await start_vm(driver, rig)
    await driver.suspend(NAME)
    (rig.vms / NAME / layout.SNAPSHOT).write_bytes(b"not a snapshot.." * 100)
    with pytest.raises(HypervisorError):
        await driver.resume(spec())
    assert await driver.inventory() == (Observed(NAME, ours=True, running=False, suspended=True),)


async def test_vm_runs_on_after_a_failed_suspend(rig: QemuRig, driver: Hypervisor, tmp_path: Path) -> None:
    pid = await start_vm(driver, rig)
    unfinished = rig.vms / NAME / f"{layout.SNAPSHOT}{layout.PARTIAL}"
    unfinished.symlink_to("/dev/full")
    with pytest.raises(HypervisorError, match="migrate"):
        await driver.suspend(NAME)
    unfinished.unlink()
    unfinished.mkdir()
    with pytest.raises(HypervisorError, match="cannot be opened"):
        await driver.suspend(NAME)
    assert await pid_of(driver, NAME) == pid
    await driver.evidence(NAME, tmp_path / "evidence")
    state = json.loads((tmp_path / "evidence" / "state.json").read_text())
    assert state["monitor"]["query-status"]["status"] == "running"


async def test_guest_cannot_change_its_image_or_fill_the_disk(
    rig: QemuRig, driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LOG_LIMIT_BYTES", 200_000)
    before = rig.image.disk.stat()
    await start_vm(driver, rig, booted=True)
    await driver.execute(NAME, ("sh", "-c", "echo changed > /dev/vda; sync"), timeout_s=20)

    console = rig.vms / NAME / layout.CONSOLE
    flood = "head -c 300000 /dev/zero | tr '\\0' x > /dev/ttyS0; echo the end > /dev/ttyS0"
    await driver.execute(NAME, ("sh", "-c", flood), timeout_s=60)
    assert console.stat().st_size > 300_000
    await driver.inventory()
    assert console.stat().st_size < 200_000
    assert console.with_name(f"{layout.CONSOLE}.1").stat().st_size == 100_000
    await driver.execute(NAME, ("sh", "-c", "echo after the cut > /dev/ttyS0"), timeout_s=20)
    assert b"after the cut" in console.read_bytes()
    assert b"\0" not in console.read_bytes(), "QEMU appends at the new end of the file"

    await driver.stop(NAME, grace_s=0)
    after = rig.image.disk.stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


async def test_evidence_contains_screenshot_and_machine_state(rig: QemuRig, driver: Hypervisor, tmp_path: Path) -> None:
    await start_vm(driver, rig)
    await driver.evidence(NAME, tmp_path / "evidence")
    assert (tmp_path / "evidence" / layout.SCREEN).read_bytes().startswith(b"\x89PNG")
    state = (tmp_path / "evidence" / "state.json").read_text()
    assert '"query-status"' in state
    assert f'"pid": {await pid_of(driver, NAME)}' in state


async def test_vm_with_uefi_variables_boots_from_uefi(rig: QemuRig, driver: Hypervisor, tmp_path: Path) -> None:
    template = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    if not template.exists():
        pytest.skip("the package ovmf is not installed")
    shutil.copyfile(template, tmp_path / "nvram.bin")
    await driver.clone(spec(), local_image(rig.image.disk, nvram=tmp_path / "nvram.bin"))
    await driver.start(spec())
    own = rig.vms / NAME / layout.NVRAM
    # The firmware writes its boot order during the boot.
    await eventually(lambda: own.read_bytes() != template.read_bytes(), timeout_s=60)
    assert (tmp_path / "nvram.bin").read_bytes() == template.read_bytes(), "the image's own variables are unchanged"
