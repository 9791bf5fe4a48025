"""What the qemu driver promises about templates beyond the contract: who a twin is, and crashes at any step."""

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
from tests.hypervisors.test_conformance import BOOT_S, pid_of, running
from tests.hypervisors.test_templates import TEMPLATE, said, twin
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.hypervisors.contract import Hypervisor
    from tests.support.guests import SmallImage

pytestmark = pytest.mark.qemu

NAME = spec().name
AGED_S = 3.0
EXACT_S = 2.0
AGENT = textwrap.dedent("""
    import asyncio, os, signal, sys
    from pathlib import Path
    from agent.hypervisors.qemu import driver, template_capture, guest_agent, monitor, templates
    from tests.hypervisors.rigs import QemuRig, local_image, spec
    from tests.hypervisors.test_templates import TEMPLATE, twin

    def die(*_arguments, **_named):
        os.killpg(0, signal.SIGKILL)

    STEPS = {
        "saving": (monitor.Monitor, "migrate_out"),
        "copying": (template_capture, "_copy_disk"),
        "parting": (monitor.Monitor, "migrate_in"),
        "publishing": (templates.TemplateStore, "publish"),
        "becoming": (driver, "reinitialize"),
        "become": (guest_agent.GuestAgent, "clock_ns"),
    }

    async def main(folder, disk, step):
        setattr(*STEPS[step], die)
        rig = QemuRig(Path(folder), local_image(Path(disk)))
        hypervisor = rig.driver()
        if step in ("becoming", "become"):
            await twin(hypervisor, rig, 1)
        else:
            await hypervisor.save_template(spec().name, TEMPLATE)

    asyncio.run(main(*sys.argv[1:]))
""")


@pytest.fixture
def rig(qemu_rig: QemuRig) -> QemuRig:
    return qemu_rig


@dataclass(frozen=True)
class Self:
    """What tells one guest from another."""

    hostname: str
    mac: str
    host_key: str
    noise: str
    uuid: str

    def shares_nothing_with(self, other: Self) -> bool:
        mine, others = ((who.hostname, who.mac, who.host_key, who.noise, who.uuid) for who in (self, other))
        return not any(one == another for one, another in zip(mine, others, strict=True))


async def self_of(driver: Hypervisor, name: str) -> Self:
    """Ask a guest who it is, its random numbers first."""
    read = (
        "head -c 16 /dev/urandom | xxd -p; cat /proc/sys/kernel/random/uuid; hostname; cat /sys/class/net/eth0/address"
    )
    noise, uuid, hostname, mac = (await said(driver, name, "sh", "-c", read)).split()
    port = (await driver.address(name)).ports[22]
    scan = await asyncio.create_subprocess_exec(
        "ssh-keyscan", "-T", "30", "-t", "ed25519", "-p", str(port), "127.0.0.1", stdout=-1, stderr=-1
    )
    host_key, errors = await scan.communicate()
    assert host_key, errors
    return Self(hostname, mac, host_key.split()[-1].decode(), noise, uuid)


@dataclass(frozen=True)
class Kept:
    """A template made once for all tests, and who the VM was that it is of."""

    files: Path
    who: Self

    def lend_to(self, rig: QemuRig) -> None:
        rig.templates.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.files, rig.templates / TEMPLATE, copy_function=os.link)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory, small_image: SmallImage) -> Kept:
    rig = QemuRig(tmp_path_factory.mktemp("kept"), local_image(small_image("1.0")))

    async def make() -> Self:
        driver, original = rig.driver(), spec(9)
        try:
            await driver.clone(original, rig.image)
            await driver.start(original)
            await driver.ping(original.name, timeout_s=BOOT_S)
            who = await self_of(driver, original.name)
            await driver.execute(original.name, ("touch", "/run/kept"), timeout_s=20)
            await driver.save_template(original.name, TEMPLATE)
            return who
        finally:
            await driver.close()

    try:
        with ThreadPoolExecutor(1) as pool:  # a loop of its own, out of the way of that of the tests
            who = pool.submit(asyncio.run, make()).result()
    finally:
        rig.clean_up()
    return Kept(rig.templates / TEMPLATE, who)


