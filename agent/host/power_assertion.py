"""Prevents sleep of the Mac while VMs run, with caffeinate(8), which is part of macOS.

A power assertion made in this process would need IOKit bindings and would end with the process as well. caffeinate
watches this process (`-w`) and ends with it, however it ends. An agent that restarts within seconds asserts again long
before the shortest idle sleep of one minute.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from agent.processes.command import Command, CommandError, CommandTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.processes.command import CommandRunner

log = structlog.get_logger()

MAX_HOLD_S: Final = 86_400.0
"""The longest run of one caffeinate; then another one replaces it."""
POLL_S: Final = 5.0
RETRY_S: Final = 60.0


class PowerAssertion:
    """Holds the assertion while `is_needed` returns true."""

    def __init__(
        self,
        runner: CommandRunner,
        is_needed: Callable[[], bool],
        *,
        program: str = "caffeinate",
        poll_s: float = POLL_S,
    ) -> None:
        self._runner = runner
        self._is_needed = is_needed
        self._program = program
        self._poll_s = poll_s

    async def run(self) -> None:
        """Hold and release the assertion until cancelled. Leaves no process behind."""
        holding: asyncio.Task[None] | None = None
        try:
            while True:
                needed = self._is_needed()
                if needed and holding is None:
                    holding = asyncio.create_task(self._hold(), name="caffeinate")
                elif not needed and holding is not None:
                    await _cancel(holding)
                    holding = None
                await asyncio.sleep(self._poll_s)
        finally:
            if holding is not None:
                await _cancel(holding)

    async def _hold(self) -> None:
        """Prevent idle sleep (-i) and, on AC power, all sleep (-s)."""
        command = Command((self._program, "-i", "-s", "-w", str(os.getpid())), MAX_HOLD_S)
        while True:
            try:
                await self._runner.run(command, check=False)
            except CommandTimeoutError:
                continue
            except CommandError as error:
                log.warning("power-assertion-failed", error=error.message)
            await asyncio.sleep(RETRY_S)  # caffeinate ended by itself, or cannot be run


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
