"""Control of the agent process: kills it, restarts it as launchd would, reports an unexpected end."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Final

from scripts.lib.chaos.journal_reader import JournalReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.lib.chaos.expected_state import ExpectedState
    from scripts.lib.host import Host

POLL_S: Final = 0.002
"""Poll period for the journal event at which the agent is killed. Effects take longer than this."""
THROTTLE_S: Final = 0.5
START_LIMIT_S: Final = 60.0


class AgentEndedError(Exception):
    """The agent ended without being killed, or does not start again."""


class AgentControl:
    """Kills and starts the agent of one host."""

    def __init__(self, host: Host, expected: ExpectedState, log: Callable[[str], None]) -> None:
        self._host = host
        self._expected = expected
        self._log = log
        self._journal = JournalReader(host.data_dir / "journal.sqlite")
        self._lock = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Return whether the agent is being killed or started."""
        return self._lock.locked()

    async def crash(self, *, down_s: float, while_down: Callable[[], None] = lambda: None) -> None:
        """Kill the agent with SIGKILL, call `while_down`, wait `down_s`, and start it again."""
        async with self._lock:
            self._check()
            self._expected.round.crashed = True
            self._expected.counts["agent_kills"] += 1
            await self._host.kill()
            while_down()
            await asyncio.sleep(down_s)
            await self._start()

    async def crash_at(self, kind: str, *, delay_s: float, down_s: float) -> None:
        """Wait for the next event of a kind, and kill the agent `delay_s` after it."""
        seen = await asyncio.to_thread(self._last_event)
        while True:
            await asyncio.sleep(POLL_S)
            try:
                events = self._journal.events(after=seen)
            except sqlite3.Error:
                continue  # the agent is opening the journal
            if any(event["kind"] == kind for event in events):
                break
            seen = events[-1]["sequence"] if events else seen
        await asyncio.sleep(delay_s)
        self._log(f"the agent is killed {delay_s * 1000:.0f} ms after {kind}")
        await self.crash(down_s=down_s)

    async def check(self) -> None:
        """Raise `AgentEndedError` unless the agent runs."""
        async with self._lock:
            self._check()

    def _check(self) -> None:
        if not self._host.running:
            raise AgentEndedError(f"the agent ended unexpectedly: {self._host.output()[-2000:]}")

    async def _start(self) -> None:
        """Start the agent. Retries while the disk is full, because the agent then refuses to start."""
        try:
            async with asyncio.timeout(START_LIMIT_S):
                while True:
                    try:
                        await self._host.start()
                    except RuntimeError:
                        if not self._expected.round.disk_was_full:
                            raise
                        self._expected.counts["starts_refused"] += 1
                        await asyncio.sleep(THROTTLE_S)
                    else:
                        return
        except (TimeoutError, RuntimeError) as error:
            raise AgentEndedError(f"the agent does not start: {error}") from error

    def _last_event(self) -> int:
        return self._journal.snapshot().last_event
