"""Keeps the Mac awake while VMs run, by caffeinate(8), which macOS ships.

A power assertion made in this process would need IOKit by hand, and would end with it just the same. caffeinate
watches this process (`-w`) and lets go when it ends, however it ends: an agent that comes back within seconds asserts
anew, long before the shortest idle sleep of a minute.
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

HOLD_S: Final = 86_400.0
"""How long one caffeinate holds on at most; then the next one does."""
LOOK_S: Final = 5.0
RETRY_S: Final = 60.0


class Awake:
    """Holds the assertion while `needed` says so."""

    def __init__(
        self, runner: CommandRunner, needed: Callable[[], bool], *, program: str = "caffeinate", look_s: float = LOOK_S
    ) -> None:
        self._runner = runner
        self._needed = needed
        self._program = program
        self._look_s = look_s

    async def run(self) -> None:
        """Hold and let go until cancelled. Leaves no process behind."""
        holding: asyncio.Task[None] | None = None
        try:
            while True:
                needed = self._needed()
                if needed and holding is None:
                    holding = asyncio.create_task(self._hold(), name="caffeinate")
                elif not needed and holding is not None:
                    await _end(holding)
                    holding = None
                await asyncio.sleep(self._look_s)
        finally:
            if holding is not None:
                await _end(holding)

    async def _hold(self) -> None:
        """Prevent idle sleep (-i) and, on mains, all sleep (-s)."""
        command = Command((self._program, "-i", "-s", "-w", str(os.getpid())), HOLD_S)
        while True:
            try:
                await self._runner.run(command, check=False)
            except CommandTimeoutError:
                continue
            except CommandError as error:
                log.warning("cannot-stay-awake", error=error.message)
            await asyncio.sleep(RETRY_S)  # it ended by itself, or cannot be run


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
