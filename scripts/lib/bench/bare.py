"""The floor: a guest booted by a bare QEMU command, with the agent's own arguments, until its guest agent answers."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

import psutil

BOOT_LIMIT_S: Final = 120.0
ASK_AGAIN_S: Final = 0.05
PING: Final = b'{"execute": "guest-ping"}\n'


def bare_command(pid: int, vm: str, directory: Path) -> list[str]:
    """Return the command of a running VM, changed to run beside it: sockets by path, files in `directory`."""
    argv = psutil.Process(pid).cmdline()
    argv[argv.index("-name") + 1] = "bare"
    argv[argv.index("-pidfile") + 1] = str(directory / "bare.pid")
    return [re.sub(r"(id=(\w+)),fd=\d+", r"\1,path=\2.sock", part).replace(vm, "bare") for part in argv]


async def boot_s(pid: int, vm: str, vm_directory: Path, scratch: Path) -> float:
    """Boot a guest as the running VM `vm` was, and return the seconds from the command to the first ping answered.

    The overlay is made before the clock starts: only the hypervisor and the guest are measured.
    """
    await asyncio.to_thread(_prepare, "raw", _backing(vm_directory), scratch)
    return await _answered_s(bare_command(pid, vm, scratch), scratch)


async def resume_s(pid: int, vm: str, template: Path, scratch: Path) -> float:
    """Start a guest from a template's memory as the running VM `vm` was; return the seconds to the first ping answered.

    It stays the one it was saved from: only the hypervisor's work is measured, not the guest's becoming another.
    """
    await asyncio.to_thread(_prepare, "qcow2", template / "disk.qcow2", scratch)
    command = bare_command(pid, vm, scratch)
    command[command.index("-incoming") + 1] = f"exec:cat {template / 'memory'}"
    return await _answered_s(command, scratch)


async def _answered_s(command: list[str], scratch: Path) -> float:
    began_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, cwd=scratch, stdin=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(BOOT_LIMIT_S):
            await _until_it_answers(scratch)
        return time.monotonic() - began_s
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _backing(vm_directory: Path) -> Path:
    """Return the disk that a VM's own lies on."""
    told = subprocess.check_output(["qemu-img", "info", "-U", "--output=json", vm_directory / "disk.qcow2"])
    return Path(json.loads(told)["full-backing-filename"])


def _prepare(kind: str, base: Path, scratch: Path) -> None:
    """Make an overlay on a disk in a folder of its own."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    overlay = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", str(base), str(scratch / "disk.qcow2"))
    subprocess.run(overlay, check=True)


async def _until_it_answers(scratch: Path) -> None:
    """Ping until there is an answer: what is sent before the guest's agent listens is lost.

    A guest that was saved while it was paused is told to go on as often, since it takes that only once it is loaded.
    """
    reader, agent = await _connect(scratch / "agent.sock")
    _, monitor = await _connect(scratch / "monitor.sock")
    monitor.write(b'{"execute": "qmp_capabilities"}\n')
    answer = asyncio.ensure_future(reader.readline())
    try:
        while not answer.done():
            monitor.write(b'{"execute": "cont"}\n')
            agent.write(PING)
            await asyncio.wait([answer], timeout=ASK_AGAIN_S)
    finally:
        answer.cancel()
        for writer in (agent, monitor):
            writer.transport.abort()


async def _connect(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_unix_connection(str(socket))
        except OSError:
            await asyncio.sleep(ASK_AGAIN_S)
