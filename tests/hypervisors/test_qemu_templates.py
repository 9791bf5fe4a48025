"""Templates of the qemu driver beyond the contract: the identity of new VMs, and crashes at any step."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import pytest

from agent.domain.model import Observed
from agent.hypervisors.contract import GuestError, HypervisorError
from agent.hypervisors.qemu import driver as driver_module
from agent.hypervisors.qemu import layout, reinitialize, template_capture
from agent.hypervisors.qemu.cmdline import mac_address
from agent.hypervisors.qemu.monitor import Monitor
from agent.hypervisors.qemu.templates import RECORD, TemplateStore
from tests.hypervisors.rigs import GUEST_PORT, QemuRig, local_image, spec
from tests.hypervisors.test_conformance import BOOT_S, pid_of, start_vm
from tests.hypervisors.test_templates import TEMPLATE, run_in_vm, start_from_template
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.hypervisors.contract import Hypervisor
    from tests.support.guests import SmallImage

pytestmark = pytest.mark.qemu

NAME = spec().name
AGE_S = 3.0
CLOCK_TOLERANCE_S = 2.0
AGENT = textwrap.dedent("""
    import asyncio, os, signal, sys
    from pathlib import Path
    from agent.hypervisors.qemu import driver, template_capture, guest_agent, monitor, templates
    from tests.hypervisors.rigs import QemuRig, local_image, spec
    from tests.hypervisors.test_templates import TEMPLATE, start_from_template

    def kill_self(*_arguments, **_named):
        os.killpg(0, signal.SIGKILL)

    STEPS = {
        "saving": (monitor.Monitor, "migrate_out"),
        "copying": (template_capture, "_copy_disk"),
        "splitting": (monitor.Monitor, "migrate_in"),
        "publishing": (templates.TemplateStore, "publish"),
        "before-reinitialising": (driver, "reinitialize"),
        "after-reinitialising": (guest_agent.GuestAgent, "clock_ns"),
    }

    async def main(folder, disk, step):
        setattr(*STEPS[step], kill_self)
        rig = QemuRig(Path(folder), local_image(Path(disk)))
        hypervisor = rig.driver()
        if step.endswith("reinitialising"):
            await start_from_template(hypervisor, rig, 1)
        else:
            await hypervisor.save_template(spec().name, TEMPLATE)

    asyncio.run(main(*sys.argv[1:]))
""")


@pytest.fixture
def rig(qemu_rig: QemuRig) -> QemuRig:
    return qemu_rig


@dataclass(frozen=True)
class Identity:
    """The properties in which guests must differ."""

    hostname: str
    mac: str
    host_key: str
    noise: str
    uuid: str

    def shares_nothing_with(self, other: Identity) -> bool:
        mine, others = ((it.hostname, it.mac, it.host_key, it.noise, it.uuid) for it in (self, other))
        return not any(own == other_value for own, other_value in zip(mine, others, strict=True))


async def read_identity(driver: Hypervisor, name: str) -> Identity:
    """Return a guest's identity. Reads its random numbers first."""
    read = (
        "head -c 16 /dev/urandom | xxd -p; cat /proc/sys/kernel/random/uuid; hostname; cat /sys/class/net/eth0/address"
    )
    noise, uuid, hostname, mac = (await run_in_vm(driver, name, "sh", "-c", read)).split()
    port = (await driver.address(name)).ports[22]
    scan = await asyncio.create_subprocess_exec(
        "ssh-keyscan", "-T", "30", "-t", "ed25519", "-p", str(port), "127.0.0.1", stdout=-1, stderr=-1
    )
    host_key, errors = await scan.communicate()
    assert host_key, errors
    return Identity(hostname, mac, host_key.split()[-1].decode(), noise, uuid)