def off_s(clock: str) -> float:
    """How far a guest's clock, as `date +%s` tells it, is from ours."""
    return abs(time.time() - float(clock) - 0.5)


async def serves(rig: QemuRig, driver: Hypervisor, name: str) -> bool:
    """Whether a guest is reached through its forwarded port, once it has its lease."""
    console = rig.vms / name / layout.CONSOLE
    await eventually(lambda: b"network 10.0.2.15" in console.read_bytes(), timeout_s=30)
    address = await driver.address(name)
    url = f"http://{address.host}:{address.ports[GUEST_PORT]}/"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status == 200


async def die_while(step: str, rig: QemuRig) -> None:
    """Run an agent of its own that is killed with its process group at one step."""
    argv = [sys.executable, "-c", AGENT, str(rig.folder), str(rig.image.disk), step]
    agent = await asyncio.to_thread(
        subprocess.run, argv, start_new_session=True, check=False, timeout=100, capture_output=True
    )
    assert agent.returncode == -signal.SIGKILL, agent.stderr


async def nobody_waits(_monitor: Monitor, _port: str) -> bool:
    """What QEMU says of a guest that does not keep its hook waiting."""
    return False


@pytest.mark.parametrize("waits", [True, False], ids=["the hook waits", "the hook is started"])
async def test_vm_from_template_has_its_own_identity(
    waits: bool, kept: Kept, rig: QemuRig, driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not waits:
        monkeypatch.setattr(Monitor, "is_port_open", nobody_waits)
    kept.lend_to(rig)
    saved_at_s = (kept.files / layout.SNAPSHOT).stat().st_mtime
    await eventually(lambda: time.time() - saved_at_s > AGED_S)
    await asyncio.gather(twin(driver, rig, 1), twin(driver, rig, 2))
    for name in (spec(1).name, spec(2).name):
        assert off_s(await said(driver, name, "date", "+%s")) < EXACT_S
    one, two = await self_of(driver, spec(1).name), await self_of(driver, spec(2).name)
    assert (one.hostname, one.mac) == (spec(1).name, mac_address(spec(1).name))
    assert one.shares_nothing_with(two)
    assert one.shares_nothing_with(kept.who)
    assert two.shares_nothing_with(kept.who)
    for name in (spec(1).name, spec(2).name):
        await said(driver, name, "ls", "/run/kept")
        assert await serves(rig, driver, name), "a new network address gets the old IP, which ports are forwarded to"
        assert not (rig.vms / name / layout.SNAPSHOT).exists()
        assert not (rig.vms / name / layout.RAM).exists(), "a twin that is suspended later has a memory of its own"
    if not waits:
        return  # what follows is the same for both

    await driver.suspend(NAME)
    suspended_at_s = time.time()
    await eventually(lambda: time.time() - suspended_at_s > AGED_S)
    await driver.resume(spec())
    assert off_s(await said(driver, NAME, "date", "+%s")) < EXACT_S
    again = await self_of(driver, NAME)
    assert (again.hostname, again.mac, again.host_key) == (one.hostname, one.mac, one.host_key)
    assert await serves(rig, driver, NAME)


@pytest.mark.parametrize("step", ["becoming", "become"])
async def test_vm_with_pending_identity_is_never_used(step: str, kept: Kept, rig: QemuRig, driver: Hypervisor) -> None:
    kept.lend_to(rig)
    await die_while(step, rig)
    (seen,) = await driver.inventory()
    assert (seen.name, seen.running, seen.suspended) == (NAME, True, False)
    for ask in (driver.ping(NAME, timeout_s=5), driver.execute(NAME, ("true",), timeout_s=5), driver.address(NAME)):
        with pytest.raises(GuestError, match="not reinitialised its identity"):
            await ask
    with pytest.raises(HypervisorError, match="interrupted"):
        await driver.start(spec())
    await driver.stop(NAME, grace_s=0)
    with pytest.raises(HypervisorError, match="no snapshot"):
        await driver.start(spec())  # its disk has moved on
    await driver.delete(NAME)
    assert rig.traces(NAME) == []
    await twin(driver, rig, 1)
    await driver.ping(NAME, timeout_s=20)


async def test_vm_runs_on_when_its_agent_is_killed_during_a_capture(
    rig: QemuRig, driver: Hypervisor, new_driver: Callable[[], Hypervisor]
) -> None:
    pid = await running(driver, rig, booted=True)
    for step in ("saving", "copying", "parting", "publishing"):
        await driver.close()
        await die_while(step, rig)
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
    pid = await running(driver, rig, booted=True)

    async def fails(match: str) -> None:
        with pytest.raises(HypervisorError, match=match):
            await driver.save_template(NAME, TEMPLATE)

    async def still_runs() -> None:
        assert await pid_of(driver, NAME) == pid
        await driver.ping(NAME, timeout_s=10)
        assert not (rig.vms / NAME / layout.DRAFT).exists()
        assert await driver.templates() == frozenset()

    def plant(make: Callable[[Path], None]) -> Callable[[Path], None]:
        """Make a draft where something else lies already where the memory is to be written."""

        def begin(draft: Path) -> None:
            draft.mkdir()
            make(draft / layout.SNAPSHOT)

        return begin

    with monkeypatch.context() as patch:
        patch.setattr(template_capture, "_make_draft", plant(lambda memory: memory.symlink_to("/dev/full")))
        await fails("migrate")
    await still_runs()
    with monkeypatch.context() as patch:
        patch.setattr(template_capture, "_copy_disk", lambda *_: os.listdir("/no/such/folder"))
        await fails("/no/such/folder")
    await still_runs()
    with monkeypatch.context() as patch:
        patch.setattr(driver_module, "TemplateRecord", lambda *_: None)
        with pytest.raises(TypeError):
            await driver.save_template(NAME, TEMPLATE)
    await still_runs()
    rig.templates.touch()  # a file where the folder should be
    with pytest.raises(HypervisorError):
        await driver.save_template(NAME, TEMPLATE)
    rig.templates.unlink()
    await still_runs()
    for name in ("..", "a/b", "", f"x{layout.PARTIAL}"):
        with pytest.raises(HypervisorError, match="name of a template"):
            await driver.save_template(NAME, name)
    await still_runs()

    with monkeypatch.context() as patch:
        patch.setattr(template_capture, "_make_draft", plant(os.mkfifo))
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
        assert (rig.vms / NAME / layout.DRAFT).exists(), "QEMU hangs on its disk, so it cannot be let go yet"
        os.close(stuck)
    await still_runs()


async def test_start_fails_when_the_hook_fails(
    kept: Kept, rig: QemuRig, driver: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.lend_to(rig)

    async def is_no_vm(match: str) -> None:
        await driver.clone(spec(), rig.image, template=TEMPLATE)
        with pytest.raises(HypervisorError, match=match):
            await driver.start(spec())
        assert await driver.inventory() == (Observed(NAME, ours=True, running=False),)
        await driver.delete(NAME)
        assert rig.traces(NAME) == []

    monkeypatch.setattr(reinitialize, "SEED_BYTES", 63)
    await is_no_vm(f"{reinitialize.HOOK} in {NAME} failed: cannot do without NAME MAC NANOSECONDS SEED")
    monkeypatch.setattr(Monitor, "is_port_open", nobody_waits)
    await is_no_vm(rf"{reinitialize.HOOK} in {NAME} ended with 1: cannot reseed the kernel from 64 bytes")
    monkeypatch.setattr(reinitialize, "HOOK", "/bin/cat")  # it complains that its arguments are no files
    await is_no_vm(rf"/bin/cat in {NAME} ended with 1: .*No such file")


async def test_templates_of_another_machine_or_image_are_removed(
    kept: Kept, rig: QemuRig, driver: Hypervisor, new_driver: Callable[[], Hypervisor]
) -> None:
    kept.lend_to(rig)
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
