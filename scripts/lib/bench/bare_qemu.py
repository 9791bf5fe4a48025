"""Floor for the pool benchmark: a guest booted, saved and resumed by bare QEMU commands with the agent's arguments.

The agent takes no part, and QEMU uses only features that every release has: a resume reads the memory from a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT_S: Final = 120.0
POLL_S: Final = 0.002
PING_PERIOD_S: Final = 0.05
"""Pings are repeated because a ping to a guest that has not booted yet is lost."""
SETTLE_S: Final = 2.0
"""Time for a guest to finish its boot after its agent answers first."""


class BareGuest:
    """A guest with the arguments of a booted VM of the agent, in the folder `scratch`."""

    def __init__(self, pid: int, vm: str, vm_directory: Path, scratch: Path) -> None:
        self._scratch = scratch
        self._command = _command(pid, vm, scratch)
        self._base = ("raw", _backing(vm_directory))

    async def boot_s(self) -> float:
        """Return the seconds from the command to the first answered ping.

        The overlay is made before the clock starts: only the hypervisor and the guest are measured.
        """
        await asyncio.to_thread(_prepare, *self._base, self._scratch)
        began_s = time.monotonic()
        async with _running(self._command, self._scratch):
            return time.monotonic() - began_s

    async def save(self, folder: Path) -> None:
        """Boot a guest and save its memory and disk in `folder`, by the commands in QEMU's manual."""
        await asyncio.to_thread(_prepare, *self._base, self._scratch)
        async with _running(self._command, self._scratch) as monitor:
            await asyncio.sleep(SETTLE_S)
            await monitor.execute("stop")
            await monitor.execute("migrate", uri=f"exec:cat >{self._scratch / 'memory'}")
            await monitor.wait_until("query-migrate", "completed")
            await monitor.execute("quit")
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await asyncio.to_thread(self._scratch.rename, folder)

    async def resume_s(self, folder: Path) -> float:
        """Resume the guest of `save`; return the seconds to the first answered ping.

        The guest keeps its identity: only the hypervisor's work is measured, not the reinitialisation of the guest.
        """
        await asyncio.to_thread(_prepare, "qcow2", folder / "disk.qcow2", self._scratch)
        command = [*self._command, "-incoming", f"exec:cat {folder / 'memory'}"]
        began_s = time.monotonic()
        async with _running(command, self._scratch):
            return time.monotonic() - began_s


class _Monitor:
    """A client of QEMU's monitor (QMP)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def execute(self, command: str, **arguments: object) -> dict[str, Any]:
        message = {"execute": command, "arguments": arguments}
        self._writer.write(json.dumps(message).encode() + b"\n")
        while not {"return", "error"} & (answer := json.loads(await self._reader.readline())).keys():
            pass  # the greeting, and events
        found: dict[str, Any] = answer
        return found

    async def wait_until(self, command: str, status: str, *, resend: str = "") -> None:
        """Poll a query until it returns `status`; send the command `resend` before each query."""
        while True:
            if resend:
                await self.execute(resend)
            if (await self.execute(command)).get("return", {}).get("status") == status:
                return
            await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def _running(command: list[str], scratch: Path) -> AsyncIterator[_Monitor]:
    """Run a guest while the block runs. The block begins when the guest agent answers."""
    with (scratch / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=scratch, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(LIMIT_S), _connected(scratch / "monitor.sock") as streams:
            monitor = _Monitor(*streams)
            await monitor.execute("qmp_capabilities")
            # A guest that was saved while paused needs `cont` after QEMU has loaded it; an earlier one has no effect.
            await monitor.wait_until("query-status", "running", resend="cont")
            await _wait_for_guest_agent(scratch / "agent.sock")
            yield monitor
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _wait_for_guest_agent(socket: Path) -> None:
    async with _connected(socket) as (reader, writer):
        answer = asyncio.ensure_future(reader.readline())
        try:
            while not answer.done():
                writer.write(b'{"execute": "guest-ping"}\n')
                await asyncio.wait([answer], timeout=PING_PERIOD_S)
        finally:
            answer.cancel()


@contextlib.asynccontextmanager
async def _connected(socket: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(str(socket))
            break
        except OSError:
            await asyncio.sleep(POLL_S)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _command(pid: int, vm: str, directory: Path) -> list[str]:
    """Return the command of a running VM, changed to run next to it: sockets by path, files in `directory`."""
    argv = psutil.Process(pid).cmdline()
    argv[argv.index("-name") + 1] = "bare"
    argv[argv.index("-pidfile") + 1] = str(directory / "bare.pid")
    return [re.sub(r"(id=(\w+)),fd=\d+", r"\1,path=\2.sock", part).replace(vm, "bare") for part in argv]


def _backing(vm_directory: Path) -> Path:
    """Return the backing file of a VM's disk."""
    output = subprocess.check_output(["qemu-img", "info", "-U", "--output=json", vm_directory / "disk.qcow2"])
    return Path(json.loads(output)["full-backing-filename"])


def _prepare(kind: str, base: Path, scratch: Path) -> None:
    """Create an overlay on a disk in an empty folder."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    overlay = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", str(base), str(scratch / "disk.qcow2"))
    subprocess.run(overlay, check=True)
