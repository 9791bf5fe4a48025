"""The real agent under a simulated launchd: an upgrade in place keeps the VM and its lease."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import aiohttp
import pytest

from agent.host.service.launchctl import Launchctl
from agent.host.service.launchd_service import Service
from agent.host.service.plist import newsyslog, render
from agent.processes.command import CommandRunner
from tests.support.launchd import Launchd

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.lib.host import Host

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


async def warm(host: Host) -> str:
    """Wait for the single VM of an agent that may still be starting; return its name."""
    while True:
        try:
            (name,) = await host.wait_until_warm(1)
        except aiohttp.ClientConnectionError:
            continue
        return name


async def test_upgrade_keeps_vms_and_leases(
    host: Host, layout: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launchd = Launchd(tmp_path)
    for name, value in launchd.environment.items():
        monkeypatch.setenv(name, value)
    program = tmp_path / "hearth"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent "$@"\n')
    program.chmod(0o755)
    runner, target = CommandRunner(), launchd.daemon()
    service = Service(target, Launchctl(runner), runner)
    host.assign("small", layout["1.0"], warm=1)
    try:
        plist = render(target, program=program, config=host.config, environment={})
        await service.install(plist, newsyslog(target))
        vm = await warm(host)
        lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 30})
        vm_pid, (agent_pid,) = host.vm_pid(vm), launchd.pids()

        upgraded = render(target, program=program, config=host.config, environment={"TART_HOME": "/Volumes/VMs"})
        assert (await service.install(upgraded, newsyslog(target)))[0]

        assert launchd.pids() != [agent_pid]
        while True:
            try:
                result = await host.get(f"/v1/leases/{lease['id']}")
                break
            except aiohttp.ClientConnectionError:
                continue
        assert result["vm"] == vm
        assert host.vm_pid(vm) == vm_pid
        stops = [line for line in host.read_log() if line["event"] == "agent-stopped"]
        assert len(stops) == 1, "the old agent must stop cleanly"
    finally:
        await service.uninstall()
        launchd.close()
