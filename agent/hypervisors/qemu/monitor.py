"""Speaks QMP to one QEMU process. One short-lived connection for each operation: nothing to mend after a restart.

QEMU serves one client at a time; a second one waits for its greeting until the first hangs up.
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

# The library logs each failed connect as an error. All of them are raised here, for whoever asked to judge.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

UNLIMITED: Final = 1 << 40
"""Bytes per second. QEMU's default of 128 MiB/s spares a network; this goes to a local file."""
POLL_S: Final = 0.005
MIGRATING: Final = frozenset({"setup", "active", "device", "pre-switchover", "cancelling"})
FORWARD: Final = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(?P<host>\d+)\s+\S+\s+(?P<guest>\d+)\s")
"""A line of the monitor's `info usernet`, the only place that tells which host port the kernel chose."""


class MonitorError(HypervisorError):
    """QEMU's monitor did not answer, or refused."""

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
                # It tells again what the block was told, or that QEMU hung up once all was said.
                with contextlib.suppress(OSError, EOFError, QMPError):
                    await client.disconnect()
    except TimeoutError:
        raise MonitorError(f"the monitor of {vm} did not answer in {timeout_s:g} s") from None
    except (OSError, EOFError, QMPError) as error:
        raise MonitorError(f"the monitor of {vm} failed: {error or 'it hung up'}") from error


class Monitor:
    """One connection to a monitor. A lost one is raised where the `monitor` block ends."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Run a command and return its answer. Underscores in argument names stand for dashes.

        Raises `MonitorError` when QEMU refuses it.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return await self._client.execute(command, named or None)
        except ExecuteError as error:
            raise MonitorError(f"QEMU refused {command}: {error}") from error

    async def forwarded_ports(self) -> dict[int, int]:
        """Return the host port of each forwarded guest port."""
        return parse_forwards(str(await self.ask("human-monitor-command", command_line="info usernet")))

    async def is_open(self, port: str) -> bool:
        """Whether a program in the guest has that port open."""
        ports = await self.ask("query-chardev")
        return any(one["label"] == port and one["frontend-open"] for one in ports)

    async def quit(self) -> None:
        """End the process in good order. It may hang up before it answers."""
        with contextlib.suppress(ExecInterruptedError, EOFError):
            await self.ask("quit")

    async def go_on(self) -> None:
        """Let a stopped VM run again. Raises `MonitorError`.

        QEMU refuses for a moment after it has told that a migration is completed, and tells nobody when it is over.
        """
        while (await self.ask("query-status"))["status"] == "finish-migrate":  # noqa: ASYNC110 - in another process
            await asyncio.sleep(POLL_S)
        await self.ask("cont")

    async def abandon_migration(self) -> None:
        """Return when no migration out is under way any more. Raises `MonitorError`."""
        await self.ask("migrate_cancel")
        while (await self.ask("query-migrate")).get("status") in MIGRATING:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(POLL_S)

    async def migrate_out(self, memory: Path, *, ram_apart: bool = False) -> None:
        """Save the memory of a stopped VM to a file. When it returns, the file is whole. Raises `MonitorError`.

        With `ram_apart`, main memory that is a file shared with QEMU is left out: it is saved as it is.
        """
        await self.ask("migrate-set-parameters", max_bandwidth=UNLIMITED)
        await self._migrate("migrate", memory, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, ram_apart=ram_apart)

    async def migrate_in(self, memory: Path, *, ram_apart: bool = False) -> None:
        """Load the memory of a VM that was started with `-incoming defer`. Raises `MonitorError`."""
        await self._migrate("migrate-incoming", memory, os.O_RDONLY, ram_apart=ram_apart)

    async def _migrate(self, command: str, memory: Path, flags: int, *, ram_apart: bool) -> None:
        capabilities = {"events": True, "x-ignore-shared": ram_apart}
        listed = [{"capability": name, "state": state} for name, state in capabilities.items()]
        await self.ask("migrate-set-capabilities", capabilities=listed)
        await self._hand_over(memory, flags)
        with self._client.listener("MIGRATION") as listener:
            await self.ask(command, uri=f"fd:{memory.name}")
            if await _outcome(listener) != "completed":
                status = await self.ask("query-migrate")
                raise MonitorError(f"{command} of {memory} failed: {status.get('error-desc', status.get('status'))}")

    async def _hand_over(self, path: Path, flags: int) -> None:
        """Open a file and give it to QEMU, which knows it by its name from then on.

        A pipe through another program would tell neither of an empty file nor of an unfinished one.
        """
        try:
            descriptor = await run_in_thread(partial(os.open, path, flags, 0o600), if_cancelled=os.close)
        except OSError as error:
            raise MonitorError(f"{path} cannot be opened: {error}", remedy="check the data volume") from error
        try:
            self._client.send_fd_scm(descriptor)
            await self.ask("getfd", fdname=path.name)
        finally:
            os.close(descriptor)


async def _outcome(listener: EventListener) -> str:
    """Wait until a migration has ended one way or the other."""
    async for event in listener:
        status = cast("dict[str, str]", event["data"])["status"]
        if status in {"completed", "failed", "cancelled"}:
            return status
    return "interrupted"


def parse_forwards(info_usernet: str) -> dict[int, int]:
    """Return host ports by guest port from the text of `info usernet`."""
    return {int(match["guest"]): int(match["host"]) for match in FORWARD.finditer(info_usernet)}
