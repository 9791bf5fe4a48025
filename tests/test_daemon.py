"""Start and stop of the real agent process over a simulated hypervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from agent.config import Config
from agent.images.service import open_images
from agent.images.vmconfig import Hardware
from scripts.lib.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scripts.lib.host import Document

pytestmark = pytest.mark.slow

STOP_S = 10.0


async def an_image(folder: Path) -> str:
    """Push a disk that no guest has to boot from and return its reference."""
    disk = folder / "disk.img"
    disk.write_bytes(os.urandom(1 << 16))
    reference = f"oci-layout:{folder}/registry:1"
    async with open_images(Config(data_dir=folder / "scratch")) as images:
        await images.push(disk, reference, hardware=Hardware(os="linux", arch="amd64", cpus=1, memory_mib=256))
    return reference


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    made = Host(Path(tempfile.mkdtemp(prefix="hearth-test-")))
    made.configure('[hypervisor]\nkind = "simulated"')
    try:
        yield made
    finally:
        await made.close()


AGENT_PROBE = '[[pools.{pool}.probes]]\nkind = "agent"\n'


async def test_agent_stops_in_order_on_sigterm(host: Host) -> None:
    host.assign("small", await an_image(host.directory), warm=2, probes=AGENT_PROBE)
    await host.start()
    await host.wait_until_warm(2)
    began_s = time.monotonic()
    assert await host.stop() == 0
    assert time.monotonic() - began_s < STOP_S
    lines = host.read_log()
    stopping = [line["event"] for line in lines].index("agent-stopping")
    # An effect is completed if its result was being written at the signal, for example `template-saved`.
    # Its lines name the action. A line without one would come from work that began after the signal.
    assert [line["event"] for line in lines[stopping + 1 :] if "action" not in line] == ["agent-stopped"]
    assert lines[-1]["event"] == "agent-stopped"
    assert not host.socket.exists()


async def test_all_files_are_private_under_any_umask(host: Host) -> None:
    """Logs, evidence, journal, images and VMs, also those that an older agent wrote."""
    old = host.data_dir / "evidence" / "hearth-small-old"
    old.mkdir(parents=True, mode=0o755)
    (old / "console.log").write_text("secret")
    (old / "console.log").chmod(0o644)
    host.assign("small", await an_image(host.directory), warm=1, probes=AGENT_PROBE)
    before = os.umask(0)
    try:
        await host.start()
    finally:
        os.umask(before)
    (name,) = await host.wait_until_warm(1)
    await host.call("DELETE", f"/v1/vms/{name}")
    await host.wait_until_warm(1, without=name)
    paths = [host.data_dir, *host.data_dir.rglob("*")]
    assert {"agent.lock", "journal.sqlite", "evidence", "console.log"} <= {path.name for path in paths}
    public = {path for path in paths if not path.is_symlink() and path.lstat().st_mode & 0o077}
    assert public == set()
    assert await host.stop() == 0


async def test_agent_stops_on_sigterm_when_started_with_it_blocked(host: Host) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        await host.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert await host.stop() == 0


async def test_host_document_has_vitals_and_failing_doctor_checks(host: Host) -> None:
    text = host.config.read_text()
    host.config.write_text(text.replace("disk_reserve_mib = 64", f"disk_reserve_mib = {1 << 40}"))
    await host.start(excused=frozenset({"disk"}))

    def is_disk_space_low(document: Document, _: list[Document]) -> bool:
        return any(condition["type"] == "DiskSpaceLow" for condition in document["conditions"])

    document = await host.wait_until(is_disk_space_low, timeout_s=30)
    condition = next(item for item in document["conditions"] if item["type"] == "DiskSpaceLow")
    assert (condition["status"], condition["problem"], condition["reason"]) == ("true", True, "DoctorFoundError")
    assert "set images.budget_mib" in condition["message"]
    assert document["cores"]["performance"] >= 1
    assert document["vitals"]["memory_pressure"] in ("normal", "warning", "critical", "unknown")


async def test_stop_refuses_waiting_leases_and_cancels_stuck_pulls(host: Host) -> None:
    async def never_answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requested.set()
        await ended.wait()
        writer.close()

    requested, ended = asyncio.Event(), asyncio.Event()
    registry = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    where = f"127.0.0.1:{registry.sockets[0].getsockname()[1]}"
    host.configure(f'[hypervisor]\nkind = "simulated"\n[images.registries."{where}"]\ninsecure = true')
    host.assign("small", f"{where}/ci/small:1", probes=AGENT_PROBE)
    await host.start()
    await asyncio.wait_for(requested.wait(), 20)
    async with aiohttp.ClientSession("http://hearth", connector=aiohttp.UnixConnector(str(host.socket))) as client:
        body = {"pool": "small", "holder": "job", "wait_s": 600}
        waiting = asyncio.create_task(client.post("/v1/leases", json=body))
        await host.wait_until(lambda document, _: document["pools"][0]["waiting"] == 1)
        began_s = time.monotonic()
        assert await host.stop() == 0
        assert time.monotonic() - began_s < STOP_S
        async with await asyncio.wait_for(waiting, 5) as response:
            assert (response.status, (await response.json())["code"]) == (409, "draining")
    ended.set()
    registry.close()


async def test_hangup_reloads_and_ends_no_agent(host: Host) -> None:
    await host.start()
    host.config.write_text(host.config.read_text().replace("slots = 2", "slots = 1"))
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGHUP):
        os.kill(host.pid, number)
    await host.wait_until(lambda document, _: document["slots"]["total"] == 1, timeout_s=30)
    assert "reload-requested" in [line["event"] for line in host.read_log()]
    assert await host.stop() == 0


async def test_agent_exits_immediately_on_a_second_signal(host: Host) -> None:
    await host.start()
    os.kill(host.pid, signal.SIGSTOP)
    os.kill(host.pid, signal.SIGTERM)
    os.kill(host.pid, signal.SIGINT)  # a different signal, because pending signals of the same number merge
    os.kill(host.pid, signal.SIGCONT)
    assert await host.wait() == 130


@pytest.mark.parametrize(("verb", "mode"), [("cordon", "cordoned"), ("drain", "draining")])
async def test_host_mode_survives_sigkill(host: Host, verb: str, mode: str) -> None:
    host.assign("small", await an_image(host.directory), warm=1, probes=AGENT_PROBE)
    await host.start()
    await host.wait_until_warm(1)
    await host.run_hearth(verb, "--reason", "new disks")
    await host.kill()
    await host.start()
    document = await host.get("/v1/host")
    assert (document["mode"]["mode"], document["mode"]["reason"]) == (mode, "new disks")
    code, _, err = await host.run_hearth("lease", "small", check=False)
    assert (code, f"this host is {mode} and grants no leases: new disks" in err) == (6, True)
    await host.wait_until(lambda _, vms: len([vm for vm in vms if vm["state"] == "ready"]) == (verb == "cordon"))
    await host.run_hearth("uncordon")
    await host.run_hearth("lease", "small", "--wait", "30s")


async def test_drain_removes_all_vms_when_their_leases_end(host: Host) -> None:
    host.assign("small", await an_image(host.directory), warm=2, probes=AGENT_PROBE)
    await host.start()
    await host.wait_until_warm(2)
    lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job"})
    draining = asyncio.create_task(host.run_hearth("drain", "--wait"))
    await host.wait_until(lambda _, vms: [vm["name"] for vm in vms] == [lease["vm"]])
    assert not draining.done()
    await host.call("DELETE", f"/v1/leases/{lease['id']}")
    assert (await asyncio.wait_for(draining, 30))[1] == "this host is empty\n"
    assert (await host.get("/v1/vms"))["vms"] == []
