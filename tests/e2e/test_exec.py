"""`hearth exec` on a real guest: exit code, output, input, and teardown of the VM after an interrupt."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scripts.lib.host import Host

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


async def start(host: Host, *command: str) -> asyncio.subprocess.Process:
    arguments = ("-m", "agent", "exec", "small", "-i", "--", *command)
    environment = {**os.environ, "HEARTH_CONFIG": str(host.config)}
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def test_exec_returns_guest_exit_code_and_vm_is_replaced(host: Host, layout: dict[str, str]) -> None:
    host.assign("small", layout["1.0"], warm=1)
    await host.start()
    (first,) = await host.wait_until_warm(1)
    assert await host.run_hearth("exec", "small", "--", "sh", "-c", "exit 7", check=False) == (7, "", "")
    (second,) = await host.wait_until_warm(1, without=first)

    process = await start(host, "sh", "-c", "read line; echo got $line; exec sleep 1000")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"word\n")
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"got word\n"
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"")
    (third,) = await host.wait_until_warm(1, without=second)

    assert len({first, second, third}) == 3
    assert host.journal_keys("leases") == []
    assert host.journal_keys("vms") == [third]
    assert len(host.vm_processes()) == 1
