"""Periodic work for the host itself: the doctor's checks, its vitals, and the power assertion."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.host.doctor.model import condition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.domain.model import Condition
    from agent.host.doctor.doctor import Doctor
    from agent.host.power_assertion import PowerAssertion
    from agent.host.vitals import VitalsSampler


class HostMonitor:
    """Posts a condition for each failing check, every `period_s` seconds.

    A passed check posts nothing unless its condition was posted before; then it posts the condition as cleared. A check
    with an unknown result changes nothing. `power_assertion` is None on systems that do not need one.
    """

    def __init__(
        self,
        doctor: Doctor,
        post: Callable[[Iterable[Condition]], None],
        *,
        period_s: float,
        vitals: VitalsSampler,
        power_assertion: PowerAssertion | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._doctor = doctor
        self._post = post
        self._period_s = period_s
        self._vitals = vitals
        self._power_assertion = power_assertion
        self._clock = clock
        self._posted: set[str] = set()
        self._period_changed = asyncio.Event()

    def set_period(self, period_s: float) -> None:
        """Set the period of the checks. It counts from the last run, so that a shorter period is effective now."""
        self._period_s = period_s
        self._period_changed.set()

    async def run(self) -> None:
        """Monitor the host until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._check_periodically(), name="doctor")
            tasks.create_task(self._vitals.run(), name="vitals")
            if self._power_assertion is not None:
                tasks.create_task(self._power_assertion.run(), name="power-assertion")

    async def run_checks(self) -> None:
        """Run every check once, and post the conditions that follow."""
        conditions = []
        for finding in await self._doctor.run_checks():
            kind = finding.check.condition
            if finding.is_failing:
                self._posted.add(kind)
            elif kind not in self._posted or not finding.is_ok:
                continue
            conditions.append(condition_of(finding, self._clock()))
        self._post(conditions)

    async def _check_periodically(self) -> None:
        while True:
            await self.run_checks()
            await self._wait_for_next_run()

    async def _wait_for_next_run(self) -> None:
        """Wait until the period is over. A change of the period while it waits is effective immediately."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        while (left_s := started_s + self._period_s - loop.time()) > 0:
            self._period_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._period_changed.wait()
