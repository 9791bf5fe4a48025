"""The anka driver against the quirks of Anka in docs/mac-contracts.md, on the simulator."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psutil
import pytest

from agent.anka.command import AnkaError, AnkaNotFoundError, AnkaReplyError, parse_reply
from agent.config import AnkaConfig
from agent.domain.model import Observed, VmSize
from agent.hypervisors.anka import AnkaHypervisor
from agent.hypervisors.anka import running as anka_running
from agent.hypervisors.anka.license import license_fact
from agent.hypervisors.contract import (
    GuestError,
    HealthFact,
    HypervisorError,
    HypervisorUnavailableError,
    SlotsTakenError,
    VmNotFoundError,
    VmNotRunningError,
    VmSpec,
)
from agent.processes.command import CommandError, CommandResult
from tests.hypervisors.anka_rig import AnkaRig, anka_image
from tests.hypervisors.rigs import spec
from tests.hypervisors.test_conformance import Exits, pid_of, start_vm
from tests.support.processes import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

NAME = spec().name


@pytest.fixture
def host(tmp_path: Path) -> Iterator[AnkaRig]:
    host = AnkaRig(tmp_path)
    yield host
    host.clean_up()


@pytest.fixture
async def anka(host: AnkaRig) -> AsyncIterator[AnkaHypervisor]:
    driver = host.driver()
    yield driver
    await driver.close()


def ended(stdout: str, code: int = 0, stderr: str = "") -> CommandResult:
    return CommandResult(code, stdout.encode(), stderr.encode(), truncated=False, duration_s=0)


def test_reply_is_parsed_from_the_last_line() -> None:
    stdout = '{"status": "OK", "body": {"progress": 50}}\n\n{"status":"OK","body":[1],"message":"done"}\n \n'
    assert parse_reply(ended(stdout), "anka pull").body == [1]
    assert parse_reply(ended(stdout.rstrip()), "anka pull").message == "done"


@pytest.mark.parametrize(
    "stdout", ["", "\n", "ok", "[]", '{"body": []}', '{"status": "OK"', "\x00\xff{]", "[" * 100_000]
)
def test_invalid_reply_raises_an_error(stdout: str) -> None:
    with pytest.raises(AnkaReplyError, match="it went wrong"):
        parse_reply(ended(stdout, stderr="it went wrong"), "anka list")


@pytest.mark.parametrize(
    ("document", "code", "kind"),
    [
        ({"status": "ERROR", "code": 3, "message": "x: nothing"}, 1, AnkaNotFoundError),
        ({"status": "ERROR", "message": "x: not found"}, 1, AnkaNotFoundError),
        ({"status": "ERROR", "code": 7, "message": "no"}, 0, AnkaError),
        ({"status": "OK", "body": {}}, 1, AnkaError),
    ],
)
def test_failure_is_detected_by_status_or_exit_code(
    document: dict[str, object], code: int, kind: type[AnkaError]
) -> None:
    with pytest.raises(kind) as failure:
        parse_reply(ended(json.dumps(document), code), "anka show")
    assert type(failure.value) is kind


async def test_inventory_raises_when_anka_lists_an_object(host: AnkaRig, anka: AnkaHypervisor) -> None:
    (host.home.root / "eula-open").touch()
    with pytest.raises(AnkaReplyError, match="accept-eula"):
        await anka.inventory()


async def test_inventory_lists_foreign_vms_but_no_templates(host: AnkaRig, anka: AnkaHypervisor) -> None:
    assert await anka.inventory() == ()
    host.faults(list={"invent": ["foreign"]})
    assert await anka.inventory() == (Observed("foreign", ours=False, running=True),)
    assert anka.capabilities.counts_foreign_slots


async def test_clone_uses_the_requested_tag(host: AnkaRig, anka: AnkaHypervisor) -> None:
    template = host.home.find("macos")
    host.home.layer("next").write_text('{"serves": "2.0"}')
    template.tags["v2"] = template.layers = ["next", "base"]
    template.version = "v2"
    host.home.save(template)
    await anka.clone(spec(), host.image)
    assert host.home.find(NAME).layers == ["base"], "v2 is checked out, v1 is the requested tag"


async def test_clone_sets_size_and_ports(host: AnkaRig, anka: AnkaHypervisor) -> None:
    template = host.home.find("macos")
    template.rules = [{"name": "ssh", "protocol": "tcp", "guest_port": 22}]
    host.home.save(template)
    await anka.clone(VmSpec(NAME, VmSize(3, 6144), (22, 8080)), host.image)
    made = host.home.find(NAME)
    assert (made.cpu_cores, made.ram_size) == (3, 6 << 30)
    assert [rule["guest_port"] for rule in made.rules] == [22, 8080], "the template's rule is not duplicated"
    assert all("host_port" not in rule for rule in made.rules), "a fixed host port may be in use"


async def test_clone_refuses_an_image_that_is_not_a_template(host: AnkaRig, anka: AnkaHypervisor) -> None:
    with pytest.raises(HypervisorError, match="not an Anka template"):
        await anka.clone(spec(), anka_image(host.folder, ""))
    await anka.delete(NAME)
    with pytest.raises(HypervisorError, match="not found"):
        await anka.clone(spec(), anka_image(host.folder, f"{host.home.find('macos').uuid}:v9"))


async def test_vm_without_known_process_is_watched_by_polling(
    host: AnkaRig, anka: AnkaHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anka_running, "POLL_S", 0.05)
    (host.home.root / "no-pid").touch()
    exits = Exits(anka)
    await anka.clone(spec(), host.image)
    await anka.start(spec())
    await anka.ping(NAME, timeout_s=20)
    assert (await anka.inventory())[0].pid is None
    host.kill(NAME)
    assert (await exits.next()).name == NAME
    await anka.stop(NAME, grace_s=0)
    await anka.delete(NAME)
    assert host.traces(NAME) == []


async def test_start_of_a_third_vm_is_refused_with_a_remedy(host: AnkaRig, anka: AnkaHypervisor) -> None:
    for number in (1, 2, 3):
        await anka.clone(spec(number), host.image)
    for number in (1, 2):
        await anka.start(spec(number))
    with pytest.raises(SlotsTakenError, match="end VMs of other users"):
        await anka.start(spec(3))
    assert problems(await anka.health()) == []


async def test_leaked_slot_is_a_condition_until_a_vm_starts(host: AnkaRig, anka: AnkaHypervisor) -> None:
    host.home.write("leaked.json", 2)
    await anka.clone(spec(), host.image)
    with pytest.raises(SlotsTakenError, match=r"maximum number of running instances.*a slot leaked"):
        await anka.start(spec())
    assert problems(await anka.health()) == ["SlotsLeaked"]
    host.home.write("leaked.json", 1)
    await anka.start(spec())
    assert problems(await anka.health()) == []


def problems(facts: tuple[HealthFact, ...]) -> list[str]:
    return [fact.reason for fact in facts if fact.reason]


async def test_failed_vm_is_stopped_by_force_and_deleted(host: AnkaRig, anka: AnkaHypervisor) -> None:
    exits = Exits(anka)
    await start_vm(anka, host)
    host.kill(NAME)
    await exits.next()
    assert host.home.status(host.home.find(NAME)) == "failed"
    with pytest.raises(HypervisorError, match="failed state"):
        await anka.start(spec())
    await anka.stop(NAME, grace_s=0)
    assert host.home.status(host.home.find(NAME)) == "stopped"
    await anka.delete(NAME)
    assert host.traces(NAME) == []


async def test_execute_does_not_start_a_stopped_vm(host: AnkaRig, anka: AnkaHypervisor) -> None:
    await anka.clone(spec(), host.image)
    with pytest.raises(VmNotRunningError):
        await anka.execute(NAME, ("true",), timeout_s=5)
    assert host.processes(NAME) == []
    assert not any(call[0] == "run" for call in host.calls())


async def test_disconnected_guest_raises_guest_error(host: AnkaRig, anka: AnkaHypervisor) -> None:
    await start_vm(anka, host, booted=True)
    result = await anka.execute(NAME, ("exit", "125"), timeout_s=5)
    assert result.exit_code == 125, "125 from the guest's command is an exit code"
    template = host.home.layer("base")
    template.write_text('{"unhealthy": true}')
    with pytest.raises(GuestError, match="did not answer"):
        await anka.clone(spec(2), host.image)
        await anka.start(spec(2))
        await anka.ping(spec(2).name, timeout_s=0.5)


@pytest.mark.parametrize(
    ("command", "message"), [("start", "is started, but it does not run"), ("delete", "still listed")]
)
async def test_reported_success_of_anka_is_verified(
    host: AnkaRig, anka: AnkaHypervisor, command: str, message: str
) -> None:
    await anka.clone(spec(), host.image)
    host.faults(**{command: {"lie": True}})
    with pytest.raises(HypervisorError, match=message):
        await (anka.start(spec()) if command == "start" else anka.delete(NAME))


async def test_vm_is_killed_when_anka_stop_has_no_effect(host: AnkaRig, anka: AnkaHypervisor) -> None:
    await start_vm(anka, host)
    host.faults(stop={"lie": True})
    await anka.stop(NAME, grace_s=0.5)
    assert host.processes(NAME) == []
    host.faults()
    await anka.stop(NAME, grace_s=0)
    await anka.delete(NAME)


async def test_clone_raises_when_anka_clone_has_no_effect(host: AnkaRig, anka: AnkaHypervisor) -> None:
    host.faults(clone={"lie": True})
    with pytest.raises(AnkaNotFoundError):
        await anka.clone(spec(), host.image)
    await anka.delete(NAME)
    assert host.traces(NAME) == []


@pytest.mark.parametrize("fault", [{"half": True}, {"die_at": 1}, {"die_at": 2}])
async def test_interrupted_clone_is_listed_and_removed(
    host: AnkaRig, anka: AnkaHypervisor, fault: dict[str, object]
) -> None:
    host.faults(clone=fault)
    with pytest.raises(CommandError):
        await anka.clone(spec(), host.image)
    host.faults()
    assert await anka.inventory() == (Observed(NAME, ours=True, running=False),)
    with pytest.raises(HypervisorError, match="is incomplete"):
        await anka.start(spec())
    await anka.delete(NAME)
    assert host.traces(NAME) == []


async def expect_damaged(driver: AnkaHypervisor, pid: int) -> None:
    """List until the running VM is reported as damaged: the first listings that omit it are not trusted."""
    for _ in range(anka_running.OMISSIONS - 1):
        with pytest.raises(HypervisorError, match="omits"):
            await driver.inventory()
    (vm,) = await driver.inventory()
    assert (vm.running, vm.pid, bool(vm.damaged)) == (True, pid, True)


async def test_listing_that_omits_a_running_vm_is_not_trusted(host: AnkaRig, anka: AnkaHypervisor) -> None:
    pid = await start_vm(anka, host)
    host.faults(list={"omit": [NAME]})
    for _ in range(anka_running.OMISSIONS - 1):
        with pytest.raises(HypervisorError, match="omits"):
            await anka.inventory()
    host.faults()
    assert await pid_of(anka, NAME) == pid
    assert not (await anka.inventory())[0].damaged


async def test_vm_without_files_is_listed_as_damaged_and_stopped(host: AnkaRig, anka: AnkaHypervisor) -> None:
    pid = await start_vm(anka, host)
    shutil.rmtree(host.home.vms / host.home.find(NAME).uuid)
    await expect_damaged(anka, pid)
    await anka.stop(NAME, grace_s=0)
    await anka.delete(NAME)
    assert await anka.inventory() == ()
    assert host.traces(NAME) == []


async def test_vm_lost_before_a_restart_is_stopped(host: AnkaRig, anka: AnkaHypervisor) -> None:
    """The next driver knows of the VM only from the record: no listing contains it."""
    pid = await start_vm(anka, host)
    await anka.close()
    shutil.rmtree(host.home.vms / host.home.find(NAME).uuid)
    next_driver = host.driver()
    await expect_damaged(next_driver, pid)
    await next_driver.stop(NAME, grace_s=0)
    await next_driver.delete(NAME)
    assert host.traces(NAME) == []
    await next_driver.close()


async def test_record_of_an_ended_process_is_ignored(host: AnkaRig, anka: AnkaHypervisor) -> None:
    await start_vm(anka, host)
    await anka.close()
    host.kill(NAME)
    await eventually(lambda: not host.processes(NAME))
    next_driver = host.driver()
    assert [vm.running for vm in await next_driver.inventory()] == [False]
    await next_driver.close()


@pytest.mark.parametrize("fault", [{"garbage": True}, {"empty_body": True}, {"fail": "internal error"}])
async def test_unreadable_listing_raises_an_error(
    host: AnkaRig, anka: AnkaHypervisor, fault: dict[str, object]
) -> None:
    host.faults(list=fault)
    with pytest.raises(AnkaError):
        await anka.inventory()


@pytest.mark.parametrize("fault", [{"hang": True}, {"hang": True, "ignore_term": True}])
async def test_hung_anka_is_killed_and_leaves_no_process(host: AnkaRig, fault: dict[str, object]) -> None:
    host.config = host.config.model_copy(update={"timeout_s": 0.5})
    driver = host.driver()
    host.faults(list=fault)
    began_s = time.monotonic()
    with pytest.raises(CommandError, match=r"did not end in 0\.5 s"):
        await driver.inventory()
    assert time.monotonic() - began_s < 8
    program = str(host.binary)
    await eventually(
        lambda: not any(program in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    )
    await driver.close()


async def test_vm_can_be_stopped_after_a_hung_start(host: AnkaRig) -> None:
    driver = host.driver()
    await driver.clone(spec(), host.image)
    host.config = host.config.model_copy(update={"start_timeout_s": 0.5})
    short_timeout_driver = host.driver()
    host.faults(start={"hang": True})
    with pytest.raises(CommandError):
        await short_timeout_driver.start(spec())
    await short_timeout_driver.close()
    host.faults(start={"half": True})
    with pytest.raises(HypervisorError, match="No child processes"):
        await driver.start(spec())
    assert host.processes(NAME), "the VM runs nevertheless"
    await driver.stop(NAME, grace_s=0)
    await driver.delete(NAME)
    assert host.traces(NAME) == []
    await driver.close()


async def test_missing_anka_error_has_a_remedy(tmp_path: Path) -> None:
    driver = AnkaHypervisor(AnkaConfig(binary=str(tmp_path / "anka")), records_dir=tmp_path)
    with pytest.raises(HypervisorUnavailableError, match="install Anka"):
        await driver.preflight()
    await driver.close()


async def test_start_of_an_unknown_vm_raises(anka: AnkaHypervisor) -> None:
    with pytest.raises(VmNotFoundError):
        await anka.start(spec())


NOW = datetime(2026, 8, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ({"status": "valid", "license_type": "com.veertu.anka.entplus"}, ""),
        ({"status": "valid", "license_type": "com.veertu.anka.entplus", "expires": "30-dec-2026"}, ""),
        ({"status": "valid", "license_type": "com.veertu.anka.entplus", "expires": "17-aug-2026"}, "LicenseExpiring"),
        ({"status": "valid", "license_type": "com.veertu.anka.develop"}, "LicenseUnfit"),
        ({"status": "expired"}, "LicenseInvalid"),
        ({}, "LicenseInvalid"),
    ],
)
def test_license_state_becomes_a_health_fact(shown: dict[str, str], reason: str) -> None:
    fact = license_fact(shown, NOW)
    assert (fact.condition, fact.reason) == ("LicenseValid", reason)


async def test_invalid_license_is_reported_and_blocks_starts(host: AnkaRig, anka: AnkaHypervisor) -> None:
    assert problems(await anka.health()) == []
    host.home.write("license.json", {"status": "expired"})
    assert problems(await anka.health()) == [], "a valid license is read again only after a period"
    driver = host.driver()
    await driver.preflight()
    assert problems(await driver.health()) == ["LicenseInvalid"]
    await driver.clone(spec(), host.image)
    with pytest.raises(HypervisorError, match="Wrong host for license"):
        await driver.start(spec())
    host.home.write("license.json", {"status": "valid"})
    assert problems(await driver.health()) == [], "an invalid license is read again each time"
    await asyncio.gather(driver.close(), anka.close())