@dataclass(frozen=True)
class SavedTemplate:
    """A template made once for all tests, and the identity of the VM it was made of."""

    files: Path
    identity: Identity

    def link_into(self, rig: QemuRig) -> None:
        rig.templates.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.files, rig.templates / TEMPLATE, copy_function=os.link)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, small_image: SmallImage) -> SavedTemplate:
    rig = QemuRig(tmp_path_factory.mktemp("saved"), local_image(small_image("1.0")))

    async def make() -> Identity:
        driver, original = rig.driver(), spec(9)
        try:
            await driver.clone(original, rig.image)
            await driver.start(original)
            await driver.ping(original.name, timeout_s=BOOT_S)
            identity = await read_identity(driver, original.name)
            await driver.execute(original.name, ("touch", "/run/in-snapshot"), timeout_s=20)
            await driver.save_template(original.name, TEMPLATE)
            return identity
        finally:
            await driver.close()

    try:
        with ThreadPoolExecutor(1) as pool:  # in an event loop of its own, apart from that of the tests
            identity = pool.submit(asyncio.run, make()).result()
    finally:
        rig.clean_up()
    return SavedTemplate(rig.templates / TEMPLATE, identity)


def clock_error_s(clock: str) -> float:
    """Return the error of a guest's clock, given the output of `date +%s`."""
    return abs(time.time() - float(clock) - 0.5)


async def is_served(rig: QemuRig, driver: Hypervisor, name: str) -> bool:
    """Whether a guest answers on its forwarded port, once it has its DHCP lease."""
    console = rig.vms / name / layout.CONSOLE
    await eventually(lambda: b"network 10.0.2.15" in console.read_bytes(), timeout_s=30)
    address = await driver.address(name)
    url = f"http://{address.host}:{address.ports[GUEST_PORT]}/"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status == 200


async def kill_agent_during(step: str, rig: QemuRig) -> None:
    """Run a separate agent that kills itself and its process group at one step."""
    argv = [sys.executable, "-c", AGENT, str(rig.folder), str(rig.image.disk), step]
    agent = await asyncio.to_thread(
        subprocess.run, argv, start_new_session=True, check=False, timeout=100, capture_output=True
    )
    assert agent.returncode == -signal.SIGKILL, agent.stderr


async def port_is_closed(_monitor: Monitor, _port: str) -> bool:
    """Replace `Monitor.is_port_open` for a guest whose hook does not wait."""
    return False


