"""The QMP client of one QEMU process. Each operation has its own short connection, so a restart leaves none to repair.

QEMU serves one client at a time; a second one gets its greeting after the first has disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from agent.hypervisors.contract import HypervisorError
from agent.hypervisors.qemu.sockets import connect
from agent.processes.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# The library logs each failed connect as an error. This module raises all of them, and the caller decides.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

UNLIMITED: Final = 1 << 40
"""Bytes per second. QEMU's default of 128 MiB/s protects a network, but snapshots go to a local file."""
POLL_S: Final = 0.005
MIGRATING: Final = frozenset({"setup", "active", "device", "pre-switchover", "cancelling"})
FORWARD: Final = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(?P<host>\d+)\s+\S+\s+(?P<guest>\d+)\s")
"""A line of the monitor's `info usernet`, the only source of the host port that the kernel selected."""


class MonitorError(HypervisorError):
    """QEMU's monitor did not answer, or refused a command."""

    code = "monitor-error"


@contextlib.asynccontextmanager
async def monitor(vm: str, socket_path: Path, *, timeout_s: float) -> AsyncIterator[Monitor]:
    """Connect to a VM's monitor for as long as the block runs, at most `timeout_s`. Raises `MonitorError`."""
    client = QMPClient(vm)
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(connect(socket_path))
            try:
                yield Monitor(client)
            finally:
                # Raises again what the block raised, or that QEMU disconnected after the last answer.
                with contextlib.suppress(OSError, EOFError, QMPError):
                    await client.disconnect()
    except TimeoutError:
        raise MonitorError(f"the monitor of {vm} did not answer in {timeout_s:g} s") from None
    except (OSError, EOFError, QMPError) as error:
        raise MonitorError(f"the monitor of {vm} failed: {error or 'QEMU disconnected'}") from error


class Monitor:
    """One connection to a monitor. A lost connection is raised at the end of the `monitor` block."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def run(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Run a command and return its answer. Underscores in argument names become dashes.

        Raises `MonitorError` if QEMU refuses it.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return await self._client.execute(command, named or None)
        except ExecuteError as error:
            raise MonitorError(f"QEMU refused {command}: {error}") from error

    async def forwarded_ports(self) -> dict[int, int]:
        """Return the host port of each forwarded guest port."""
        return parse_forwards(str(await self.run("human-monitor-command", command_line="info usernet")))

    async def is_port_open(self, port: str) -> bool:
        """Whether a program in the guest has that port open."""
        devices = await self.run("query-chardev")
        return any(device["label"] == port and device["frontend-open"] for device in devices)

    async def quit(self) -> None:
        """End the process cleanly. QEMU may disconnect before it answers."""
        with contextlib.suppress(ExecInterruptedError, EOFError):
            await self.run("quit")

    async def continue_vm(self) -> None:
        """Let a stopped VM run again. Raises `MonitorError`.

        QEMU refuses for a moment after it reported a completed migration, and sends no event when that ends.
        """
        while (await self.run("query-status"))["status"] == "finish-migrate":  # noqa: ASYNC110 - in another process
            await asyncio.sleep(POLL_S)
        await self.run("cont")

    async def cancel_migration(self) -> None:
        """Cancel the migration out, if there is one, and return when it has ended. Raises `MonitorError`."""
        await self.run("migrate_cancel")
        while (await self.run("query-migrate")).get("status") in MIGRATING:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(POLL_S)

    async def migrate_out(self, snapshot: Path, *, without_ram: bool = False) -> None:
        """Save the snapshot of a stopped VM to a file, which is complete on return. Raises `MonitorError`.

        With `without_ram`, main memory in a shared file is left out: that file already holds it.
        """
        await self.run("migrate-set-parameters", max_bandwidth=UNLIMITED)
        await self._migrate("migrate", snapshot, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, without_ram=without_ram)

    async def migrate_in(self, snapshot: Path, *, without_ram: bool = False) -> None:
        """Load the snapshot of a VM that was started with `-incoming defer`. Raises `MonitorError`."""
        await self._migrate("migrate-incoming", snapshot, os.O_RDONLY, without_ram=without_ram)

    async def _migrate(self, command: str, snapshot: Path, flags: int, *, without_ram: bool) -> None:
        capabilities = {"events": True, "x-ignore-shared": without_ram}
        settings = [{"capability": name, "state": state} for name, state in capabilities.items()]
        await self.run("migrate-set-capabilities", capabilities=settings)
        await self._pass_file(snapshot, flags)
        with self._client.listener("MIGRATION") as listener:
            await self.run(command, uri=f"fd:{snapshot.name}")
            if await _wait_for_end(listener) != "completed":
                status = await self.run("query-migrate")
                raise MonitorError(f"{command} of {snapshot} failed: {status.get('error-desc', status.get('status'))}")

    async def _pass_file(self, path: Path, flags: int) -> None:
        """Open a file and pass its descriptor to QEMU, under the file's name.

        A pipe through another program would hide an empty or incomplete file.
        """
        try:
            descriptor = await run_in_thread(partial(os.open, path, flags, 0o600), if_cancelled=os.close)
        except OSError as error:
            raise MonitorError(f"{path} cannot be opened: {error}", remedy="check the data volume") from error
        try:
            self._client.send_fd_scm(descriptor)
            await self.run("getfd", fdname=path.name)
        finally:
            os.close(descriptor)


async def _wait_for_end(listener: EventListener) -> str:
    """Return the final status of a migration once it has ended."""
    async for event in listener:
        status = cast("dict[str, str]", event["data"])["status"]
        if status in {"completed", "failed", "cancelled"}:
            return status
    return "interrupted"


def parse_forwards(info_usernet: str) -> dict[int, int]:
    """Return host ports by guest port, parsed from the text of `info usernet`."""
    return {int(match["guest"]): int(match["host"]) for match in FORWARD.finditer(info_usernet)}
