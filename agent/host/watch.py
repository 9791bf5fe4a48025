"""What an agent does for its host beside its VMs: the doctor's looks, its vitals, and keeping it awake."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.host.doctor.model import condition_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.domain.model import Condition
    from agent.host.awake import Awake
    from agent.host.doctor.doctor import Doctor
    from agent.host.vitals import Pulse


class HostWatch:
    """Turns failing checks into conditions, every `period_s` seconds. `awake` is None where no host has to be kept so.

    Checks that are well post nothing, so that a healthy host has no more conditions than before; one that was posted
    is taken back when it is mended. What cannot be told changes nothing.
    """

    def __init__(
        self,
        doctor: Doctor,
        post: Callable[[Iterable[Condition]], None],
        *,
        period_s: float,
        pulse: Pulse,
        awake: Awake | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._doctor = doctor
        self._post = post
        self._period_s = period_s
        self._pulse = pulse
        self._awake = awake
        self._clock = clock
        self._posted: set[str] = set()
        self._repaced = asyncio.Event()

    def look_every(self, period_s: float) -> None:
        """Look at another pace from now on, counted from the last look."""
        self._period_s = period_s
        self._repaced.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_again_and_again(), name="doctor")
            tasks.create_task(self._pulse.run(), name="vitals")
            if self._awake is not None:
                tasks.create_task(self._awake.run(), name="awake")

    async def look(self) -> None:
        """Make every check once, and post what came of it."""
        told = []
        for finding in await self._doctor.look():
            kind = finding.check.condition
            if finding.failing:
                self._posted.add(kind)
            elif kind not in self._posted or not finding.well:
                continue
            told.append(condition_of(finding, self._clock()))
        self._post(told)

    async def _look_again_and_again(self) -> None:
        while True:
            await self.look()
            await self._rest()

    async def _rest(self) -> None:
        """Wait for the next look, by whatever period is in force meanwhile."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while (left_s := began_s + self._period_s - loop.time()) > 0:
            self._repaced.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._repaced.wait()