@pytest.mark.parametrize("waits", [True, False], ids=["hook-waits", "hook-is-started"])
async def test_vm_from_template_has_its_own_identity(
    waits: bool, saved: SavedTemplate, rig: QemuRig, driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not waits:
        monkeypatch.setattr(Monitor, "is_port_open", port_is_closed)
    saved.link_into(rig)
    saved_at_s = (saved.files / layout.SNAPSHOT).stat().st_mtime
    await eventually(lambda: time.time() - saved_at_s > AGE_S)
    await asyncio.gather(start_from_template(driver, rig, 1), start_from_template(driver, rig, 2))
    for name in (spec(1).name, spec(2).name):
        assert clock_error_s(await run_in_vm(driver, name, "date", "+%s")) < CLOCK_TOLERANCE_S
    one, two = await read_identity(driver, spec(1).name), await read_identity(driver, spec(2).name)
    assert (one.hostname, one.mac) == (spec(1).name, mac_address(spec(1).name))
    assert one.shares_nothing_with(two)
    assert one.shares_nothing_with(saved.identity)
    assert two.shares_nothing_with(saved.identity)
    for name in (spec(1).name, spec(2).name):
        await run_in_vm(driver, name, "ls", "/run/in-snapshot")
        assert await is_served(rig, driver, name), "a new MAC address gets the old IP, to which ports are forwarded"
        assert not (rig.vms / name / layout.SNAPSHOT).exists()
        assert not (rig.vms / name / layout.RAM).exists(), "a later suspend saves a complete snapshot"
    if not waits:
        return  # the rest does not depend on the hook

    await driver.suspend(NAME)
    suspended_at_s = time.time()
    await eventually(lambda: time.time() - suspended_at_s > AGE_S)
    await driver.resume(spec())
    assert clock_error_s(await run_in_vm(driver, NAME, "date", "+%s")) < CLOCK_TOLERANCE_S
    again = await read_identity(driver, NAME)
    assert (again.hostname, again.mac, again.host_key) == (one.hostname, one.mac, one.host_key)
    assert await is_served(rig, driver, NAME)


@pytest.mark.parametrize("step", ["before-reinitialising", "after-reinitialising"])
async def test_vm_with_pending_identity_is_never_used(
    step: str, saved: SavedTemplate, rig: QemuRig, driver: Hypervisor
) -> None:
    saved.link_into(rig)
    await kill_agent_during(step, rig)
    (seen,) = await driver.inventory()
    assert (seen.name, seen.running, seen.suspended) == (NAME, True, False)
    for request in (driver.ping(NAME, timeout_s=5), driver.execute(NAME, ("true",), timeout_s=5), driver.address(NAME)):
        with pytest.raises(GuestError, match="not reinitialised its identity"):
            await request
    with pytest.raises(HypervisorError, match="interrupted"):
        await driver.start(spec())
    await driver.stop(NAME, grace_s=0)
    with pytest.raises(HypervisorError, match="no snapshot"):
        await driver.start(spec())  # its disk has changed since the snapshot
    await driver.delete(NAME)
    assert rig.traces(NAME) == []
    await start_from_template(driver, rig, 1)
    await driver.ping(NAME, timeout_s=20)


async def test_vm_runs_on_when_its_agent_is_killed_during_a_capture(
    rig: QemuRig, driver: Hypervisor, new_driver: Callable[[], Hypervisor]
) -> None:
    pid = await start_vm(driver, rig, booted=True)
    for step in ("saving", "copying", "splitting", "publishing"):
        await driver.close()
        await kill_agent_during(step, rig)
        assert (rig.vms / NAME / layout.DRAFT).exists()
        driver = new_driver()
        assert await driver.inventory() == (Observed(NAME, ours=True, running=True, pid=pid),)
        await driver.ping(NAME, timeout_s=10)
        assert await driver.templates() == frozenset()
        assert not (rig.vms / NAME / layout.DRAFT).exists()
        await eventually(lambda: [process.pid for process in rig.processes(NAME)] == [pid])
    await driver.save_template(NAME, TEMPLATE)
    await driver.save_template(NAME, TEMPLATE)
    assert await driver.templates() == {TEMPLATE}
    assert [path.name for path in rig.templates.iterdir()] == [TEMPLATE]


async def test_vm_runs_on_after_a_failed_capture(
    rig: QemuRig, driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await start_vm(driver, rig, booted=True)

    async def expect_failure(match: str) -> None:
        with pytest.raises(HypervisorError, match=match):
            await driver.save_template(NAME, TEMPLATE)

    async def check_vm_runs() -> None:
        assert await pid_of(driver, NAME) == pid
        await driver.ping(NAME, timeout_s=10)
        assert not (rig.vms / NAME / layout.DRAFT).exists()
        assert await driver.templates() == frozenset()

    def with_snapshot(make: Callable[[Path], None]) -> Callable[[Path], None]:
        """Return a replacement of `_make_draft` that makes another file at the path of the snapshot."""

        def make_draft(draft: Path) -> None:
            draft.mkdir()
            make(draft / layout.SNAPSHOT)

        return make_draft

    with monkeypatch.context() as patch:
        patch.setattr(template_capture, "_make_draft", with_snapshot(lambda snapshot: snapshot.symlink_to("/dev/full")))
        await expect_failure("migrate")
    await check_vm_runs()
    with monkeypatch.context() as patch:
        patch.setattr(template_capture, "_copy_disk", lambda *_: os.listdir("/no/such/folder"))
        await expect_failure("/no/such/folder")
    await check_vm_runs()
    with monkeypatch.context() as patch:
        patch.setattr(driver_module, "TemplateRecord", lambda *_: None)
        with pytest.raises(TypeError):
            await driver.save_template(NAME, TEMPLATE)
    await check_vm_runs()
    rig.templates.touch()  # a file where the folder should be
    with pytest.raises(HypervisorError):
        await driver.save_template(NAME, TEMPLATE)
    rig.templates.unlink()
    await check_vm_runs()
    for name in ("..", "a/b", "", f"x{layout.PARTIAL}"):
        with pytest.raises(HypervisorError, match="name of a template"):
            await driver.save_template(NAME, name)
    await check_vm_runs()

    with monkeypatch.context() as patch:
        patch.setattr(template_capture, "_make_draft", with_snapshot(os.mkfifo))
        patch.setattr(template_capture, "CONTINUE_S", 1.0)
        saving = asyncio.create_task(driver.save_template(NAME, TEMPLATE))
        await eventually((rig.vms / NAME / layout.DRAFT / layout.SNAPSHOT).exists)
        stuck = os.open(rig.vms / NAME / layout.DRAFT / layout.SNAPSHOT, os.O_RDWR)
        with pytest.raises(GuestError):  # paused
            for _ in range(50):
                await driver.ping(NAME, timeout_s=0.3)
        saving.cancel()
        await asyncio.wait([saving])
        assert saving.cancelled()
        assert (rig.vms / NAME / layout.DRAFT).exists(), "QEMU hangs in its write, so the VM cannot run on yet"
        os.close(stuck)
    await check_vm_runs()


async def test_start_fails_when_the_hook_fails(
    saved: SavedTemplate, rig: QemuRig, driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.link_into(rig)

    async def expect_failed_start(match: str) -> None:
        await driver.clone(spec(), rig.image, template=TEMPLATE)
        with pytest.raises(HypervisorError, match=match):
            await driver.start(spec())
        assert await driver.inventory() == (Observed(NAME, ours=True, running=False),)
        await driver.delete(NAME)
        assert rig.traces(NAME) == []

    monkeypatch.setattr(reinitialize, "SEED_BYTES", 63)
    await expect_failed_start(f"{reinitialize.HOOK} in {NAME} failed: cannot do without NAME MAC NANOSECONDS SEED")
    monkeypatch.setattr(Monitor, "is_port_open", port_is_closed)
    await expect_failed_start(rf"{reinitialize.HOOK} in {NAME} ended with 1: cannot reseed the kernel from 64 bytes")
    monkeypatch.setattr(reinitialize, "HOOK", "/bin/cat")  # fails because its arguments are not files
    await expect_failed_start(rf"/bin/cat in {NAME} ended with 1: .*No such file")


async def test_templates_of_another_machine_or_image_are_removed(
    saved: SavedTemplate, rig: QemuRig, driver: Hypervisor, new_driver: Callable[[], Hypervisor]
) -> None:
    saved.link_into(rig)
    assert await driver.templates() == {TEMPLATE}
    record = json.loads((rig.templates / TEMPLATE / RECORD).read_text())
    strangers: dict[str, dict[str, object]] = {
        "of-another-qemu": {**record, "machine": record["machine"].replace("-tcg-", "-kvm-")},
        "of-an-evicted-image": {**record, "image": "/no/such/disk"},
        "of-a-later-agent": {**record, "more": 1},
    }
    for name, other in strangers.items():
        (rig.templates / name).mkdir()
        (rig.templates / name / RECORD).write_text(json.dumps(other))
        with pytest.raises(HypervisorError, match=name):
            await driver.clone(spec(), rig.image, template=name)
    (rig.templates / f"half-removed{layout.PARTIAL}").mkdir()
    (rig.templates / "debris").touch()
    assert await driver.templates() == {TEMPLATE}
    assert await driver.inventory() == ()
    await new_driver().preflight()
    assert [path.name for path in rig.templates.iterdir()] == [TEMPLATE]


def test_interrupted_removal_of_a_template_is_completed(tmp_path: Path) -> None:
    templates = TemplateStore(tmp_path)
    for name in ("one", f"one{layout.PARTIAL}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / layout.SNAPSHOT).touch()
    templates.remove("one")
    assert list(tmp_path.iterdir()) == []
